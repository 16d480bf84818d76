# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever is asked of a policy in whatever order, recorded stages answer as plain torch does."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import observation, tiny_checkpoint, tiny_model

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import CLASSES
from vla_prune_ros.runtime.engine import GraphEngine, PlainEngine
from vla_prune_ros.runtime.workspace import Joined, See, bucket_counts
from vla_prune_ros.vla.choice import Choice
from vla_prune_ros.vla.model import ReadOut
from vla_prune_ros.vla.selection import PassPlan, ScoreRequest, SlotCache, TokenLayout
from vla_prune_ros.vla.space import Stage
from vla_prune_ros.vla.walk import Segment

pytestmark = [
    pytest.mark.filterwarnings('ignore:mode (lightvla|efficient_vla)'),
    pytest.mark.usefixtures('stand_in'),
]
CAMERAS = ('agentview', 'wrist')
PATCHES = 16  # of a view

# -- whole policies ----------------------------------------------------------------------------
MODES = st.one_of(
    st.tuples(st.just('none'), st.just({})),
    st.tuples(
        st.just('random'),
        st.fixed_dictionaries({'keep': st.integers(1, PATCHES), 'layer': st.integers(0, 3)}),
    ),
    st.tuples(st.just('random'), st.just({'matched_to': 'vla_cache'})),
    st.tuples(
        st.just('specprune'),
        st.fixed_dictionaries(
            {'alpha': st.sampled_from([0.1, 0.8, 2.0, 6.0, 50.0]), 'use_dynamic': st.booleans()}
        ),
    ),
    st.tuples(st.just('lightvla'), st.fixed_dictionaries({'keep': st.integers(0, 32)})),
    st.tuples(
        st.just('vla_cache'),
        st.fixed_dictionaries(
            {
                'preset': st.sampled_from(['default', 'paper']),
                'static_k': st.integers(0, PATCHES),
                'relevant_k': st.integers(0, 4),
                'refresh_below': st.just(0.0),
                'stages': st.sampled_from(['', '1:0.1,2:1.0', '3:0.5']),
            }
        ),
    ),
    st.tuples(
        st.just('efficient_vla'),
        st.fixed_dictionaries({'layers': st.sampled_from(['', '2', '3'])}),
    ),
    st.tuples(st.just('fastv'), st.fixed_dictionaries({'keep': st.integers(1, PATCHES)})),
    st.tuples(
        st.just('vla_pruner'),
        st.fixed_dictionaries(
            {'keep': st.floats(0.1, 1.0), 'redundancy': st.booleans(), 'joint': st.booleans()}
        ),
    ),
    st.tuples(
        st.just('scout'),
        st.fixed_dictionaries({'keep': st.floats(0.1, 1.0), 'explore': st.floats(0.0, 1.0)}),
    ),
    st.tuples(st.just('grid'), st.fixed_dictionaries({'stride': st.integers(1, 5)})),
)
TURNS = st.fixed_dictionaries(
    {
        'mode': MODES,
        'words': st.sampled_from(
            [1, 2, 5, 22, 23, 54, 70]
        ),  # edges of classes, and larger buffers
        'views': st.sampled_from([2, 2, 1]),
        'pictures': st.lists(  # with the budget of the query; None: as it is
            st.tuples(st.integers(0, 2), st.sampled_from([None, 0.0, *CLASSES])),
            min_size=1,
            max_size=3,
        ),
        'readout_start': st.sampled_from([None, None, -56, -75]),
    }
)


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    policy = VLAPolicy.from_pretrained(tiny_checkpoint(tmp_path_factory.mktemp('agree'), seed=2))
    return policy.model, policy.processor


def picture(seed, patches):
    """The same scene every time but for a few patches."""
    o, other = observation(0), observation(100 + seed)
    images = {name: image.copy() for name, image in o.images.items()}
    for name in images:
        images[name][:32, : 32 * patches] = other.images[name][:32, : 32 * patches]
    return replace(o, images=images)


