# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What holds for every registered pruning mode, whatever its options."""

import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import SIZES, Rig, frames, model, moves
from tiny import INSTRUCTIONS, inputs, observation, tiny_checkpoint

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import MODES, make_selector

pytestmark = pytest.mark.filterwarnings('ignore:mode (lightvla|efficient_vla)')

# Options with which a mode keeps every token; a new mode adds its own.
KEEP_ALL = {
    'none': {},
    'specprune': {
        'alpha': 1.0, 'k_local': 256, 'k_global': 256, 'k_dynamic': 256, 'layer_cuts': False,
    },
    'lightvla': {'keep': 4096},
    'vla_cache': {'static_k': 0},
    'efficient_vla': {'preset': 'tokens_only', 'keep': 4096},
    'fastv': {'prune_ratio': 0.0},
    'random': {'keep_ratio': 1.0},
    'grid': {'stride': 1},
    'scout': {'keep': 1.0},
    'vla_pruner': {'keep': 1.0},
}  # fmt: skip


def options(mode):
    """Values for some of a mode's options, within the declared ranges."""
    each = {}
    for option in MODES[mode].options:
        low = 0 if option.min is None else option.min
        if option.choices:
            each[option.name] = st.sampled_from(option.choices)
        elif option.type is bool:
            each[option.name] = st.booleans()
        elif option.type is int:
            high = low + 20 if option.max is None else min(option.max, low + 20)
            each[option.name] = st.integers(int(low), int(high))
        elif option.type is float:
            high = low + 2 if option.max is None else min(option.max, low + 2)
            each[option.name] = st.floats(low, high)
    return st.fixed_dictionaries({}, optional=each)


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('modes'))


@pytest.mark.parametrize('mode', MODES)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_protected_tokens_order_and_positions_hold_under_any_options(mode, data):
    values = data.draw(options(mode))
    size, views = data.draw(st.sampled_from(SIZES)), data.draw(st.integers(1, 2))
    length, still = data.draw(st.integers(3, 20)), data.draw(st.booleans())
    try:
        rig = Rig(model(size), mode, views, length, **values)
    except ValueError as error:
        assert any(name in str(error) for name in values)
        return
    picture = frames(rig.model.config, 0, views)
    for query in range(3):
        if not still:
            picture = picture.copy()
            picture[:, :14, :28] = query
        out = rig.tick(images=picture, actions=moves(8, (0.3, 0, -0.1)) if query else None)
        layout, live = out.layout, [*range(out.layout.length)]
        protected = {i for part in layout.protected for i in part}
        assert rig.trace.cuts.keys() <= set(rig.trace.plan.points)
        for kept in rig.trace.cuts.values():
            assert kept == sorted({*kept})
            assert protected <= {*kept} <= {*live}
            live = kept
        assert rig.trace.at_end == live == out.position_ids.tolist()
        assert {*out.kept.tolist()} <= {*layout.visual}
        assert torch.isfinite(out.actions).all()
        assert all(type(v) in (bool, int, float, str) for v in rig.selector.stats().values())


@pytest.mark.parametrize('views', [1, 2])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('mode', MODES)
def test_keeping_everything_equals_dense_bit_for_bit(mode, size, views):
    assert mode in KEEP_ALL, f'add options with which {mode} keeps every token'
    rig = Rig(model(size), mode, views, **KEEP_ALL[mode])
    for seed in range(3):
        out, dense = rig.tick(seed, moves(8)), rig.dense(seed)
        assert out.kept.tolist() == [*out.layout.visual]
        assert torch.equal(out.readout, dense.readout)
        assert torch.equal(out.actions, dense.actions)


def per_view(rig, layout):
    """Cut point -> tokens left in each view."""
    return {
        point: [len({*kept} & {*layout.view(v)}) for v in range(layout.n_views)]
        for point, kept in rig.trace.cuts.items()
    }


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('mode', [mode for mode in MODES if mode != 'random'])
def test_random_has_the_counts_of_the_mode_it_is_matched_to_at_every_cut(mode, size):
    own, matched = Rig(model(size), mode), Rig(model(size), 'random', matched_to=mode)
    picture, differs = frames(own.model.config, 0), mode == 'none'
    for query in range(5):
        picture = picture.copy()
        picture[query % 2, :14, : 14 * query] ^= 85
        actions = moves(8, (0, 0, -0.1)) if query % 2 else moves(8, (0.7, 0, 0))
        a, b = (rig.tick(images=picture, actions=actions) for rig in (own, matched))
        assert per_view(own, a.layout) == per_view(matched, b.layout)
        assert len(a.kept) == len(b.kept)
        differs |= own.trace.cuts != matched.trace.cuts
    assert differs
    assert matched.selector.stats()['matched_to'] == mode


def test_random_takes_options_for_the_mode_it_is_matched_to():
    options = {'matched_to': 'fastv', 'matched_options': 'layers=1 keep=3 rows=last'}
    rig = Rig(model(SIZES[0]), 'random', **options)
    layout = rig.tick(0).layout
    assert per_view(rig, layout) == {1: [3, 3]}


