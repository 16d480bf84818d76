# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Draw on the camera pictures which patches the model kept.

The policy looks at the central 90 % of the area of each camera picture, cut into a square grid of
patches. This module maps that grid back onto the full camera picture, so that what is drawn is
where the tokens really come from. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, sqrt

import numpy as np

CROP_AREA = 0.9  # share of the picture's area that the image pipeline keeps
OUTLINE = (255, 176, 0)  # amber: apart from the scene for common kinds of colour blindness
DROPPED_LIGHT = 0.38  # brightness left on patches that were dropped
OUTSIDE_LIGHT = 0.2  # brightness left outside the crop, which the model never sees


def kept_grid(kept: np.ndarray, view: int, patches_per_view: int) -> np.ndarray:
    """Kept patches of one view as a grid.

    Args:
        kept: absolute visual ids (1-based, view after view, row-major inside a view), int [K].
        view: index of the camera.
        patches_per_view: a square number.

    Returns:
        bool [G, G] with G = sqrt(patches_per_view).

    Raises:
        ValueError: patches_per_view is not a square.
    """
    side = isqrt(patches_per_view)
    if side * side != patches_per_view:
        raise ValueError(f'{patches_per_view} patches per view do not form a square grid')
    local = np.asarray(kept, dtype=np.int64) - 1 - view * patches_per_view
    grid = np.zeros(patches_per_view, dtype=bool)
    grid[local[(local >= 0) & (local < patches_per_view)]] = True
    return grid.reshape(side, side)


def patch_of_pixel(n_pixels: int, grid: int, crop_area: float = CROP_AREA) -> np.ndarray:
    """Patch index of each camera pixel along one axis; -1 outside the crop.

    The pipeline resizes the picture to S x S and then samples the crop at `offset + factor * i`
    for output pixel i, with factor = sqrt(crop_area) and the crop centred. In units of the
    picture's width both resizes are the same affine map, so S only enters through half a pixel
    at the border, which is below one camera pixel and left out.

    Args:
        n_pixels: width or height of the camera picture.
        grid: patches along this axis.
        crop_area: share of the area that is kept; 1 when the pipeline does not crop.

    Returns:
        int [n_pixels].
    """
    centre = (np.arange(n_pixels) + 0.5) / n_pixels
    inside = (centre - 0.5) / sqrt(crop_area) + 0.5  # 0..1 over the crop
    index = np.floor(inside * grid).astype(np.int64)
    index[(inside < 0) | (inside >= 1)] = -1
    return index


def draw_kept(
    image: np.ndarray,
    grid: np.ndarray,
    *,
    scale: int = 1,
    crop_area: float = CROP_AREA,
    outline: Sequence[int] = OUTLINE,
) -> np.ndarray:
    """Dim the dropped patches of one picture and outline the kept region thinly.

    Args:
        image: uint8 [H, W, 3], as the camera gave it.
        grid: bool [G, G], see `kept_grid`.
        scale: integer magnification of the result.
        crop_area: share of the picture's area that the model sees.
        outline: RGB of the one-pixel line between kept and dropped patches.

    Returns:
        uint8 [scale * H, scale * W, 3]; the input is left alone.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'expected uint8 [H, W, 3], got {image.dtype} {image.shape}')
    picture = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
    rows = patch_of_pixel(picture.shape[0], grid.shape[0], crop_area)
    columns = patch_of_pixel(picture.shape[1], grid.shape[1], crop_area)
    inside = (rows >= 0)[:, None] & (columns >= 0)[None, :]
    kept = grid[rows][:, columns] & inside  # [H, W]; index -1 is masked by `inside`
    light = np.where(kept, 1.0, np.where(inside, DROPPED_LIGHT, OUTSIDE_LIGHT))
    picture = (picture * light[..., None]).astype(np.uint8)
    picture[kept & ~_eroded(kept)] = np.asarray(outline, dtype=np.uint8)
    return picture


def draw_views(
    images: Sequence[np.ndarray],
    kept: np.ndarray,
    patches_per_view: int,
    *,
    scale: int = 1,
    crop_area: float = CROP_AREA,
) -> np.ndarray:
    """All cameras side by side with their kept patches.

    Args:
        images: one uint8 [H, W, 3] per view, in the order of the model's views, equal heights.
        kept: absolute visual ids that entered the last layer.
        patches_per_view: tokens of each view before pruning.
        scale: integer magnification.
        crop_area: share of each picture's area that the model sees.

    Returns:
        uint8 [scale * H, sum of widths, 3].
    """
    pictures = []
    for view, image in enumerate(images):
        grid = kept_grid(kept, view, patches_per_view)
        pictures.append(draw_kept(image, grid, scale=scale, crop_area=crop_area))
    return np.concatenate(pictures, axis=1)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Pixels of `mask` whose four neighbours are in it too; the picture's edge counts as out."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
