# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SpecPrune: what each part keeps, budgets, reference frame, layers of models of any depth."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import SIZES, Rig, deep_config, deep_model, frames, model, moves, visual
from tiny import tiny_config

from vla_prune_ros.pruning import History, make_selector
from vla_prune_ros.pruning.specprune_options import budgets
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.selection import TokenLayout

ALL = {'alpha': 1.0, 'k_local': 256, 'k_global': 256, 'k_dynamic': 256, 'layer_cuts': False}
SLOW, FAST = moves(8, (0, 0, -0.1)), moves(8, (0.8, 0, 0))


@pytest.fixture(scope='module')
def deep():
    return deep_model()


@pytest.mark.parametrize('views', [1, 2])
@pytest.mark.parametrize('size', SIZES)
def test_first_query_is_dense_and_the_second_prunes(size, views):
    rig = Rig(model(size), 'specprune', views)
    out, dense = rig.tick(0), rig.dense(0)
    assert torch.equal(out.actions, dense.actions) and torch.equal(out.kept, dense.kept)
    assert rig.selector.stats()['dense'] is True
    out = rig.tick(1, FAST)
    assert len(out.kept) < out.layout.n_visual
    assert rig.selector.stats()['dense'] is False


@pytest.mark.parametrize('views', [1, 2])
@pytest.mark.parametrize('size', SIZES)
def test_budgets_of_all_patches_equal_dense_bit_for_bit(size, views):
    rig = Rig(model(size), 'specprune', views, **ALL)
    for seed in range(3):
        out, dense = rig.tick(seed, SLOW), rig.dense(seed)
        assert torch.equal(out.readout, dense.readout)
        assert torch.equal(out.actions, dense.actions)
    assert rig.trace.cuts[2] == [*range(out.layout.length)]


def test_reset_forgets_the_scores_and_the_mode():
    rig = Rig(model(SIZES[0]), 'specprune')
    rig.tick(0)
    rig.tick(1, SLOW)
    assert rig.selector.stats()['motion'] == 'fine'
    assert rig.history.slots['specprune'].deep is not None
    rig.reset()
    assert rig.history.slots == {} and rig.selector.stats() == {}
    out = rig.tick(2)
    assert len(out.kept) == out.layout.n_visual
    assert rig.selector.stats()['motion'] == 'coarse'


def test_repeated_frame_has_no_changed_patches():
    rig = Rig(model(SIZES[0]), 'specprune', tau=1.0)
    picture = frames(rig.model.config, 0)
    rig.tick(images=picture)
    rig.tick(images=picture.copy(), actions=FAST)
    assert rig.selector.stats()['dynamic'] == 0
    picture[1, 20:26, 3:9] ^= 255
    rig.tick(images=picture, actions=FAST)
    assert rig.selector.stats()['dynamic'] == 1


def test_changed_patch_is_kept_where_it_is():
    rig = Rig(model(SIZES[0]), 'specprune', use_local=False, use_global=False, layer_cuts=False)
    picture = frames(rig.model.config, 0)
    rig.tick(images=picture)
    picture = picture.copy()
    picture[1, 14:28, 42:56] ^= 255  # row 1, column 3 of the second view
    rig.tick(images=picture, actions=FAST)
    assert visual(rig, 2) == {1 + 16 + 4 + 3}


@pytest.mark.parametrize('value', [True, False])
def test_frames_between_queries_are_wanted_for_changes_only(value):
    selector = make_selector('specprune', tiny_config(), use_dynamic=value)
    assert selector.every_frame is value


