# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Random drop: exact budgets, seeded draws, nothing protected ever lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import inputs, tiny_config, tiny_model

from vla_prune_ros.pruning import History, Tick, make_selector
from vla_prune_ros.vla.selection import TokenLayout, TokenState

CONFIG = tiny_config()
PATCHES = CONFIG.patches_per_view
MODEL = tiny_model()


def draw(selector, layout):
    embeddings = torch.zeros(layout.length, 4)
    selector.begin(layout, embeddings)
    state = TokenState(layout, torch.arange(layout.length), embeddings, {})
    return selector.select(selector.opt.layer, state)


def layout(prompt_length=12, n_views=2):
    return TokenLayout(n_views, PATCHES, prompt_length, 56)


@settings(deadline=None, max_examples=60)
@given(
    keep=st.integers(1, PATCHES),
    seed=st.integers(0, 2**31 - 1),
    prompt_length=st.integers(2, 40),
    n_views=st.integers(1, 3),
)
def test_budget_order_and_protected_tokens(keep, seed, prompt_length, n_views):
    tokens = layout(prompt_length, n_views)
    kept = draw(make_selector('random', CONFIG, keep=keep, seed=seed), tokens).tolist()
    assert kept == sorted(set(kept))
    assert {i for part in tokens.protected for i in part} <= set(kept)
    for view in range(n_views):
        assert sum(i in tokens.view(view) for i in kept) == keep


@settings(deadline=None, max_examples=25)
@given(layer=st.integers(0, 3), seed=st.integers(0, 1000), length=st.integers(2, 20))
def test_keeping_all_equals_dense_bit_for_bit(layer, seed, length):
    pixels, ids, proprio = inputs(CONFIG, seed, length)
    selector = make_selector('random', CONFIG, keep_ratio=1.0, layer=layer)
    with torch.inference_mode():
        dense = MODEL(pixels, ids, proprio)
        kept = MODEL(pixels, ids, proprio, selector)
    assert torch.equal(dense.actions, kept.actions)
    assert torch.equal(dense.readout, kept.readout)


@pytest.mark.parametrize(
    ('options', 'budget'),
    [
        ({'keep_ratio': 0.5}, 8),
        ({'keep_ratio': 0.3}, 5),
        ({'keep_ratio': 0.0}, 1),
        ({'keep': 3}, 3),
    ],
)
def test_budget_by_share_or_by_count(options, budget):
    selector = make_selector('random', CONFIG, **options)
    tokens = layout()
    assert len(draw(selector, tokens)) == tokens.length - tokens.n_visual + 2 * budget
    assert selector.stats()['keep_per_view'] == budget


def test_same_seed_gives_the_same_draws_and_another_seed_others():
    a, b, c = (make_selector('random', CONFIG, keep=4, seed=s) for s in (1, 1, 2))
    draws = [[draw(s, layout()).tolist() for _ in range(3)] for s in (a, b, c)]
    assert draws[0] == draws[1] != draws[2]


def test_each_inference_draws_anew_and_every_patch_comes_up():
    selector = make_selector('random', CONFIG, keep=4)
    draws = [draw(selector, layout()).tolist() for _ in range(60)]
    assert draws[0] != draws[1]
    assert set(layout().visual) <= {i for kept in draws for i in kept}


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(make_selector('random', CONFIG), layout())
    assert torch.equal(torch.get_rng_state(), before)


def test_an_episode_keeps_its_draw_until_the_history_is_reset():
    selector = make_selector('random', CONFIG, keep=4, redraw='episode')
    history = History()
    draws = []
    for _ in range(2):
        for _ in range(2):
            selector.observe(Tick(np.zeros((2, 56, 56, 3), np.uint8), 9, history))
            draws.append(draw(selector, layout()).tolist())
        history.reset('reset')
        selector.reset()
    assert draws[0] == draws[1] != draws[2] == draws[3]


@pytest.mark.parametrize('layer', [0, 2])
def test_cut_happens_before_the_given_layer(layer):
    rows = []
    handles = [
        block.mlp.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
        for block in MODEL.decoder.layers
    ]
    with torch.inference_mode():
        out = MODEL(*inputs(CONFIG), make_selector('random', CONFIG, keep=4, layer=layer))
    for handle in handles:
        handle.remove()
    full = out.layout.length
    assert rows == [full] * layer + [full - 2 * (PATCHES - 4)] * (4 - layer)


@pytest.mark.parametrize(
    ('options', 'name'),
    [({'keep': PATCHES + 1}, 'keep'), ({'layer': 4}, 'layer'), ({'redraw': 'never'}, 'redraw')],
)
def test_impossible_options_are_refused(options, name):
    with pytest.raises(ValueError, match=f'option {name}'):
        make_selector('random', CONFIG, **options)
