# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Small parts of the policy node: latency, chunk checks, configuration, throttling, streams."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import numpy as np
import pytest

from vla_prune_ros.execution.checks import ACTION_HIGH, ACTION_LOW, ChunkError, safe_actions
from vla_prune_ros.nodes.policy.answering import Picture, Prepared, observation_of, unpacked
from vla_prune_ros.nodes.policy.assembler import MatchedSet
from vla_prune_ros.nodes.policy.instructions import LONGEST_INSTRUCTION, clean_instruction
from vla_prune_ros.nodes.policy.latency import LatencyWindow
from vla_prune_ros.nodes.policy.modes import pruning_specs
from vla_prune_ros.nodes.policy.parameters import (
    POLICY,
    PolicyConfig,
)
from vla_prune_ros.nodes.policy.trigger import Executed, Tick
from vla_prune_ros.ros.images import ImageError, decode_rgb
from vla_prune_ros.ros.streams import Streams
from vla_prune_ros.ros.throttle import Throttled

PERIOD = 50_000_000
CAMERAS = ('agentview', 'wrist')


def test_cold_inferences_are_counted_but_in_no_percentile():
    window = LatencyWindow()
    window.add({'total': 9000.0}, cold=True)
    assert np.isnan(window.percentile('total', 95)) and window.summary('total') == {}
    for ms in range(1, 101):
        window.add({'total': float(ms)}, cold=False)
    assert (window.cold, window.warm) == (1, 100)
    summary = window.summary('total')
    assert summary['p50_ms'] == pytest.approx(50.5)
    assert summary['p95_ms'] == pytest.approx(95.05)
    assert summary['max_ms'] == 100.0


def test_latency_forgets_what_is_long_ago():
    window = LatencyWindow(window=10)
    for ms in range(1000):
        window.add({'total': float(ms)}, cold=False)
    assert window.percentile('total', 0) == 990.0


def test_actions_in_range_leave_as_they_are():
    actions = np.random.default_rng(0).uniform(ACTION_LOW, ACTION_HIGH, (8, 7))
    safe, clipped = safe_actions(actions, PERIOD)
    assert safe.tobytes() == actions.tobytes() and clipped == 0


def test_actions_out_of_range_are_clipped_and_counted():
    actions = np.zeros((3, 7))
    actions[0, 2], actions[1, 6], actions[2, 6] = -1.5, -0.1, 1.2
    safe, clipped = safe_actions(actions, PERIOD)
    assert clipped == 3
    assert (safe[0, 2], safe[1, 6], safe[2, 6]) == (-1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ('actions', 'period', 'reason'),
    [
        (np.zeros((0, 7)), PERIOD, 'shape'),
        (np.zeros((8, 6)), PERIOD, 'shape'),
        (np.zeros(7), PERIOD, 'shape'),
        (np.full((8, 7), np.nan), PERIOD, 'finite'),
        (np.full((8, 7), np.inf), PERIOD, 'finite'),
        (np.zeros((8, 7)), 0, 'period'),
        (np.zeros((8, 7)), -PERIOD, 'period'),
    ],
)
def test_a_chunk_that_a_robot_must_not_get_is_refused(actions, period, reason):
    with pytest.raises(ChunkError, match=reason):
        safe_actions(actions, period)


# -- configuration -----------------------------------------------------------------------------
def values(**changes) -> dict:
    plain = {
        spec.name: list(spec.default) if isinstance(spec.default, tuple) else spec.default
        for spec in (*POLICY, *pruning_specs())
    }
    return plain | {name.replace('__', '.'): value for name, value in changes.items()}


