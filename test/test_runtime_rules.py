# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Cuts that are decided within recordings: how many recordings a pass is, and what it reads."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from rig import deep_model, moves
from test_runtime_static import Arm, HostWaits, assert_same, queries
from tiny import observation, tiny_checkpoint, tiny_model

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import CLASSES, History, Tick, make_selector
from vla_prune_ros.pruning.importance import Importance, most_important, rank_weights
from vla_prune_ros.pruning.specprune_rules import LayerCut
from vla_prune_ros.runtime.engine import GraphEngine, PlainEngine
from vla_prune_ros.vla.rules import Note
from vla_prune_ros.vla.selection import PassPlan, TokenLayout

pytestmark = pytest.mark.usefixtures('stand_in')
SLOW, FAST = moves(9, (0, 0, -0.1)), moves(9, (0.8, 0, 0))
MOTIONS = {'coarse': FAST, 'fine': SLOW}


@pytest.fixture(scope='module')
def model():
    return tiny_model(3)


@pytest.fixture(scope='module')
def deep():
    return deep_model()


class Counted:
    """A recorded arm beside a plain one; says of each pass how it ran."""

    def __init__(self, net, **options):
        self.plain, self.recorded = (
            Arm(engine(net), net.config, 'specprune', options)
            for engine in (PlainEngine, GraphEngine)
        )

    def step(self, query, actions):
        """Returns recordings that were run, and reads between them."""
        for arm in (self.plain, self.recorded):
            arm.history.record_executed(actions)
        there = torch.from_numpy(query[0]), *query[1:]
        stages = self.recorded.engine.stages
        before = stages.replays + stages.captures
        with HostWaits() as waits:
            found = self.recorded.step(*there)
        ran, captured = stages.replays + stages.captures - before, stages.said
        assert stages.fallbacks == 0, stages.last_fallback
        assert_same(self.plain.step(*query), found)
        stats = self.recorded.method.stats()
        assert [*stats.items()] == [*self.plain.method.stats().items()]
        return stats, ran, None if captured else waits.count


@pytest.mark.parametrize(
    ('net', 'options'),
    [
        ('model', {'layer_cuts': False}),
        ('model', {'global_merge': 'mean'}),
        ('deep', {}),  # four cuts behind the first
    ],
)
@pytest.mark.parametrize(('motion', 'wanted'), [('coarse', (1, 0)), ('fine', (2, 1))])
def test_coarse_motion_is_one_recording_and_fine_motion_two_with_a_read(
    request, net, motion, wanted, options
):
    net = request.getfixturevalue(net)
    arms, seen = Counted(net, **options), []
    for query in queries(net.config, 8):  # the count of a bucket comes twice
        stats, ran, waits = arms.step(query, MOTIONS[motion])
        if not stats['dense']:
            assert stats['motion'] == motion
            assert ran == wanted[0]
            seen += [] if waits is None else [waits]
    assert seen and {*seen} == {wanted[1]}


@pytest.mark.parametrize('share', CLASSES)
def test_a_budget_of_half_of_the_tokens_or_less_is_one_recording(model, share):
    arms = Counted(model, budget=share, alpha=50.0)
    for query in queries(model.config, 4):
        stats, ran, _ = arms.step(query, SLOW)
        assert ran == 1 or (share > 0.5 and not stats['dense'] and ran == 2)


@pytest.mark.parametrize(
    'options',
    [{'use_local': False}, {'use_global': False}, {'use_dynamic': False}, {'alpha': 6.0},
     {'min_tokens': 512}, {'confidence_weighting': False}, {'cut_share': 0.9}],
)  # fmt: skip
def test_switches_and_shares_are_the_same_on_the_device(model, options):
    arms = Counted(model, **options)
    for i, query in enumerate(queries(model.config, 6, lengths=(12, 12, 30))):
        arms.step(query, (FAST, SLOW)[i % 2])


