# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The overlay marks the place in the camera picture that a token really sees."""

import numpy as np
import pytest

from vla_prune_ros.pruning.overlay import (
    DROPPED_LIGHT,
    OUTLINE,
    draw_kept,
    draw_views,
    kept_grid,
    patch_of_pixel,
)
from vla_prune_ros.vla.pictures import preprocess_image

GREY = np.full((256, 256, 3), 200, dtype=np.uint8)


def test_absolute_ids_land_in_their_view_row_and_column():
    kept = np.array([1, 8, 64, 65, 130])  # 130 is past the last view: the proprio token
    first, second = kept_grid(kept, 0, 64), kept_grid(kept, 1, 64)
    assert np.argwhere(first).tolist() == [[0, 0], [0, 7], [7, 7]]
    assert np.argwhere(second).tolist() == [[0, 0]]


def test_patches_that_form_no_square_are_refused():
    with pytest.raises(ValueError, match='square'):
        kept_grid(np.array([1]), 0, 60)


def test_crop_border_lies_where_ninety_percent_of_the_area_puts_it():
    index = patch_of_pixel(256, 8)
    border = 256 * (1 - np.sqrt(0.9)) / 2  # 6.57 pixels on each side
    assert np.flatnonzero(index >= 0)[[0, -1]].tolist() == [round(border), 255 - round(border)]
    assert index[128] == 4
    assert index[127] == 3
    assert patch_of_pixel(16, 8, crop_area=1).tolist() == [k // 2 for k in range(16)]


@pytest.mark.parametrize('size', [112, 224])
@pytest.mark.parametrize('point', [(10, 10), (40, 200), (128, 60), (245, 131), (200, 245)])
def test_grid_agrees_with_the_image_pipeline(size, point):
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    row, column = point
    image[row - 1 : row + 2, column - 1 : column + 2] = 255
    seen = preprocess_image(image, size=size).astype(float).sum(axis=2)
    centre = (seen.sum(1) @ np.arange(size), seen.sum(0) @ np.arange(size)) / seen.sum()
    patches = [int(c // 14) for c in centre]
    index = patch_of_pixel(256, size // 14)
    near = [
        {int(i) for i in index[p - 2 : p + 3]}
        for p in point  # a patch border may be close by
    ]
    assert patches[0] in near[0]
    assert patches[1] in near[1]


def test_dropped_patches_are_dimmed_and_kept_ones_keep_their_pixels():
    grid = np.zeros((8, 8), dtype=bool)
    grid[2:4, 2:4] = True
    before = GREY.copy()
    picture = draw_kept(GREY, grid)
    assert (before == GREY).all()
    index = patch_of_pixel(256, 8)
    inner = np.flatnonzero((index == 2) | (index == 3))
    middle = picture[inner[1] : inner[-1], inner[1] : inner[-1]]
    assert (middle == 200).all()
    assert (picture[128, 128] == int(200 * DROPPED_LIGHT)).all()
    assert (picture[0, 0] < picture[128, 128]).all()


def test_outline_is_one_pixel_and_only_around_the_kept_region():
    grid = np.zeros((8, 8), dtype=bool)
    grid[2:4, 2:4] = True  # four patches, one region: no line between them
    on_line = (draw_kept(GREY, grid) == OUTLINE).all(axis=2)
    side = np.isin(patch_of_pixel(256, 8), (2, 3)).sum()
    assert on_line.sum() == 4 * side - 4


def test_nothing_kept_draws_no_line_and_two_views_stand_side_by_side():
    assert not (draw_kept(GREY, np.zeros((8, 8), dtype=bool)) == OUTLINE).all(axis=2).any()
    both = draw_views([GREY, GREY], np.arange(65, 129), 64, scale=2)
    assert both.shape == (512, 1024, 3)
    assert both[256, 256, 0] == int(200 * DROPPED_LIGHT)
    assert both[256, 768, 0] == 200


def test_a_picture_of_another_layout_is_refused():
    with pytest.raises(ValueError, match='uint8'):
        draw_kept(np.zeros((4, 4)), np.ones((2, 2), dtype=bool))
