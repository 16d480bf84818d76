# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One notion of a budget: every mode with a knob holds it, at every size, and while it changes."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import SIZES, Rig, deep_config, frames, model, moves
from tiny import observation, tiny_checkpoint

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import CLASSES, MODES, make_selector
from vla_prune_ros.pruning.budget import (
    bucket_step,
    budget_class,
    budget_tokens,
    camera_quotas,
)
from vla_prune_ros.pruning.specprune_options import Budgets, fitting
from vla_prune_ros.runtime.engine import GraphEngine
from vla_prune_ros.runtime.workspace import bucket_counts
from vla_prune_ros.vla.selection import TokenLayout

pytestmark = pytest.mark.filterwarnings('ignore:mode (lightvla|efficient_vla)')
KNOBS = [mode for mode, method in MODES.items() if method.budget_kind != 'none']
# Options under which a mode may hold its budget in another way than by default.
SHAPES = {
    'specprune': [
        {},
        {'global_merge': 'mean'},
        {'use_local': False},
        {'use_global': False, 'layer_cuts': False},
        {'full_layers': 3, 'k_dynamic': 200},
    ],
    'vla_cache': [{}, {'preset': 'paper'}, {'preset': 'released_oft'}, {'stages': '1:0.1,3:0.4'}],
    'efficient_vla': [{}, {'per_camera': False}, {'quota': 0.3}, {'preset': 'paper'}],
    'fastv': [{}, {'keep': 3, 'rows': 'all'}],
    'random': [
        {},
        {'redraw': 'episode', 'layer': 1},
        {'matched_to': 'specprune'},
        {'matched_to': 'vla_cache'},
    ],
    'grid': [{}, {'phase': 'rotate'}, {'form': 'square', 'phase': 'rotate', 'layer': 2}],
}


# -- classes -------------------------------------------------------------------------------------
def test_classes_are_multiples_of_32_rows_at_the_published_sizes():
    tokens = [budget_tokens(share, 512) for share in CLASSES]
    assert len(tokens) == 8 and tokens[-1] == 512
    assert all(n % 32 == 0 for n in tokens)
    assert tokens == sorted({*tokens})


@given(views=st.integers(1, 4), side=st.integers(4, 20), share=st.floats(0.001, 1.0))
def test_a_budget_is_a_bucket_and_never_above_the_share_it_was_asked_for(views, side, share):
    n = views * side * side
    tokens = budget_tokens(share, n)
    assert 1 <= tokens <= n
    assert tokens in bucket_counts(TokenLayout(views, side * side, 12, 56))
    assert tokens <= share * n + 1e-6 or budget_class(share) == CLASSES[0]
    assert share < 1.0 or tokens == n
    quotas = camera_quotas(tokens, views, side * side)
    assert sum(quotas) == tokens and max(quotas) - min(quotas) <= 1


def test_few_tokens_make_classes_of_one_row_or_none_at_all():
    assert bucket_step(9) == 1
    assert [budget_tokens(share, 9) for share in CLASSES] == [1, 2, 3, 4, 6, 8, 9, 9]


# -- the knob ------------------------------------------------------------------------------------
@pytest.mark.parametrize('mode', MODES)
def test_a_mode_says_what_it_can_hold_and_has_the_option_if_it_can(mode):
    selector = make_selector(mode, model(SIZES[0]).config)
    layout = TokenLayout(2, 16, 12, 56)
    assert selector.budget_kind in ('exact', 'bound', 'none')
    assert ('budget' in selector.values) == (selector.budget_kind != 'none')
    assert (selector.budget, selector.most_tokens(layout)) == (0.0, 32)
    if mode not in KNOBS:
        with pytest.raises(ValueError, match=f'{mode!r} has no budget'):
            selector.set_budget(0.5)
        return
    selector.set_budget(0.5)
    assert (selector.budget, selector.values['budget']) == (0.5, 0.5)
    assert selector.most_tokens(layout) == 16
    for wrong in (-0.1, 1.01, float('nan'), '0.5'):
        with pytest.raises(ValueError, match='budget'):
            selector.set_budget(wrong)
        with pytest.raises(ValueError, match='budget'):
            make_selector(mode, model(SIZES[0]).config, budget=wrong)
    assert selector.budget == 0.5
    assert make_selector(mode, model(SIZES[0]).config, budget=0.25).most_tokens(layout) == 8


