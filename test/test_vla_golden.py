# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model reproduces the authors' code on a tiny checkpoint (see data/README.md)."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.processor import Normaliser, pixel_values, resolve_unnorm_key

DATA = Path(__file__).parent / 'data' / 'oft_tiny'
CASES = (0, 1, 2)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp('golden')
    with zipfile.ZipFile(DATA / 'checkpoint.zip') as archive:
        archive.extractall(directory)
    return OpenVLAOFT.from_pretrained(directory)


@pytest.fixture(scope='module', params=CASES)
def case(request):
    with np.load(DATA / f'case_{request.param}.npz') as arrays:
        return dict(arrays)


def prompt(case):
    return torch.from_numpy(np.append(case['prompt_ids'], 29871))


def run(model, case):
    state = torch.from_numpy(case['state_norm']).float()[None]
    with torch.inference_mode():
        return model(pixel_values(case['frames']), prompt(case)[None], state)


def assert_close(ours, reference, atol=1e-5):
    np.testing.assert_allclose(ours.numpy(), reference, rtol=0, atol=atol)


def test_pixel_values(case):
    ours = pixel_values(case['frames'])[0]
    if 'pixel_values' in case:
        assert_close(ours, case['pixel_values'], 1e-6)
    else:
        assert_close(ours[:, ::16], case['pixel_rows'], 1e-6)


def test_vision_features(model, case):
    with torch.inference_mode():
        ours = model.vision_backbone(pixel_values(case['frames']))[0]
    if 'vision_features' in case:
        assert_close(ours, case['vision_features'])
    else:
        assert_close(ours[::4], case['vision_features_rows'])


def test_embeddings_readout_and_actions(model, case):
    out = run(model, case)
    assert_close(out.embeddings[0], case['embeddings'])
    assert_close(out.readout[0], case['readout'])
    assert_close(out.actions[0], case['actions_norm'])


def test_states_after_the_last_layer(model, case):
    out = run(model, case)
    with torch.inference_mode():
        hidden = model.decoder.norm(model.decoder(out.embeddings).hidden)[0]
    assert_close(hidden, case['last_hidden'])


def test_states_between_layers(model):
    with np.load(DATA / 'case_0.npz') as case:
        states = {}
        for index, layer in enumerate(model.decoder.layers):  # what enters one left the last one
            layer.input_layernorm.register_forward_pre_hook(
                lambda _, args, i=index: states.update({i - 1: args[0][0]})
            )
        with torch.inference_mode():
            out = model.decoder(torch.from_numpy(case['embeddings'])[None])
        states[len(model.decoder.layers) - 1] = out.hidden[0]
        for layer in model.decoder.layers:
            layer.input_layernorm._forward_pre_hooks.clear()
        for index, reference in enumerate(case['hidden_states']):
            assert_close(states[index], reference)


def test_a_padded_batch_reproduces_the_single_passes(model):
    cases = [dict(np.load(DATA / f'case_{i}.npz')) for i in CASES]
    ids = torch.nn.utils.rnn.pad_sequence(
        [prompt(c) for c in cases], batch_first=True, padding_value=32000
    )
    mask = torch.stack([torch.arange(ids.shape[1]) <= len(c['prompt_ids']) for c in cases])
    pixels = torch.cat([pixel_values(c['frames']) for c in cases])
    states = torch.from_numpy(np.stack([c['state_norm'] for c in cases])).float()
    with torch.inference_mode():
        out = model(pixels, ids, states, attention_mask=mask)
    for i, reference in enumerate(cases):
        assert_close(out.readout[i], reference['readout'])
        assert_close(out.actions[i], reference['actions_norm'])


def test_normalisation_uses_the_statistics_file_and_the_suffix(model, case):
    key = resolve_unnorm_key(model.config.norm_stats, 'libero_spatial')
    assert key == 'libero_spatial_no_noops'
    normaliser = Normaliser(model.config.norm_stats[key], 7, 8)
    state = normaliser.normalise_proprio(case['state_raw'])
    np.testing.assert_allclose(state, case['state_norm'], rtol=0, atol=1e-12)
    actions = normaliser.unnormalise_actions(case['actions_norm'])
    np.testing.assert_allclose(actions, case['actions'], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(actions[:, 6], case['actions_norm'][:, 6].astype(float))