def test_random_without_a_rehearsal_follows_the_mode_within_the_pass():
    net = model(SIZES[0])
    selector = make_selector('random', net.config, matched_to='fastv', matched_options='keep=3')
    with torch.inference_mode():
        kept = [net(*inputs(net.config), selector).kept.tolist() for _ in range(2)]
    assert [len(ids) for ids in kept] == [6, 6]
    assert kept[0] != kept[1]


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'matched_to': 'random'}, 'matched_to'),
        ({'matched_to': 'nonsense'}, 'specprune'),
        ({'matched_to': 'fastv', 'matched_options': 'depth=3'}, 'prune_ratio'),
        ({'matched_to': 'fastv', 'matched_options': 'layers'}, 'NAME=VALUE'),
        ({'matched_to': 'fastv', 'matched_options': 'layers=x'}, 'layers'),
        ({'matched_to': 'fastv', 'matched_options': 'layers=0'}, 'layers'),
        ({'matched_options': 'layers=1'}, 'matched_to'),
    ],
)
def test_impossible_matches_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        make_selector('random', model(SIZES[0]).config, **options)


def play(policy, episode, ticks):
    """Some ticks of an episode; returns the chunks."""
    chunks = []
    for tick in ticks:
        instruction = INSTRUCTIONS[episode]
        seen = observation(100 * episode + tick, 0.4 * tick, instruction)
        chunks.append(policy.step(seen))
        for action in moves(4, (0.2, 0, -0.1)):
            policy.record_executed(action)
            policy.observe(seen.images)
    return chunks


def same(a, b, exactly):
    assert len(a.kept) == len(b.kept)
    if exactly:
        np.testing.assert_array_equal(a.kept, b.kept)
        np.testing.assert_array_equal(a.actions, b.actions)


@pytest.mark.parametrize('mode', MODES)
def test_interleaved_episodes_with_resets_equal_separate_ones(directory, mode):
    pieces = [(0, range(3)), (1, range(3)), (0, range(3, 6)), (1, range(3, 5)), (0, range(6, 7))]
    both, *alone = (VLAPolicy.from_pretrained(directory, pruning=mode) for _ in range(3))
    for episode, ticks in pieces:
        both.reset()
        alone[episode].reset()
        runs = (play(policy, episode, ticks) for policy in (both, alone[episode]))
        for a, b in zip(*runs, strict=True):
            same(a, b, exactly=mode != 'random')  # whose generator no reset rewinds
            assert a.reset_reason == b.reset_reason


def test_a_mode_switched_at_every_tick_always_starts_afresh(directory):
    policy = VLAPolicy.from_pretrained(directory)
    fresh = {}
    names = [*MODES]
    rng = np.random.default_rng(0)
    for tick in range(200):
        mode = names[(tick + tick // len(names)) % len(names)]
        if mode == policy.settings.mode:
            mode = names[(names.index(mode) + 1) % len(names)]
        scene = int(rng.integers(3))
        policy.set_pruning(mode)
        chunk = policy.step(observation(scene, 0.05 * tick))
        policy.record_executed(chunk.actions[:1])
        policy.observe(observation(scene).images)
        assert (chunk.mode, chunk.reset_reason) == (mode, 'mode')
        if (mode, scene) not in fresh:
            other = VLAPolicy.from_pretrained(directory, pruning=mode)
            fresh[mode, scene] = other.step(observation(scene))
        same(chunk, fresh[mode, scene], exactly=True)


@pytest.mark.parametrize('mode', MODES)
def test_many_queries_do_not_grow_memory(directory, mode):
    policy = VLAPolicy.from_pretrained(directory, pruning=mode)
    scenes = [observation(seed) for seed in range(4)]

    def ticks(n):
        for i in range(n):
            seen = scenes[i % 4]
            chunk = policy.step(seen)
            policy.record_executed(chunk.actions)
            policy.observe(seen.images)

    ticks(20)
    held = []
    tracemalloc.start()
    for _ in range(3):
        ticks(20)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[2] - held[1] < 20_000
    tensors = sum(t.numel() for t in _tensors(policy.history.slots))
    ticks(5)
    assert sum(t.numel() for t in _tensors(policy.history.slots)) == tensors


def _tensors(thing, depth=4):
    if isinstance(thing, torch.Tensor):
        yield thing
    elif depth:
        inside = thing.values() if isinstance(thing, dict) else ()
        inside = thing if isinstance(thing, (list, tuple)) else inside
        for part in [*inside, *getattr(thing, '__dict__', {}).values()]:
            yield from _tensors(part, depth - 1)


@pytest.mark.parametrize('mode', MODES)
def test_what_a_mode_warns_about_is_in_its_note_too(mode):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        selector = make_selector(mode, model(SIZES[0]).config)
    assert selector.note or not caught