def test_options_that_leave_no_room_for_a_budget_are_refused_with_it():
    config = model(SIZES[0]).config
    cut_at_the_end = make_selector('efficient_vla', config, select_after=4)
    reuse_of_nothing = make_selector('vla_cache', config, stages='1:0.0')
    copy_of_none = make_selector('random', config, matched_to='none')
    for selector in (cut_at_the_end, reuse_of_nothing, copy_of_none):
        assert selector.budget_kind == 'none'
        with pytest.raises(ValueError, match='has no budget'):
            selector.set_budget(0.5)
    with pytest.raises(ValueError, match='behind the last layer'):
        make_selector('efficient_vla', config, select_after=4, budget=0.5)
    with pytest.raises(ValueError, match='no stage'):
        make_selector('vla_cache', config, stages='1:0.0', budget=0.5)
    with pytest.raises(ValueError, match='has no budget'):
        make_selector('random', config, matched_to='none', budget=0.5)


def held(selector, out, queries):
    """Whether the tokens that entered the last layer are what the budget in force says."""
    count, most = len(out.kept), selector.most_tokens(out.layout)
    if queries < selector.dense_queries:
        return count == out.layout.n_visual
    return count == most if selector.budget_kind == 'exact' else count <= most


@pytest.mark.parametrize('mode', KNOBS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_mode_with_a_knob_holds_its_budget_at_any_size_view_and_content(mode, data):
    size, views = data.draw(st.sampled_from(SIZES)), data.draw(st.integers(1, 3))
    rig = Rig(model(size), mode, views, **data.draw(st.sampled_from(SHAPES.get(mode, [{}]))))
    selector, picture = rig.selector, frames(rig.model.config, 0, views)
    for query in range(data.draw(st.integers(2, 6))):
        share = data.draw(st.floats(0.01, 1.0))
        selector.set_budget(share)
        if data.draw(st.booleans()):
            picture = picture.copy()
            picture[query % views, : 14 * query, :28] ^= 170
        slots = {**rig.history.slots}
        fast = (0.7, 0, 0) if data.draw(st.booleans()) else (0, 0, -0.1)
        out = rig.tick(images=picture, actions=moves(8, fast))
        assert held(selector, out, query), (share, len(out.kept))
        assert {*slots} <= {*rig.history.slots}  # nothing was forgotten
    rig.reset()
    assert held(selector, rig.tick(0), 0)


@pytest.mark.parametrize('mode', [mode for mode in KNOBS if mode != 'specprune'])
def test_a_full_budget_equals_dense_bit_for_bit(mode):
    options = {'skip': 0} if mode == 'efficient_vla' else {}
    rig = Rig(model(SIZES[1]), mode, 3, budget=1.0, **options)
    for seed in range(3):
        out, dense = rig.tick(seed, moves(8)), rig.dense(seed)
        assert torch.equal(out.actions, dense.actions)


@pytest.mark.parametrize('mode', KNOBS)
def test_a_budget_of_zero_is_no_budget(mode):
    own, given = (Rig(model(SIZES[0]), mode, **o) for o in ({}, {'budget': 0.25}))
    given.selector.set_budget(0.0)
    for seed in range(3):
        a, b = own.tick(seed, moves(4)), given.tick(seed, moves(4))
        assert torch.equal(a.kept, b.kept)
        assert torch.equal(a.actions, b.actions)
    assert own.selector.note == given.selector.note


@pytest.mark.parametrize('mode', [mode for mode in KNOBS if mode != 'random'])
def test_a_random_control_of_the_same_mode_has_the_same_budget(mode):
    own = Rig(model(SIZES[0]), mode)
    matched = Rig(model(SIZES[0]), 'random', matched_to=mode)
    assert matched.selector.budget_kind == own.selector.budget_kind
    for query, share in enumerate((0.5, 0.125, 1.0, 0.25)):
        for rig in (own, matched):
            rig.selector.set_budget(share)
        a, b = (rig.tick(query, moves(4)) for rig in (own, matched))
        assert len(a.kept) == len(b.kept)
        assert matched.selector.most_tokens(b.layout) == own.selector.most_tokens(a.layout)


# -- what a budget means in a mode ---------------------------------------------------------------
@given(
    most=st.integers(0, 300),
    lists=st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)),
    patches=st.integers(16, 256),
)
def test_specprune_takes_the_largest_budgets_whose_union_fits(most, lists, patches):
    options = make_selector('specprune', deep_config()).opt
    lists = Budgets(*lists)

    def total(sets):
        return (
            sets.local * lists.local
            + sets.recalled * lists.recalled
            + sets.changed * lists.changed
        )

    sets = fitting(options, patches, most, lists)
    least = lists.local + lists.recalled + lists.changed
    assert total(sets) <= max(most, least)
    # In proportion, up to rounding and a full view.
    if max(sets.local, sets.recalled, sets.changed) < patches and most > 3 * least:
        factor = sets.recalled / options.k_global
        assert abs(sets.local - factor * options.k_local) <= 2
        assert abs(sets.changed - factor * options.k_dynamic) <= 2
        assert total(sets) > most - 2 * least - 1