def test_frames_between_queries_are_the_reference_when_the_rule_says_so():
    """The patch changed within the last 3 steps only; with speed 8 the frame is 1 to 3 back."""
    options = {'use_local': False, 'use_global': False, 'layer_cuts': False}
    changes = {}
    for clamp in (True, False):
        rig = Rig(model(SIZES[0]), 'specprune', clamp_to_last_query=clamp, **options)
        old = frames(rig.model.config, 0)
        rig.tick(images=old)
        new = old.copy()
        new[0, :14, :14] ^= 255
        for step in range(1, 9):
            rig.history.record_executed(moves(1, (1.0, 0, 0)))
            if step < 8:
                rig.history.observe((old if step < 5 else new).copy())
        rig.tick(images=new)
        stats = rig.selector.stats()
        changes[clamp] = (stats['dynamic'], stats['reference_distance'])
    assert changes == {True: (1, 8), False: (0, 3)}


@pytest.mark.parametrize(
    ('speed', 'steps'), [(0.0, 11), (1.5, 9), (2.0, 9), (3.0, 8), (3.1, 7), (9.0, 2), (40.0, 1)]
)
def test_faster_motion_means_a_nearer_reference(speed, steps):
    selector = make_selector('specprune', tiny_config(), clamp_to_last_query=False)
    history = History()
    history.record_executed(moves(4, (0, speed / 4, 0)))
    history.record_executed(moves(1, (0, 0, 0), (3, 3, 3)))
    assert selector.wanted_distance(history) == steps


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(st.integers(0, 24), st.floats(-2, 2), st.booleans()), min_size=1, max_size=8
    ),
    st.booleans(),
)
def test_reference_is_at_least_one_step_old_and_within_the_buffer(queries, clamp):
    selector = make_selector('specprune', tiny_config(), clamp_to_last_query=clamp)
    history, picture = History(), np.zeros((1, 2, 2, 3), np.uint8)
    history.close_query(picture)
    for steps, dx, observe in queries:
        for _ in range(steps):
            history.record_executed(moves(1, (dx, 0, 0)))
            if observe:
                history.observe(picture)
        wanted = selector.wanted_distance(history)
        since = history.step - history.last_query_step
        assert wanted >= max(1, since if clamp else 1)
        frame = history.previous(wanted)
        assert frame in history.frames
        if steps:
            oldest = history.frames[0].step
            assert history.step - frame.step >= min(wanted, history.step - oldest) >= 1
        history.close_query(picture)


@pytest.mark.parametrize('views', [1, 2])
@pytest.mark.parametrize('size', SIZES)
def test_planted_tokens_survive_compaction_under_their_own_ids(size, views):
    """Words attend to planted tokens; layers leave the states as they are, so rows show ids."""
    config = model(size).config
    decoder = OpenVLAOFT(config).decoder.eval()
    for layer in decoder.layers:
        for name in ('q_proj', 'k_proj'):
            torch.nn.init.eye_(getattr(layer.self_attn, name).weight)
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    patches, width, head = config.patches_per_view, config.llama.hidden_size, config.llama.head_dim
    layout = TokenLayout(views, patches, 12, 56)
    slowest = torch.arange(width) % (head // 2) == head // 2 - 1  # hardly turned by positions
    rng = np.random.default_rng(0)
    options = {'alpha': 1.0, 'use_dynamic': False, 'layer_cuts': False}
    options |= dict.fromkeys(('k_local', 'k_global'), 2 * 256 // patches + 1)  # 2 per view
    selector = make_selector('specprune', config, **options)
    planted = []
    for _ in range(4):
        torch.manual_seed(len(planted))
        states = torch.randn(layout.length, width).masked_fill(slowest, 0.0)
        now = {i for v in range(views) for i in rng.choice([*layout.view(v)], 2, replace=False)}
        states[[*now, *layout.text]] = 4.0 * slowest.float()
        with torch.inference_mode():
            out = decoder(states[None], selector=selector, layout=layout)
        planted.append(now)
        visual = set(out.ids.tolist()) & {*layout.visual}
        assert visual == ({*layout.visual} if len(planted) == 1 else planted[-2] | now)
        assert torch.equal(out.hidden[0], states[out.ids])


@pytest.mark.parametrize('seed', range(3))
def test_fine_keeps_everything_that_coarse_keeps(seed):
    kept = {}
    for name, fine in (('coarse', False), ('fine', True)):
        rig = Rig(model(SIZES[1]), 'specprune', layer_cuts=False)
        rig.tick(seed)
        rig.tick(seed + 10, SLOW if fine else moves(8, (0, 0, 0.1)))
        assert rig.selector.stats()['motion'] == name
        kept[name] = visual(rig, 2)
    assert kept['coarse'] < kept['fine']


def test_published_budgets():
    opt = make_selector('specprune', tiny_config()).opt
    assert vars(budgets(opt, 256, fine=False)) == {'recalled': 24, 'local': 19, 'changed': 16}
    assert vars(budgets(opt, 256, fine=True)) == {'recalled': 40, 'local': 32, 'changed': 27}
    assert vars(budgets(opt, 64, fine=False)) == {'recalled': 6, 'local': 5, 'changed': 4}


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 80), st.integers(0, 80), st.integers(0, 80), st.floats(0.1, 2), st.booleans()
)
def test_each_view_keeps_at_most_the_sum_of_its_budgets(local, recalled, changed, alpha, fine):
    rig = Rig(
        model(SIZES[1]), 'specprune', alpha=alpha, k_local=local, k_global=recalled,
        k_dynamic=changed,
    )  # fmt: skip
    rig.tick(0)
    layout = rig.tick(1, SLOW if fine else FAST).layout
    size = budgets(rig.selector.opt, 25, fine)
    for view in range(2):
        kept = visual(rig, 2) & {*layout.view(view)}
        assert len(kept) <= 2 * size.local + 2 * size.recalled + size.changed
        assert len(kept) >= max(vars(size).values())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 2000), st.floats(0.01, 3), st.floats(1, 3), st.integers(0, 400))
