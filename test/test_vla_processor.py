# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pixel values, prompt and normalisation."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import INSTRUCTIONS, norm_stats
from tokenizers import Tokenizer

from vla_prune_ros.vla import tokenizer as tokenizer_module
from vla_prune_ros.vla.processor import (
    Normaliser,
    pixel_values,
    resolve_unnorm_key,
)
from vla_prune_ros.vla.tokenizer import PromptTokenizer, build_tokenizer


@pytest.fixture(scope='module')
def frames():
    with np.load(Path(__file__).parent / 'data' / 'preprocess' / 'frames.npz') as arrays:
        return dict(arrays)


@pytest.mark.parametrize('index', range(3))
def test_pixel_constants(frames, index):
    ours = pixel_values(frames['crop_jpeg'][index][None])[0, :, ::8].numpy()
    np.testing.assert_allclose(ours, frames[f'pixel_rows_{index}'], rtol=0, atol=1e-6)


def test_views_are_stacked_in_order():
    views = np.stack([np.full((14, 14, 3), v, np.uint8) for v in (0, 255)])
    pixels = pixel_values(views)
    assert pixels.shape == (1, 12, 14, 14)
    assert torch.equal(pixels[0, 3:6], torch.full((3, 14, 14), -1.0))
    assert torch.equal(pixels[0, 9:], torch.full((3, 14, 14), 1.0))


def test_actions_survive_the_round_trip_and_the_gripper_is_untouched():
    normaliser = Normaliser(norm_stats()['tabletop'], 7, 8)
    normalised = np.random.default_rng(0).uniform(-1.2, 1.2, (8, 7))
    actions = normaliser.unnormalise_actions(normalised)
    np.testing.assert_array_equal(actions[:, 6], normalised[:, 6])
    np.testing.assert_allclose(normaliser.normalise_actions(actions), normalised, atol=1e-12)
    np.testing.assert_allclose(normaliser.unnormalise_actions(np.ones(7))[:6], 0.75, atol=1e-7)


def test_published_statistics_give_the_published_limits():
    low = [-0.745473, -0.661607, -0.9375, -0.107143, -0.206786, -0.184286, 0.0]
    high = [0.9375, 0.875893, 0.932143, 0.103929, 0.176786, 0.145714, 1.0]
    block = {'q01': low, 'q99': high, 'mask': [True] * 6 + [False]}
    normaliser = Normaliser(
        {'action': block, 'proprio': norm_stats()['tabletop']['proprio']}, 7, 8
    )
    np.testing.assert_allclose(normaliser.unnormalise_actions(-np.ones(7))[:6], low[:6], atol=1e-7)
    np.testing.assert_allclose(normaliser.unnormalise_actions(np.ones(7))[:6], high[:6], atol=1e-7)


def test_proprio_is_clipped_and_the_caller_keeps_its_array():
    normaliser = Normaliser(norm_stats()['tabletop'], 7, 8)
    state = np.array([-9.0, -1.0, 0.25, 1.5, 9.0, 0, 0, 0])
    before = state.copy()
    np.testing.assert_allclose(
        normaliser.normalise_proprio(state)[:5], [-1, -1, 0, 1, 1], atol=1e-7
    )
    np.testing.assert_array_equal(state, before)


def test_numbers_that_a_mask_leaves_out_are_clipped_and_nothing_else():
    # As `normalize_proprio` of the authors: np.clip(np.where(mask, scaled, proprio), -1, 1).
    statistics = norm_stats()['tabletop']
    statistics['proprio'] |= {'mask': [True] * 6 + [False] * 2}
    normaliser = Normaliser(statistics, 7, 8)
    state = np.array([-1.0, 0.25, 1.5, 0.25, 0.25, 0.25, 0.04, -7.0])
    np.testing.assert_allclose(
        normaliser.normalise_proprio(state), [-1, 0, 1, 0, 0, 0, 0.04, -1], atol=1e-7
    )