def test_specprune_at_the_published_size_uses_what_the_budget_gives():
    options, lists = make_selector('specprune', deep_config()).opt, Budgets(2, 2, 1)
    for share in CLASSES[:-1]:
        per_view = budget_tokens(share, 512) // 2
        sets = fitting(options, 256, per_view, lists)
        bound = 2 * sets.local + 2 * sets.recalled + sets.changed
        assert per_view - 5 < bound <= per_view


def test_vla_cache_within_a_budget_reuses_what_changed_least():
    rig = Rig(model(SIZES[0]), 'vla_cache', relevant_k=0, static_k=16)
    picture = frames(rig.model.config, 0)
    rig.tick(images=picture)
    changed = picture.copy()
    changed[0, :28, :28] ^= 170  # patches 0, 1, 4, 5 of the first view
    changed[1, 42:, 42:] ^= 170  # patch 15 of the second
    rig.selector.set_budget(0.25)  # 8 of 32
    out = rig.tick(images=changed)
    assert {1, 2, 5, 6, 32} <= {*out.kept.tolist()}
    assert len(out.kept) == 8
    assert 'not VLA-Cache' in rig.selector.note
    rig.selector.set_budget(0.0)
    assert rig.selector.note == ''


def test_lightvla_says_that_a_budget_is_not_its_rule():
    selector = make_selector('lightvla', model(SIZES[0]).config, budget=0.25)
    assert 'no budget' in selector.note
    selector.set_budget(0.0)
    assert 'no budget' not in selector.note


@pytest.mark.parametrize(('count', 'wanted'), [(4, [0, 4, 8, 12]), (3, [0, 5, 10]), (1, [0])])
def test_a_grid_within_a_budget_is_spread_evenly(count, wanted):
    grid = make_selector('grid', model(SIZES[0]).config)
    assert grid._pattern(16, count).tolist() == wanted


# -- in the policy -------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('budget'))


def test_a_policy_changes_the_budget_without_forgetting(directory):
    policy = VLAPolicy.from_pretrained(directory, pruning='specprune')
    assert policy.budget_kind == 'bound'
    policy.step(observation(0))
    policy.set_budget(0.25)
    chunk = policy.step(observation(0, 0.4))
    assert (chunk.reset_reason, chunk.stats['dense']) == (None, False)
    assert (chunk.stats['budget'], policy.settings.options['budget']) == (0.25, 0.25)
    assert len(chunk.kept) <= 8
    policy.set_pruning('specprune', budget=0.5)  # nothing else changed
    assert policy.step(observation(0, 0.8)).reset_reason is None
    policy.set_pruning('specprune', budget=0.5, alpha=1.0)
    assert policy.step(observation(0, 1.2)).reset_reason == 'mode'
    with pytest.raises(ValueError, match='above'):
        policy.set_budget(1.5)
    assert policy.settings.options['budget'] == 0.5
    policy.set_pruning('none')
    with pytest.raises(ValueError, match='no budget'):
        policy.set_budget(0.5)


@pytest.mark.usefixtures('stand_in')
@pytest.mark.parametrize('mode', KNOBS)
def test_budgets_that_were_warmed_up_for_record_nothing_more(directory, mode):
    policy = VLAPolicy.from_pretrained(directory, pruning=mode, runtime='graphs')
    assert isinstance(policy._engine, GraphEngine)
    instruction = observation(0).instruction
    policy.warm_up(instruction=instruction, budgets=CLASSES)
    policy.step(observation(0))
    before = policy.runtime_stats()['captures']
    for tick, share in enumerate(np.random.default_rng(0).choice(CLASSES, 24)):
        policy.set_budget(float(share))
        chunk = policy.step(observation(tick % 3, 0.4 * tick))
        policy.record_executed(chunk.actions[:4])
    assert policy.runtime_stats()['captures'] == before