def test_a_configuration_holds_every_parameter_and_cannot_be_changed():
    config = PolicyConfig.from_values(values(pruning__mode='random', pruning__random__keep=7))
    assert config.pruning[0] == 'random' and config.pruning[1]['keep'] == 7
    assert config.sync_slop == 0.02 and config.cameras == ('agentview', 'wrist')
    with pytest.raises(FrozenInstanceError):
        config.sync_slop = 1.0
    with pytest.raises(TypeError):
        config.pruning_options['keep'] = 1


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'cameras': []}, 'cameras'),
        ({'cameras': ['a', 'a']}, 'cameras'),
        ({'finger_joints': ['one']}, 'finger_joints'),
        ({'default_instruction': 'x' * (LONGEST_INSTRUCTION + 1)}, 'instruction'),
    ],
)
def test_values_that_do_not_go_together_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        PolicyConfig.from_values(values(**changes))


def test_every_number_has_a_range_and_those_with_a_dimension_name_their_unit():
    for spec in POLICY:
        if isinstance(spec.default, int | float) and not isinstance(spec.default, bool):
            assert spec.minimum is not None and spec.maximum is not None, spec.name
        if isinstance(spec.default, float):
            unit = re.search(r'\((s|Hz|m|rad|raw)\b|\bshare\b|\bnormalised\b', spec.description)
            assert unit, spec.name


def test_an_instruction_becomes_one_line():
    assert clean_instruction('  pick\n up \tthe  block ') == 'pick up the block'


# -- reports -----------------------------------------------------------------------------------
def test_every_cause_is_told_once_and_later_how_often():
    told: list[str] = []
    tell = Throttled(told.append, period=60.0)
    for _ in range(3):
        tell('a', 'first cause')
    tell('b', 'second cause')
    assert told == ['first cause', 'second cause']
    again = Throttled(told.append, period=0.0)
    again('a', 'now')
    again('a', 'now')
    assert told[-2:] == ['now', 'now']


def test_a_stream_knows_its_age_its_rate_and_its_silence():
    streams = Streams(('camera',), timeout=1.0)
    streams.start(0.0)
    assert streams.age('camera', 0) is None and streams.rate('camera', 0.0) == 0.0
    for k in range(20):
        streams.received('camera', k * 0.05, stamp=k * PERIOD)
    assert streams.rate('camera', 0.95) == pytest.approx(20.0)
    assert streams.age('camera', 20 * PERIOD) == pytest.approx(0.05)
    for k in range(40):
        streams.received('camera', 1.0 + k * 0.05, stamp=19 * PERIOD)  # a frozen stamp
    assert streams.changes(3.0) == (['camera'], [])
    assert streams.rate('camera', 3.0) == 0.0


def test_silence_is_excused_while_a_robot_waits_for_an_answer():
    streams = Streams(('camera',), timeout=1.0)
    streams.start(0.0)
    streams.excuse(5.0)
    assert streams.changes(5.5) == ([], [])
    assert streams.changes(6.5) == (['camera'], [])
    streams.excuse(7.0)
    assert streams.changes(7.1) == ([], []), 'what is reported stays so until a message comes'


# -- pictures ----------------------------------------------------------------------------------
@pytest.mark.parametrize('encoding', ['uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2'])
def test_both_byte_orders_of_yuv422_give_the_colour_they_stand_for(encoding):
    y, u, v = 81, 90, 240  # red
    pair = [u, y, v, y] if encoding in ('uyvy', 'yuv422') else [y, u, y, v]
    data = np.tile(np.array(pair, np.uint8), (4, 8))
    message = SimpleNamespace(
        encoding=encoding, height=4, width=16, step=32, is_bigendian=0, data=data.tobytes()
    )
    rgb = decode_rgb(message)
    assert rgb.shape == (4, 16, 3)
    assert (np.abs(rgb.astype(int) - [255, 0, 0]) < 8).all()


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_a_bayer_pattern_gives_back_its_colour(pattern):
    colour = {'r': 200, 'g': 100, 'b': 30}
    tile = np.array([[colour[pattern[0]], colour[pattern[1]]],
                     [colour[pattern[2]], colour[pattern[3]]]], np.uint8)  # fmt: skip
    data = np.tile(tile, (8, 8))
    message = SimpleNamespace(
        encoding=f'bayer_{pattern}8', height=16, width=16, step=16, is_bigendian=0,
        data=data.tobytes(),
    )  # fmt: skip
    assert decode_rgb(message)[4:-4, 4:-4].reshape(-1, 3).tolist() == [[200, 100, 30]] * 64