def play(loaded, turns):
    """The same through both; chunks must agree one by one."""
    plain, recorded = (
        VLAPolicy(*loaded, cameras=CAMERAS, runtime=name) for name in ('plain', 'graphs')
    )
    stamp = 0.0
    for number, turn in enumerate(turns):
        mode, options = turn['mode']
        if mode == 'lightvla' and turn['views'] == 1:
            options = {'keep': min(options['keep'], PATCHES)}
        for policy in (plain, recorded):
            policy.set_pruning(mode, **options)
            policy.settings = replace(
                policy.settings,
                cameras=CAMERAS[: turn['views']],
                readout_start=turn['readout_start'],
            )
        for patches, budget in turn['pictures']:
            stamp += 0.4
            if budget is not None and recorded.budget_kind != 'none':
                for policy in (plain, recorded):
                    policy.set_budget(budget)
            o = picture(number, patches)
            o = replace(o, stamp=stamp, instruction='pick ' * turn['words'])
            ours, theirs = (policy.step(o) for policy in (recorded, plain))
            np.testing.assert_array_equal(ours.kept, theirs.kept)
            np.testing.assert_allclose(ours.actions, theirs.actions, rtol=0, atol=1e-4)
            for key, value in theirs.stats.items():
                assert ours.stats[key] == value, key
            for policy in (plain, recorded):
                policy.observe(o.images)
                policy.record_executed(ours.actions[:3])
    stats = recorded.runtime_stats()
    assert stats['fallbacks'] == 0, stats['last_fallback']


