# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How much each patch of a view changed between two policy images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_EPS = 1e-8


def to_patches(images: np.ndarray | Tensor, patch_size: int) -> Tensor:
    """Cut policy images into patches, row-major as the vision towers do.

    Args:
        images: uint8 [views, S, S, 3].
        patch_size: side of a patch in pixels.

    Returns:
        uint8 [views, (S / patch_size)^2, patch_size^2 * 3].

    Raises:
        ValueError: the image is not a whole number of patches.
    """
    images = torch.as_tensor(images)
    views, size, _, channels = images.shape
    if size % patch_size:
        raise ValueError(f'image size {size} is not a multiple of patch {patch_size}')
    grid = size // patch_size
    cells = images.view(views, grid, patch_size, grid, patch_size, channels)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(views, grid * grid, -1)


def patch_similarity(current: Tensor, reference: Tensor) -> Tensor:
    """Cosine of raw pixel patches, without mean removal.

    Identical patches give exactly 1, two black ones too. Source: SpecPrune-VLA and VLA-Cache,
    released code, which both give 0 to two black patches.

    Args:
        current: uint8 [..., pixels].
        reference: the same shape.

    Returns:
        float32 [...].
    """
    a, b = current.float(), reference.float()
    # The same reduction for all three, so that equal patches divide equal numbers.
    dot, aa, bb = (a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)
    cosine = dot / ((aa * bb).sqrt() + _EPS)
    return cosine.masked_fill((aa == 0) & (bb == 0), 1.0)
