# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Patch similarity against the authors' numbers, and the sets that are built from scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_prune_ros.pruning.frames import patch_similarity, to_patches
from vla_prune_ros.pruning.scores import instruction_rows, top_per_view, visual_ids
from vla_prune_ros.vla.selection import TokenLayout

PAIRS = np.load(Path(__file__).parent / 'data' / 'vla_cache_patches' / 'pairs.npz')


def similarity(pair):
    current, previous = (to_patches(PAIRS[f'{k}_{pair}'][None], 14) for k in ('cur', 'prev'))
    return patch_similarity(current, previous)


@pytest.mark.parametrize('pair', [0, 1, 2])
def test_similarity_is_that_of_the_released_code(pair):
    values = similarity(pair)
    assert values.dtype == torch.float32 and values.shape == (1, 256)
    np.testing.assert_allclose(values[0], PAIRS[f'cosine_{pair}'], atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'threshold', 'count', 'offset'),
    [
        ('vlacache_top150_t0996', 0.996, 150, 0),
        ('vlacache_single_top130_t0996', 0.996, 130, 0),
        ('specprune_primary_top200_t0986', 0.986, 200, 1),
        ('specprune_wrist_top220_t0986', 0.986, 220, 257),
        ('specprune_small_top40_t0986', 0.986, 40, 1),
    ],
)
@pytest.mark.parametrize('pair', [0, 1])
def test_static_sets_are_those_of_the_released_code(name, threshold, count, offset, pair):
    values = similarity(pair)
    chosen = top_per_view(values.masked_fill(values < threshold, -torch.inf), count)
    expected = np.sort(PAIRS[f'{name}_{pair}']) - offset
    np.testing.assert_array_equal(visual_ids(chosen) - 1, expected)


@pytest.mark.parametrize('threshold', [0.996, 0.986])
def test_thresholds_hold_where_most_patches_are_equal(threshold):
    np.testing.assert_array_equal(similarity(2)[0] >= threshold, PAIRS['cosine_2'] >= threshold)


def test_patches_are_row_major_and_hold_their_own_pixels():
    image = np.arange(2 * 42 * 42 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 42, 42, 3)
    patches = to_patches(image, 14)
    assert patches.shape == (2, 9, 588)
    np.testing.assert_array_equal(patches[1, 5], image[1, 14:28, 28:42].ravel())


def test_image_that_is_no_whole_number_of_patches_is_refused():
    with pytest.raises(ValueError, match='43'):
        to_patches(np.zeros((1, 43, 43, 3), np.uint8), 14)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31 - 1), st.integers(0, 255))
def test_equal_patches_have_similarity_of_exactly_one(seed, brightest):
    patches = torch.from_numpy(
        np.random.default_rng(seed).integers(0, brightest + 1, (4, 588), dtype=np.uint8)
    )
    assert (patch_similarity(patches, patches.clone()) == 1).all()


def test_black_patches_are_like_each_other_and_like_nothing_else():
    black, grey = (
        torch.zeros(1, 588, dtype=torch.uint8),
        torch.full((1, 588), 9, dtype=torch.uint8),
    )
    assert patch_similarity(black, black).item() == 1
    assert patch_similarity(black, grey).item() == 0


def test_best_of_each_view_leaves_out_absent_ones_and_breaks_ties_by_id():
    values = torch.tensor([[1.0, 2.0, 2.0, 2.0], [-torch.inf, 5.0, -torch.inf, -torch.inf]])
    mask = top_per_view(values, 2)
    assert mask.tolist() == [[False, True, True, False], [False, True, False, False]]
    assert visual_ids(mask).tolist() == [2, 3, 6]
    assert not top_per_view(values, 0).any()
    assert top_per_view(values, 99)[0].all()


def test_instruction_rows_leave_out_template_and_blank():
    layout = TokenLayout(2, 256, prompt_length=26, n_placeholders=56)
    rows = instruction_rows(layout, 9)
    assert (rows.start, rows.stop - 1) == (523, 512 + 25)  # 523..512+P with P = 25


@pytest.mark.parametrize('template_tokens', [24, 30])
def test_without_words_all_prompt_rows_count(template_tokens):
    layout = TokenLayout(1, 16, prompt_length=12, n_placeholders=56)
    assert instruction_rows(layout, template_tokens) == layout.text
