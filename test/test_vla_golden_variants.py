# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every variant reproduces the authors' code on their own files (see data/variants)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import save_pretrained
from vla_prune_ros.vla.normalisation import Normaliser
from vla_prune_ros.vla.processor import pixel_values

DATA = Path(__file__).parent / 'data' / 'variants'
DECLARED = {
    'three_views': 'n_views=3',
    'no_state': 'libero,n_views=1,use_proprio=false',
    'tokens': 'libero_tokens',
    'aloha': 'aloha',
    'bridge': 'bridge',
    'film': 'libero',
}


@pytest.fixture(params=DECLARED)
def recorded(request, tmp_path):
    """Name, model and arrays."""
    with zipfile.ZipFile(DATA / f'{request.param}.zip') as archive:
        archive.extractall(tmp_path)
    with np.load(DATA / f'{request.param}.npz') as arrays:
        model = OpenVLAOFT.from_pretrained(tmp_path, variant=DECLARED[request.param])
        return request.param, model, dict(arrays)


def run(model, arrays):
    """Output of the network, and actions in robot units."""
    config = model.config
    statistics = config.norm_stats['made_up']
    kind = config.normalisation
    normaliser = Normaliser(statistics, config.action_dim, config.proprio_dim, kind)
    state = None
    if config.use_proprio:
        normalised = normaliser.normalise_proprio(arrays['state'])
        np.testing.assert_allclose(normalised, arrays['state_norm'], rtol=0, atol=1e-7)
        state = torch.from_numpy(normalised).float()[None]
    ids = torch.tensor([[*arrays['prompt_ids'], 29871]])
    with torch.inference_mode():
        out = model(pixel_values(arrays['frames']), ids, state)
    return out, normaliser.unnormalise_actions(out.actions[0].double().numpy())


def test_embeddings_readout_and_actions(recorded):
    name, model, arrays = recorded
    out, actions = run(model, arrays)
    atol = 3e-5 if name == 'film' else 1e-5
    np.testing.assert_allclose(out.embeddings[0], arrays['embeddings'], rtol=0, atol=atol)
    np.testing.assert_allclose(out.readout[0], arrays['readout'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(actions, arrays['actions'], rtol=0, atol=1e-5)


def test_parts_of_a_variant(recorded):
    name, model, arrays = recorded
    ids = torch.tensor([[*arrays['prompt_ids'], 29871]])
    with torch.inference_mode():
        if name == 'film':
            found = model.vision_backbone(pixel_values(arrays['frames']), model.modulation(ids))
            np.testing.assert_allclose(found[0], arrays['vision_features'], rtol=1e-5, atol=1e-4)
        elif name == 'tokens':
            out, _ = run(model, arrays)
            found = model.action_head.ids.start + model.action_head.logits(out.readout).argmax(-1)
            assert found[0].tolist() == arrays['token_ids'].tolist()
        else:
            assert model.config.origins['action_dim'] in (
                'derived from action_head--1_checkpoint.pt',
                f'told (variant {name})',
                'told (variant libero)',
            )


def test_what_is_written_again_needs_no_declaration(recorded, tmp_path_factory):
    _, model, arrays = recorded
    directory = tmp_path_factory.mktemp('again')
    save_pretrained(model, directory)
    again = OpenVLAOFT.from_pretrained(directory)
    assert again.config.origins['chunk_len'] == 'config.json'
    assert torch.equal(run(again, arrays)[0].actions, run(model, arrays)[0].actions)