def test_yuv_and_bayer_pictures_need_an_even_size():
    message = SimpleNamespace(
        encoding='uyvy', height=2, width=3, step=6, is_bigendian=0, data=bytes(12)
    )
    with pytest.raises(ImageError, match='even'):
        decode_rgb(message)


# -- inference ---------------------------------------------------------------------------------
def test_frames_prepared_ahead_give_the_same_chunk(checkpoint):
    from vla_prune_ros.policy import VLAPolicy

    rng = np.random.default_rng(0)

    def frame(stamp: int) -> MatchedSet:
        pictures = {c: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for c in CAMERAS}
        state = {'ee_pose': rng.normal(size=6), 'joint_states': np.array([0.02, -0.02])}
        return MatchedSet(stamp * PERIOD, pictures | state)

    frames = [frame(k) for k in range(9)]
    moved = Executed(rng.normal(size=(8, 7)), tuple(k * PERIOD for k in range(1, 9)))
    ticks = [
        Tick(frames[0], instruction='pick up the red block'),
        Tick(frames[8], (moved,), tuple(frames[1:8]), 'pick up the red block'),
    ]
    answers = []
    for ahead in (False, True):
        policy = VLAPolicy.from_pretrained(checkpoint, 'specprune')
        prepared = Prepared()
        if ahead:
            while prepared.add_one(policy, frames[1:8], CAMERAS):
                pass
        for tick in ticks:
            chunk = policy.step(observation_of(policy, tick, CAMERAS, prepared))
        assert [f.queried for f in policy.history.frames].count(False) == 7
        answers.append((chunk.actions.tobytes(), chunk.kept.tolist()))
        assert prepared.take(frames[1]) is None  # used, or never there
    assert answers[0] == answers[1]


def test_a_prepared_frame_is_of_that_very_frame_and_those_that_left_are_forgotten():
    prepared, policy = Prepared(), SimpleNamespace(prepare=lambda images: dict(images))
    frames = [MatchedSet(k, {'a': k}) for k in range(8)]
    while prepared.add_one(policy, frames, ['a']):
        pass
    again = MatchedSet(5, {'a': 'of a restarted robot'})
    assert prepared.add_one(policy, [*frames[3:5], again, frames[6]], ['a'])
    assert prepared.take(frames[2]) is None  # it left
    assert prepared.take(frames[5]) is None
    assert prepared.take(frames[6]) == {'a': 6}
    prepared.clear()
    assert prepared.take(frames[3]) is None


def test_a_picture_is_unpacked_when_it_is_looked_at_and_a_broken_one_reported_once():
    reasons: list[str] = []

    def unpack(message: SimpleNamespace) -> np.ndarray:
        if message.data == b'bad':
            raise ImageError('no picture')
        unpack.calls += 1
        return np.zeros((2, 2, 3), np.uint8)

    unpack.calls = 0
    good, bad = (
        Picture(SimpleNamespace(data=data), unpack, lambda e: reasons.append(str(e)))
        for data in (b'good', b'bad')
    )
    assert unpack.calls == 0 and good.nbytes == 4
    state = {'ee_pose': np.zeros(6), 'joint_states': np.zeros(2)}
    told = SimpleNamespace(wants_frames=False)
    tick = Tick(MatchedSet(2, {'a': good} | state), (), (MatchedSet(1, {'a': bad} | state),), 'x')
    assert observation_of(told, tick, ['a']).images['a'].shape == (2, 2, 3)
    assert unpack.calls == 1 and not reasons, 'nobody looks at frames between'
    looked: list = []
    told = SimpleNamespace(wants_frames=True, observe=lambda *frame: looked.append(frame))
    for _ in range(2):
        observation_of(told, tick, ['a'])
    assert reasons == ['no picture'] and not looked
    with pytest.raises(ImageError):
        unpacked(tick.between[0], ['a'])