QUICK = settings(
    deadline=None,
    max_examples=12,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@QUICK
@given(turns=st.lists(TURNS, min_size=2, max_size=6))
def test_chunks_agree_in_any_order_of_modes_budgets_prompts_and_cameras(loaded, turns):
    play(loaded, turns)


@pytest.mark.slow
@settings(QUICK, max_examples=60, derandomize=False)
@given(turns=st.lists(TURNS, min_size=4, max_size=25))
def test_chunks_agree_in_long_runs(loaded, turns):
    play(loaded, turns)


# -- engines alone: every count at every place -------------------------------------------------
class Script:
    """Leaves given numbers of visual tokens at given points, spread over the views."""

    def __init__(self, cuts, repeats=False, cache=None, skip=(), scored=()):
        self.cuts, self.repeats, self.cache, self.skip = cuts, repeats, cache, frozenset(skip)
        self.scored, self.seen = scored, {}

    def begin(self, layout, embeddings):
        scores = {
            layer: ScoreRequest(layout.text, layout.visual, entropy=layer % 2 == 0)
            for layer in self.scored
            if layer not in self.skip
        }
        return PassPlan(frozenset(self.cuts), scores, self.skip, self.cache, self.repeats)

    def select(self, point, tokens):
        live = tokens.ids[(tokens.ids > 0) & (tokens.ids < tokens.layout.proprio)]
        count = min(self.cuts[point], len(live))
        spread = torch.arange(count) * len(live) // max(1, count)
        return tokens.layout.keep(live[spread])

    def end(self, tokens):
        self.seen = {k: s.received().clone() for k, s in tokens.scores.items()}
        self.hidden, self.ids = tokens.hidden.clone(), tokens.ids.clone()


def agree(engines, query, scripts, start=None):
    a, b = (e(*query, s, start) for e, s in zip(engines, scripts, strict=True))
    assert torch.equal(a.kept, b.kept)
    assert torch.equal(a.position_ids, b.position_ids)
    torch.testing.assert_close(a.actions, b.actions, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.readout, b.readout, rtol=0, atol=1e-4)
    if scripts[0] is not None:
        torch.testing.assert_close(scripts[0].hidden, scripts[1].hidden, rtol=0, atol=1e-4)
        for layer, received in scripts[0].seen.items():
            torch.testing.assert_close(scripts[1].seen[layer], received, rtol=0, atol=1e-4)


def query(config, length=12, views=2, seed=0):
    rng = np.random.default_rng(seed)
    size = config.image_size
    frames = rng.integers(0, 256, (views, size, size, 3), dtype=np.uint8)
    ids = torch.from_numpy(rng.integers(4, config.llama.vocab_size, (1, length)))
    return frames, ids, rng.uniform(-1, 1, config.proprio_dim)


def edges(layout):
    """Every bucket filled and just not filled, largest first."""
    most = bucket_counts(layout)
    return sorted({*most, *(n - 1 for n in most[:-1]), *(n + 1 for n in most[1:])}, reverse=True)


@pytest.mark.parametrize('point', [0, 2, 4])
def test_every_edge_of_every_bucket_between_dense_passes(point):
    model = tiny_model(3)
    engines = PlainEngine(model), GraphEngine(model)
    counts = edges(TokenLayout(2, PATCHES, 12, 56))
    assert {32, 31, 30, 29, 1, 0} <= {*counts}
    for turn, count in enumerate(counts):
        for script, length in (({}, 12), (None, 38), ({point: count}, 39), ({point: count}, 38)):
            pair = [None if script is None else Script(script) for _ in engines]
            ask = query(model.config, length)
            agree(engines, ask, pair, start=(None, -56, -60)[turn % 3])


PASSES = st.fixed_dictionaries(
    {
        'cuts': st.dictionaries(st.integers(0, 4), st.integers(0, 32), max_size=3),
        'skip': st.sets(st.integers(0, 3), max_size=2),
        'scored': st.sets(st.integers(0, 3), max_size=2),
        'repeats': st.booleans(),
        'cached': st.sampled_from([False, False, True]),
        'length': st.sampled_from([3, 6, 7, 12, 13, 38, 39, 70, 71]),
        'views': st.sampled_from([2, 2, 1]),
        'start': st.sampled_from([None, None, -56, -60]),
        'seed': st.integers(0, 3),
    }
)


def run_passes(passes):
    model = tiny_model(3)
    llama, engines = model.config.llama, (PlainEngine(model), GraphEngine(model))
    caches = {}  # layout -> one for each engine, filled by a complete pass
    for p in passes:
        ask = query(model.config, p['length'], p['views'], p['seed'])
        layout = TokenLayout(p['views'], PATCHES, p['length'], model.config.n_placeholders)
        pair = [None, None]
        if p['cached']:
            if layout not in caches:
                pair = [
                    SlotCache(
                        llama.n_layers,
                        layout.length,
                        llama.n_heads,
                        llama.head_dim,
                        torch.float32,
                        'cpu',
                    )
                    for _ in engines
                ]
                caches[layout] = pair
                agree(engines, ask, [Script({}, cache=cache) for cache in pair])
            pair = caches[layout]
        scripts = [
            Script(p['cuts'], p['repeats'], cache, p['skip'], p['scored']) for cache in pair
        ]
        agree(engines, ask, scripts, p['start'])
    stats = engines[1].stats()
    assert stats['fallbacks'] == 0, stats['last_fallback']


@settings(QUICK, max_examples=20)
@given(passes=st.lists(PASSES, min_size=2, max_size=8))
def test_passes_of_every_kind_agree(passes):
    run_passes(passes)


@pytest.mark.slow
@settings(QUICK, max_examples=25, derandomize=False)
@given(passes=st.lists(PASSES, min_size=4, max_size=15))
def test_passes_of_every_kind_agree_in_long_runs(passes):
    run_passes(passes)


# -- by construction ---------------------------------------------------------------------------
def test_a_stage_is_one_frozen_value_and_its_work_captures_nothing():
    kinds = {Segment, Choice, ReadOut, See, Joined}
    assert {*Stage.__subclasses__()} >= kinds
    for kind in kinds:
        assert is_dataclass(kind) and kind.__dataclass_params__.frozen
        assert kind.work.__closure__ is None and kind.written.__closure__ is None
        assert all(f.compare for f in fields(kind)), 'a field that is not part of the key'