def test_no_attention_matrix_leaves_a_recording(deep):
    """At the published size those of `specprune` were up to 4 MB of each scored layer."""
    arms = Counted(deep)
    for i, query in enumerate(queries(deep.config, 5)):
        arms.step(query, (FAST, SLOW)[i % 2])
    stages = arms.recorded.engine.stages
    layout = deep.config.layout(2, 12)
    assert len(stages) >= 4  # dense, coarse, and fine before and behind the read
    chunk = deep.config.chunk_len * deep.config.action_dim
    states = deep.config.n_placeholders * deep.config.llama.hidden_size
    for graph in stages._graphs.values():
        scores = [t for t in graph.outputs if t.numel() not in (chunk, states)]
        assert all(t.numel() <= layout.n_visual for t in scores)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_after_warm_up_every_motion_budget_and_prompt_is_replayed(tmp_path):
    directory = tiny_checkpoint(tmp_path, seed=2)
    recorded, plain = (
        VLAPolicy.from_pretrained(directory, 'specprune', runtime=name)
        for name in ('graphs', 'plain')
    )
    recorded.warm_up(budgets=(0.75,))
    before, stamp, seen = recorded.runtime_stats(), 0.0, set()
    one = recorded.processor.prompt('pick ')[0].shape[1]
    most = recorded._engine._space.prompt_capacity - one + 1
    for words, budget in product((1, most // 2, most), (0.0, 0.75)):
        for policy in (recorded, plain):
            policy.reset()
            policy.set_budget(budget)
        for seed, actions in enumerate((FAST, FAST, SLOW, SLOW, FAST)):
            stamp += 0.4
            o = replace(observation(seed), stamp=stamp, instruction='pick ' * words)
            ours, theirs = (policy.step(o) for policy in (recorded, plain))
            np.testing.assert_array_equal(ours.kept, theirs.kept)
            np.testing.assert_allclose(ours.actions, theirs.actions, rtol=0, atol=1e-4)
            assert {k: ours.stats[k] for k in theirs.stats} == theirs.stats
            assert ours.dense == theirs.dense
            assert ours.stats['runtime'] == 'replay', (words, budget, ours.stats['motion'])
            seen.add((ours.stats['motion'], words, budget))
            for policy in (recorded, plain):
                policy.record_executed(actions)
    after = recorded.runtime_stats()
    assert len(seen) == 2 * 3 * 2
    assert (after['captures'], after['evicted'], after['fallbacks']) == (before['captures'], 0, 0)


def test_options_that_change_the_shape_of_the_memory_do_not_meet(model):
    """Two instances on one engine in turn: each recording reads the memory of its own shape."""
    plain, recorded = PlainEngine(model), GraphEngine(model)
    arms = [
        [Arm(engine, model.config, 'specprune', {'global_layers': layers}) for engine in
         (plain, recorded)]
        for layers in ('14,31', '31', '20,25,31')
    ]  # fmt: skip
    for i, query in enumerate(queries(model.config, 15)):
        for one in arms[i % 3]:
            one.history.record_executed(FAST)
        assert_same(*(one.step(*query) for one in arms[i % 3]))
    assert recorded.stats()['fallbacks'] == 0


def test_a_read_out_that_reaches_the_visual_tokens_knows_how_many_there_are(model):
    arms = [Arm(e(model), model.config, 'specprune', {'alpha': 6.0}) for e in
            (PlainEngine, GraphEngine)]  # fmt: skip
    for query in queries(model.config, 3, lengths=(4,)):
        assert_same(*(arm.step(*query, readout_start=-75) for arm in arms))


# -- rules alone -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Every:
    """Keeps all tokens and promises a few."""

    exact = False
    leaves: tuple[Note, ...] = ()

    def most(self, before):
        return 3

    def choose(self, notes, scores, live):
        return live, {}


class Ruled:
    """Cuts by a rule where rules act, else as the rule would."""

    def __init__(self, **plan):
        self.plan = PassPlan(frozenset({1}), **plan)

    def begin(self, layout, embeddings):
        return self.plan

    def select(self, point, tokens):
        return tokens.ids

    def end(self, tokens):
        pass


def test_a_rule_that_leaves_more_than_it_promised_is_found(model):
    with pytest.raises(ValueError, match='left 32 visual tokens and promised 3'):
        PlainEngine(model)(*next(queries(model.config, 1)), Ruled(rules={1: Every()}))


@pytest.mark.parametrize(
    ('plan', 'text'),
    [({'rules': {2: Every()}}, 'all cut points or none'), ({'counted': {1: None}}, 'no rule')],
)
def test_plans_that_do_not_go_together_are_refused(model, plan, text):
    with pytest.raises(ValueError, match=text):
        PlainEngine(model)(*next(queries(model.config, 1)), Ruled(**plan))


def test_numbers_on_the_device_give_the_same_bits_as_on_the_host():
    weighing = Importance(0.2, 1e-6, 5.3, False)
    for times, share, floor in ((1, 0.1, 60), (3, 0.1, 7), (2, 0.9, 0), (1, 0.3, 600)):
        cut = LayerCut(5, 2, 512, times, share, floor, weighing)
        found = torch.stack([cut._left(torch.tensor(n)) for n in range(513)])
        assert found.tolist() == [cut.most(n) for n in range(513)]
        assert found.diff().min() >= 0  # so what follows a capacity holds what follows a count
    g = torch.Generator().manual_seed(0)
    for n in (1, 2, 3, 100, 511, 512):
        scores = torch.rand(512, generator=g).masked_fill_(torch.arange(512) >= n, -torch.inf)
        scores = scores[torch.randperm(512, generator=g)]
        theirs, ours = (rank_weights(scores, k, 5.3) for k in (n, torch.tensor(n)))
        assert torch.equal(ours, theirs)
        live = ~scores.isneginf()
        marked = [most_important(ours, live, k) for k in (n // 2, torch.tensor(n // 2))]
        assert torch.equal(*marked) and int(marked[0].sum()) == n // 2
        assert not bool((marked[0] & ~live).any())


def test_the_published_budgets_bound_what_each_cut_leaves():
    """204 of 512 tokens in coarse motion, 342 in fine; then 10 % less at each further cut."""
    config = tiny_model().config
    published = replace(
        config,
        featurizer=replace(config.featurizer, image_size=224),
        fused_featurizer=replace(config.fused_featurizer, image_size=224),
        llama=replace(config.llama, n_layers=32),
    )
    selector, layout = make_selector('specprune', published), TokenLayout(2, 256, 30, 56)
    history, frames = History(), np.zeros((2, 224, 224, 3), np.uint8)
    counts = {}
    for motion in ('dense', 'coarse', 'fine'):
        if motion != 'dense':
            history.record_executed(MOTIONS[motion])
        selector.observe(Tick(frames, 3, history))
        plan = selector.begin(layout, torch.zeros(layout.length, 1))
        if motion == 'dense':
            selector._memory.deep = torch.zeros(2, 2, 256)
            selector._memory.dropped = torch.zeros(2, 256, dtype=torch.bool)
        history.close_query(frames)
        most, counts[motion] = layout.n_visual, []
        for point in sorted(plan.rules):
            most = plan.rules[point].most(most)
            counts[motion].append(most)
        assert [*plan.counted] == ([2] if motion == 'fine' else [])
    assert counts == {'dense': [], 'coarse': [204, 184, 166, 150, 135],
                      'fine': [342, 308, 278, 251, 226]}  # fmt: skip
