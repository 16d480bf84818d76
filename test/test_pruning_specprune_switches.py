# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SpecPrune: each ablation switch changes what it says and nothing else; weights."""

import numpy as np
import pytest
import torch
from rig import SIZES, Rig, deep_model, model, moves, visual
from tiny import tiny_config

from vla_prune_ros.pruning import make_selector
from vla_prune_ros.pruning.importance import Importance, most_important, rank_weights
from vla_prune_ros.pruning.scores import visual_ids
from vla_prune_ros.vla.selection import LayerScores

SLOW, FAST = moves(8, (0, 0, -0.1)), moves(8, (0.8, 0, 0))


@pytest.fixture(scope='module')
def deep():
    return deep_model()


def episode(net, queries=3, **options):
    """An episode of slow motion up to a query."""
    rig = Rig(net, 'specprune', **options)
    for seed in range(queries):
        rig.tick(seed, SLOW if seed else None)
    return rig


@pytest.mark.parametrize(
    ('switch', 'empty', 'others'),
    [
        ('use_global', 'global', ('local', 'dynamic')),
        ('use_dynamic', 'dynamic', ('local', 'global')),
        ('use_local', 'local', ('dynamic', 'global')),
    ],
)
def test_switch_of_a_set_empties_it_and_leaves_the_others(deep, switch, empty, others):
    # Up to the second query the state is still the same.
    rigs = [episode(deep, 2, **{switch: value}) for value in (True, False)]
    full, less = (rig.selector.stats() for rig in rigs)
    kept, kept_less = (visual(rig, 2) for rig in rigs)
    assert full[empty] > 0 == less[empty]
    assert [full[k] for k in others] == [less[k] for k in others]
    assert kept_less < kept


def test_without_layer_cuts_only_the_one_cut_is_left(deep):
    full, less = (episode(deep, layer_cuts=value) for value in (True, False))
    assert less.trace.plan.points == {2}
    assert less.trace.plan.scores.keys() == {0, 1, 14, 31}
    second = [episode(deep, 2, layer_cuts=value) for value in (True, False)]
    assert second[0].trace.cuts[2] == second[1].trace.cuts[2]
    assert len(full.trace.at_end) < len(less.trace.at_end)


def test_without_confidence_only_the_choice_of_layer_cuts_changes(deep):
    second = [episode(deep, 2, confidence_weighting=value) for value in (True, False)]
    weighted, plain = (rig.trace for rig in second)
    assert weighted.cuts.keys() == plain.cuts.keys()
    assert weighted.cuts[2] == plain.cuts[2]
    assert [len(c) for c in weighted.cuts.values()] == [len(c) for c in plain.cuts.values()]
    assert weighted.plan.scores.keys() == plain.plan.scores.keys()
    assert not any(r.entropy for r in plain.plan.scores.values())


def test_without_controller_the_mode_stays_coarse():
    on, off = (episode(model(SIZES[1]), controller=value) for value in (True, False))
    assert on.selector.stats()['motion'] == 'fine'
    assert off.selector.stats()['motion'] == 'coarse'
    assert off.selector.stats()['local'] < on.selector.stats()['local']


def test_entropy_weighs_layers_against_each_other():
    """Two layers with opposite order: the one with the lower entropy wins."""

    def layer(values, entropy):
        probs = torch.tensor(values).view(1, 1, -1)
        here = torch.ones(3, dtype=torch.bool)
        return LayerScores(probs, torch.tensor([True]), here, torch.tensor(entropy))

    for confidence, best in ((True, 1), (False, 3)):
        gathered = Importance(0.2, 1e-6, 5.3, confidence)
        values = gathered.after(torch.zeros(3), layer([0.5, 0.2, 0.1], 1.0), 3)
        values = gathered.after(values, layer([0.1, 0.2, 0.5], 3.0), 3)
        marked = most_important(values, torch.ones(3, dtype=torch.bool), 1)
        assert visual_ids(marked).tolist() == [best]


def test_rank_weights_fall_a_hundredfold_and_sum_to_one():
    scores = torch.tensor([0.3, -torch.inf, 0.9, 0.5, 0.1])
    weights = rank_weights(scores, 4, 5.3)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights[1] == 0
    assert weights[2] > weights[3] > weights[0] > weights[4] > 0
    assert (weights[2] / weights[4]).item() == pytest.approx(100, rel=0.01)
    assert rank_weights(torch.tensor([0.7]), 1, 5.3).tolist() == [1.0]


def test_mean_of_the_deep_layers_keeps_one_budget_and_union_up_to_two(deep):
    sizes = {}
    for merge in ('union', 'mean'):
        rig = Rig(deep, 'specprune', global_merge=merge)
        rig.tick(0)
        rig.tick(1, FAST)
        sizes[merge] = rig.selector.stats()['global']
    budget = 2 * 3  # two views, 30 * 0.8 * 36 / 256
    assert sizes['mean'] == budget < sizes['union'] <= 2 * budget