def test_fine_budgets_are_never_below_coarse_ones(patches, alpha, factor, base):
    opt = make_selector(
        'specprune', tiny_config(), alpha=alpha, fine_factor=factor, k_local=base
    ).opt
    coarse, fine = (vars(budgets(opt, patches, f)) for f in (False, True))
    assert all(coarse[k] <= fine[k] <= patches for k in coarse)
    assert (coarse['local'] == 0) == (base == 0)


def test_layers_of_a_model_of_published_depth_are_those_of_the_paper(deep):
    rig = Rig(deep, 'specprune')
    rig.tick(0)
    assert rig.trace.plan.points == set() and rig.trace.plan.scores.keys() == {14, 31}
    rig.tick(1, FAST)
    plan = rig.trace.plan
    assert plan.points == {2, 6, 11, 16, 21}
    assert plan.scores.keys() == {0, 1, 5, 10, 14, 15, 20, 31}
    assert {k for k, r in plan.scores.items() if r.entropy} == {0, 1, 5, 10, 15, 20}


@pytest.mark.parametrize('depth', [2, 3, 4, 5, 8])
def test_layers_of_shallow_models_come_after_the_first_cut(depth):
    selector = make_selector('specprune', deep_config(depth))
    assert selector.full_layers == min(2, depth - 1)
    assert all(selector.full_layers <= k < depth for k in selector.global_layers)
    assert selector.global_layers[-1] == depth - 1
    assert all(selector.full_layers <= k < depth - 1 for k in selector.cuts)
    assert sum(selector.cuts.values()) == (4 if depth > 3 else 0)


def test_each_cut_takes_its_share_down_to_the_floor(deep):
    rig = Rig(deep, 'specprune', use_dynamic=False, min_tokens=40)  # 40 of 512: 6 of 72
    rig.tick(0)
    rig.tick(1, FAST)
    counts = [len(visual(rig, point)) for point in (2, 6, 11, 16, 21)]
    for before, after in pairwise(counts):
        assert before - after == before // 10 > 0
    rig = Rig(deep, 'specprune', use_dynamic=False, min_tokens=512)
    rig.tick(0)
    rig.tick(1, FAST)
    assert len({len(visual(rig, point)) for point in (2, 6, 11, 16, 21)}) == 1
