# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One product for layers that share their input: same results, same parameters, same files."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from tiny import inputs, tiny_model
from torch import nn

from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import save_pretrained
from vla_prune_ros.vla.fusing import as_one_matrix, lay_side_by_side
from vla_prune_ros.vla.sizes import SIZES, random_model


def run(model):
    with torch.inference_mode():
        return model(*inputs(model.config)).actions


def is_fused(model):
    blocks = [b for layer in model.decoder.layers for b in (layer.self_attn, layer.mlp)]
    with torch.no_grad():
        return [as_one_matrix(block.inward) is not None for block in blocks]


def test_fused_and_packed_layers_equal_separate_ones():
    model = tiny_model()
    separate = run(model)
    model.decoder.fuse()
    assert all(is_fused(model))
    torch.testing.assert_close(run(model), separate, rtol=0, atol=1e-5)
    model.decoder.pack()
    assert model.decoder.packed
    torch.testing.assert_close(run(model), separate, rtol=0, atol=1e-5)


def test_fusing_changes_neither_names_nor_the_saved_files(tmp_path):
    model = tiny_model()
    save_pretrained(model, tmp_path / 'before')
    names = [name for name, _ in model.named_parameters()]
    model.decoder.fuse()
    save_pretrained(model, tmp_path / 'after')
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    before, after = (load_file(tmp_path / d / 'model.safetensors') for d in ('before', 'after'))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_fusing_again_moves_nothing():
    model = tiny_model()
    model.decoder.fuse()
    places = [p.data_ptr() for p in model.parameters()]
    model.decoder.fuse()
    assert places == [p.data_ptr() for p in model.parameters()]


def test_a_packed_model_cannot_be_saved(tmp_path):
    model = tiny_model()
    model.decoder.pack()
    with pytest.raises(ValueError, match='cannot be saved'):
        save_pretrained(model, tmp_path)


def test_a_change_of_one_weight_is_seen_by_the_fused_product():
    model = tiny_model()
    model.decoder.fuse()
    with torch.no_grad():
        model.decoder.layers[0].mlp.up_proj.weight.mul_(1.5)
        model.decoder.layers[1].self_attn.k_proj.weight.mul_(0.5)
    changed = run(model)
    plain = tiny_model()
    plain.load_state_dict(model.state_dict())
    assert not any(is_fused(plain))
    torch.testing.assert_close(changed, run(plain), rtol=0, atol=1e-5)


@pytest.mark.parametrize('move', [copy.deepcopy, lambda m: m.to(torch.float64).to(torch.float32)])
def test_weights_that_moved_apart_are_used_one_by_one(move):
    model = tiny_model()
    model.decoder.fuse()
    before = run(model)
    moved = move(model)
    for layer in moved.decoder.layers:
        layer.mlp.up_proj.weight = nn.Parameter(layer.mlp.up_proj.weight.detach().clone())
    assert not all(is_fused(moved))
    torch.testing.assert_close(run(moved), before, rtol=0, atol=1e-5)


def test_layers_that_are_not_plain_or_wanted_for_training_are_not_fused():
    a, b = nn.Linear(4, 3, bias=False), nn.Linear(4, 5, bias=False)
    lay_side_by_side([a, b])
    assert as_one_matrix([a, b]) is None  # gradients are on
    with torch.no_grad():
        assert torch.equal(as_one_matrix([a, b]), torch.cat([a.weight, b.weight]))
        assert as_one_matrix([b, a]) is None
        assert as_one_matrix([a, nn.Sequential(b)]) is None
        assert as_one_matrix([a, nn.Linear(4, 5)]) is None


def test_a_fused_model_trains_as_before():
    model, plain = tiny_model(), tiny_model()
    model.decoder.fuse()
    for m in (model, plain):
        m.train()
        m(*inputs(m.config)).actions.square().mean().backward()
        with torch.no_grad():
            for p in m.parameters():
                p -= 0.1 * p.grad
    torch.testing.assert_close(run(model.eval()), run(plain.eval()), rtol=0, atol=1e-4)


def test_named_sizes():
    with torch.device('meta'):
        millions = {
            name: sum(p.numel() for p in OpenVLAOFT(config).parameters()) / 1e6
            for name, config in SIZES.items()
        }
    assert millions['tiny'] < 1
    assert 90 < millions['small'] < 120
    assert 7500 < millions['7b'] < 7600  # lm_head and unused blocks are not built
    a, b = (random_model('tiny', torch.bfloat16, seed=3) for _ in range(2))
    assert torch.equal(run(a), run(b))
    with pytest.raises(ValueError, match='tiny, small, 7b'):
        random_model('huge')
