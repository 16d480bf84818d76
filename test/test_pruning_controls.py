# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""FastV against explicit attention maps; the patches of a grid."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import SIZES, TEMPLATE_TOKENS, Rig, deep_config, model
from tiny import tiny_config

from vla_prune_ros.pruning import make_selector
from vla_prune_ros.vla.decoder import rope_table


def attention_maps(net, embeddings, index):
    """Attention of one layer in a dense pass, [heads, n, n]."""
    llama, x = net.config.llama, embeddings
    rope = rope_table(torch.arange(x.shape[1]), llama.head_dim, llama.rope_theta, torch.float32)
    for layer in net.decoder.layers[:index]:
        x = layer(x, rope)
    q, k, _ = (t[0] for t in net.decoder.layers[index].qkv(x, rope))
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(llama.head_dim), -1)


@pytest.mark.parametrize('views', [1, 2])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    ('rows', 'layers'),
    [('prompt', 1), ('prompt', 2), ('action', 2), ('last', 1), ('last', 2), ('all', 2)],
)
def test_fastv_keeps_what_explicit_attention_maps_say(size, views, rows, layers):
    keep = 5
    rig = Rig(model(size), 'fastv', views, rows=rows, layers=layers, keep=keep)
    out = rig.tick(0)
    layout, n = out.layout, out.layout.length
    with torch.inference_mode():
        maps = attention_maps(rig.model, out.embeddings, layers - 1)
    asked = {
        'prompt': [*layout.text][TEMPLATE_TOKENS:-1],
        'action': [*range(n - 57, n - 1)],
        'last': [n - 1],
        'all': [*range(n)],
    }[rows]
    received = maps[:, asked].mean((0, 1))
    torch.testing.assert_close(
        rig.trace.scores[layers - 1], received[1 : 1 + layout.n_visual], atol=1e-6, rtol=1e-5
    )
    best = set()
    for view in range(views):
        ids = torch.tensor([*layout.view(view)])
        best |= {*ids[received[ids].topk(keep).indices].tolist()}
    assert rig.trace.cuts.keys() == {layers}
    assert {*rig.trace.cuts[layers]} & {*layout.visual} == best


@pytest.mark.parametrize(
    ('options', 'count'),
    [({}, 8), ({'prune_ratio': 0.75}, 4), ({'keep': 7}, 7), ({'prune_ratio': 1.0}, 1)],
)
def test_fastv_budget_is_exact_in_each_view(options, count):
    rig = Rig(model(SIZES[0]), 'fastv', **options)
    kept = rig.tick(0).kept.tolist()
    assert [sum(i <= 16 for i in kept), sum(i > 16 for i in kept)] == [count, count]
    assert rig.selector.stats()['keep_per_view'] == count


def test_fastv_cuts_at_most_in_front_of_the_last_layer():
    assert make_selector('fastv', deep_config(2)).layers == 1
    assert make_selector('fastv', deep_config(32)).layers == 2


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'keep': 17}, 'option keep=17'),
        ({'rows': 'action', 'layers': 1}, 'attend to everything alike'),
        ({'rows': 'first'}, 'option rows'),
    ],
)
def test_impossible_fastv_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        make_selector('fastv', tiny_config(), **options)


def kept_patches(rig, queries=1):
    """Patches of the second view after each of some queries."""
    n = rig.model.config.patches_per_view
    return [[i - 1 - n for i in rig.tick(q).kept.tolist() if i > n] for q in range(queries)]


def test_grid_of_stride_two_in_line_and_in_square():
    assert kept_patches(Rig(model(SIZES[0]), 'grid')) == [[0, 2, 4, 6, 8, 10, 12, 14]]
    rig = Rig(model(SIZES[0]), 'grid', form='square')
    assert kept_patches(rig) == [[0, 2, 8, 10]]
    assert rig.selector.stats()['keep_per_view'] == 4
    odd = Rig(model(SIZES[1]), 'grid', form='square', stride=3)  # rows and columns 0 and 3 of 5
    assert kept_patches(odd) == [[0, 3, 15, 18]]


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(['line', 'square']), st.integers(1, 5), st.integers(0, 3))
def test_rotating_grid_visits_every_patch_once_per_turn(form, stride, layer):
    stride = min(stride, 5 if form == 'square' else 25)
    rig = Rig(model(SIZES[1]), 'grid', form=form, stride=stride, phase='rotate', layer=layer)
    turn = stride**2 if form == 'square' else stride
    seen = kept_patches(rig, turn + 1)
    assert sorted(p for kept in seen[:turn] for p in kept) == [*range(25)]
    assert seen[turn] == seen[0]
    assert rig.trace.cuts.keys() == {layer}
    rig.reset()
    assert kept_patches(rig) == [seen[0]]


@pytest.mark.parametrize(
    ('options', 'name'),
    [
        ({'stride': 17}, 'stride'),
        ({'form': 'square', 'stride': 5}, 'stride'),
        ({'layer': 4}, 'layer'),
        ({'form': 'circle'}, 'form'),
    ],
)
def test_impossible_grids_are_refused(options, name):
    with pytest.raises(ValueError, match=f'option {name}'):
        make_selector('grid', tiny_config(), **options)