@pytest.mark.parametrize(('merge', 'recalled'), [('mean', {5, 40}), ('union', {5, 6, 40, 41})])
def test_token_cut_between_the_deep_layers_keeps_the_score_of_the_first(deep, merge, recalled):
    rig = Rig(
        deep, 'specprune', global_merge=merge, k_global=9, use_local=False, use_dynamic=False
    )  # one token per view and layer
    rig.tick(0)
    scores = rig.history.slots['specprune'].deep = torch.zeros(2, 2, 36)
    for view, patch in ((0, 4), (1, 3)):
        scores[:, view, patch] = torch.tensor([0.9, -torch.inf])
        scores[:, view, patch + 1] = torch.tensor([0.1, 0.3])
    rig.tick(1, FAST)
    assert visual(rig, 2) == recalled


def test_tokens_without_any_deep_score_count_as_dropped(deep):
    rig = Rig(deep, 'specprune')
    rig.tick(0)
    assert not rig.history.slots['specprune'].dropped.any()
    rig.tick(1, FAST)
    dropped = rig.history.slots['specprune'].dropped.flatten()
    scored = {i + 1 for i in range(72) if not dropped[i]}
    assert scored == visual(rig, 11)  # alive at layer 14, though not all of them at layer 31
    assert visual(rig, 21) < scored


def test_dropped_tokens_return_only_by_change_or_first_layers(deep):
    options = {'use_dynamic': False, 'use_local': False, 'layer_cuts': False}
    rig = Rig(deep, 'specprune', **options)
    rig.tick(0)
    rig.tick(1, FAST)
    assert rig.selector.stats()['returned'] == 0
    before = visual(rig, 2)
    rig.tick(2, FAST)
    assert rig.selector.stats()['returned'] == 0
    assert visual(rig, 2) <= before
    rig = episode(deep, layer_cuts=False, use_global=False)
    dropped = rig.history.slots['specprune'].dropped
    kept = visual(rig, 2)
    assert dropped.flatten().nonzero().flatten().add(1).tolist() == sorted({*range(1, 73)} - kept)
    rig.tick(7, SLOW)
    returned = visual(rig, 2) - kept
    assert rig.selector.stats()['returned'] == len(returned) > 0


def test_statistics_agree_with_what_was_cut(deep):
    rig = episode(deep)
    stats = rig.selector.stats()
    assert stats['kept'] == len(visual(rig, 2))
    for view in range(2):
        ids = range(1 + 36 * view, 37 + 36 * view)
        assert stats[f'kept_view_{view}'] == len(visual(rig, 2) & {*ids})
    for layer in (5, 10, 15, 20):
        assert stats[f'kept_after_layer_{layer}'] == len(visual(rig, layer + 1))
    assert stats['reference_distance'] == 16
    assert all(type(v) in (bool, int, float, str) for v in stats.values())


def test_entering_fine_within_a_chunk_asks_for_a_query_only_on_request():
    for requery in (False, True):
        rig = Rig(model(SIZES[0]), 'specprune', requery_on_enter=requery)
        rig.tick(0)
        rig.tick(1, FAST)
        assert not rig.selector.wants_query(rig.history)
        rig.history.record_executed(moves(1, (0.1, 0, 0)))
        assert rig.selector.wants_query(rig.history) is requery
        rig.tick(2)
        assert rig.selector.stats()['motion'] == 'fine'
        assert not rig.selector.wants_query(rig.history)


def test_when_a_query_will_be_wanted_is_known_before_the_actions_are_executed():
    slow, fast = moves(1, (0.1, 0, 0)), moves(1, (0.9, 0, 0))
    for lead in range(6):
        plan = np.concatenate([fast] * lead + [slow] * (6 - lead))
        rig = Rig(model(SIZES[0]), 'specprune', requery_on_enter=True, hold_steps=0)
        rig.tick(0)
        rig.tick(1, FAST)
        said = rig.selector.requery_after(rig.history, plan)
        wanted = 0
        for number, action in enumerate(plan[:-1], start=1):
            rig.history.record_executed(action[None])
            if not wanted and rig.selector.wants_query(rig.history):
                wanted = number
        assert said == wanted
        assert (wanted > 0) is (lead < 5)


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'use_local': False, 'use_global': False, 'use_dynamic': False}, 'use_local'),
        ({'global_layers': '14,x'}, 'global_layers'),
        ({'global_layers': ''}, 'global_layers'),
        ({'cut_layers': '5,32'}, 'cut_layers'),
        ({'leave_rotation': 0.1}, 'leave_rotation'),
        ({'fine_factor': 0.9}, 'fine_factor'),
        ({'global_merge': 'max'}, 'global_merge'),
    ],
)
def test_impossible_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        make_selector('specprune', tiny_config(), **options)