def test_statistics_of_another_width_are_refused():
    with pytest.raises(ValueError, match='proprio statistics'):
        Normaliser(norm_stats(proprio_dim=7)['tabletop'], 7, 8)
    with pytest.raises(ValueError, match="'proprio'"):
        Normaliser({'action': norm_stats()['tabletop']['action']}, 7, 8)


def test_unnorm_key_is_the_only_one_or_must_be_known():
    assert resolve_unnorm_key({'a': 1}, None) == 'a'
    assert resolve_unnorm_key({'a': 1, 'b_no_noops': 1}, 'b') == 'b_no_noops'
    with pytest.raises(ValueError, match=r"'c'.*a, b"):
        resolve_unnorm_key({'a': 1, 'b': 1}, 'c')
    with pytest.raises(ValueError, match=r'must be given.*a, b'):
        resolve_unnorm_key({'a': 1, 'b': 1}, None)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp('tokenizer')
    size = build_tokenizer(INSTRUCTIONS, directory)
    pieces = Tokenizer.from_file(str(directory / 'tokenizer.json'))
    return PromptTokenizer.from_directory(directory, 1, size), pieces


def test_prompt_has_the_template_bos_and_the_closing_blank(tokenizer):
    prompts, pieces = tokenizer
    ids = prompts.prompt_ids('Pick up the RED block')
    assert ids[0] == 1
    assert [pieces.id_to_token(i) for i in ids[1:]] == [
        *('▁In', ':', '▁What', '▁action', '▁should', '▁the', '▁robot', '▁take', '▁to'),
        *('▁pick', '▁up', '▁the', '▁red', '▁block', '?', '\n', 'Out', ':', '▁'),
    ]


def test_template_tokens_are_counted_after_bos(tokenizer):
    assert tokenizer[0].template_length(INSTRUCTIONS[0]) == 9


def test_unseen_words_are_spelled_and_stay_in_the_vocabulary(tokenizer):
    prompts, pieces = tokenizer
    ids = prompts.prompt_ids('grasp 2 mugs')
    assert max(ids) < pieces.get_vocab_size()
    assert pieces.token_to_id('<unk>') not in ids
    assert 'grasp 2 mugs' in pieces.decode(ids)


def test_tokenizer_files_are_the_same_every_time(tmp_path):
    for name in 'ab':
        build_tokenizer(INSTRUCTIONS, tmp_path / name)
    texts = [(tmp_path / name / 'tokenizer.json').read_text() for name in 'ab']
    assert texts[0] == texts[1]


def test_blank_piece_is_not_doubled_and_bos_is_added_when_missing(monkeypatch):
    prompts = PromptTokenizer(lambda text: [7, 8, 9], bos_id=1, blank_id=9, vocab_size=10)
    assert prompts.prompt_ids('x') == [1, 7, 8, 9]


def test_empty_instruction_and_foreign_tokenizer_are_refused(tokenizer):
    with pytest.raises(ValueError, match='empty'):
        tokenizer[0].prompt_ids(' ')
    foreign = PromptTokenizer(lambda text: [1, 500], bos_id=1, blank_id=9, vocab_size=100)
    with pytest.raises(ValueError, match='500'):
        foreign.prompt_ids('x')
    with pytest.raises(ValueError, match=tokenizer_module.BLANK):
        PromptTokenizer(lambda text: [1], bos_id=1, blank_id=None, vocab_size=10)


def test_missing_tokenizer_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'tokenizer\.json'):
        PromptTokenizer.from_directory(tmp_path, 1, 100)


def test_sentencepiece_is_asked_for_when_only_its_model_is_there(tmp_path, monkeypatch):
    (tmp_path / 'tokenizer.model').touch()
    monkeypatch.setitem(sys.modules, 'sentencepiece', None)
    with pytest.raises(ImportError, match=r'tokenizer\.model needs the sentencepiece package'):
        PromptTokenizer.from_directory(tmp_path, 1, 100)
