# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Faulty cameras, state, instructions and requests, over DDS: what the policy node does."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from faults import UNIT, FaultPeer, FaultyNode
from peer import FINGERS, PERIOD
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_prune_ros.ros import messages as m


@pytest.fixture
def peer(faulty_pair) -> FaultPeer:
    process, peer = faulty_pair
    peer.trigger('vla_policy/reset')
    peer.forget()
    yield peer
    assert process.popen.poll() is None, process.log
    peer.asked()  # whatever happened, a good observation is answered


@pytest.fixture
def node(faulty_pair) -> FaultyNode:
    return faulty_pair[0]


def picture(shape=(48, 64), seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, encoding: str, stamp: int, **fields) -> Image:
    """An image message of pixels as they are, with some fields replaced."""
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding=encoding, step=pixels[0].nbytes)
    message.header.stamp = m.to_time(stamp)
    message.data = np.ascontiguousarray(pixels).tobytes()
    for name, value in fields.items():
        setattr(message, name, value)
    return message


# -- cameras -----------------------------------------------------------------------------------
@pytest.mark.parametrize('shape', [(17, 31), (1, 1), (700, 40)])
def test_a_picture_of_another_size_is_answered(peer, shape):
    stamp = time.time_ns()
    image = m.image_message(picture(shape), stamp, 'a')
    assert np.isfinite(peer.asked(stamp, agentview=image)).all()


@pytest.mark.parametrize(
    ('encoding', 'fields'),
    [
        ('rgb8', {'height': 0, 'width': 0, 'step': 0, 'data': b''}),
        ('rgb8', {'data': b'short'}),
        ('rgb8', {'step': 7}),
        ('rgb8', {'height': 100_000}),
        ('jpeg', {}),
        ('', {}),
        ('32FC1', {}),
        ('yuv422', {'width': 63}),
    ],
)
def test_a_picture_that_cannot_be_read_is_refused_and_counted(peer, encoding, fields):
    before = peer.count('broken.agentview')
    stamp = time.time_ns()
    peer.send_parts(stamp, agentview=encoded(picture(), encoding, stamp, **fields))
    assert peer.gets_nothing()
    assert peer.count('broken.agentview') == before + 1


def test_every_encoding_of_one_picture_and_padded_rows_give_the_same_chunk(peer):
    rgb = picture()
    alpha = np.full((*rgb.shape[:2], 1), 9, np.uint8)
    padded = np.pad(rgb.reshape(48, -1), ((0, 0), (0, 5)), constant_values=200)
    now = time.time_ns()
    variants = [
        encoded(rgb, 'rgb8', now),
        encoded(rgb[..., ::-1], 'bgr8', now),
        encoded(np.concatenate([rgb, alpha], 2), 'rgba8', now),
        encoded(np.concatenate([rgb[..., ::-1], alpha], 2), 'bgra8', now),
        encoded(padded, 'rgb8', now, width=64),
    ]
    chunks = []
    for image in variants:
        stamp = time.time_ns()
        image.header.stamp = m.to_time(stamp)
        chunks.append(peer.asked(stamp, agentview=image).tobytes())
        peer.trigger('vla_policy/reset')
    assert len(set(chunks)) == 1


def test_black_pictures_are_answered_with_finite_actions_in_range(peer):
    actions = peer.asked()
    assert actions.shape == (8, 7)
    assert (np.abs(actions) <= 1).all() and (actions[:, 6] >= 0).all()


def test_a_camera_that_repeats_its_last_stamp_is_answered_once_and_counts_as_silent(peer, node):
    stamp = time.time_ns()
    peer.asked(stamp)
    deadline = time.monotonic() + 5.0
    logged = node.log.count('no new message on agentview')
    while node.log.count('no new message on agentview') == logged:
        assert time.monotonic() < deadline
        peer.send_parts(stamp)
        peer.spin(0.1)
    assert len(peer.chunks) == 1
    assert peer.count('repeated.agentview') >= 3


@pytest.mark.parametrize(('offset', 'cause'), [(-0.8, 'stale'), (30.0, 'future'), (0.3, 'future')])
def test_an_observation_from_another_time_is_not_answered(peer, offset, cause):
    before = peer.count(f'dropped.{cause}')
    peer.trigger('vla_policy/reset')  # or the camera's older frame would just be late
    peer.send_parts(time.time_ns() + round(offset * m.NANOSECONDS))
    assert peer.gets_nothing()
    if 0 < offset < 1:
        time.sleep(offset)  # frames behind the newest one are late
    assert peer.count(f'dropped.{cause}') == before + 1


def test_frames_out_of_order_never_make_a_chunk_go_back_in_time(peer):
    now = time.time_ns()
    late = peer.count('dropped.agentview')
    for offset in (0, 40, 20, 60, 10):
        peer.send_parts(now + offset * 1_000_000)
        peer.spin(0.05)
    peer.spin(0.2)
    stamps = [m.to_ns(c.header.stamp) for c in peer.chunks]
    assert stamps == sorted(stamps)
    assert peer.count('dropped.agentview') >= late + 2


def test_a_lost_camera_is_reported_once_and_once_when_it_is_back(peer, node):
    gone, back = 'no new message on wrist', 'wrist is back'
    peer.asked()
    peer.wait_for_report('Inputs', lambda r: r[0] == 0)
    before = node.log.count(gone), node.log.count(back)
    for _ in range(14):
        peer.send_parts(wrist=None)
        peer.spin(0.1)
    assert len(peer.chunks) == 1
    assert 'wrist' in peer.wait_for_report('Inputs', lambda r: r[0] == 1)[1]
    peer.asked()
    peer.spin(0.4)
    assert (node.log.count(gone), node.log.count(back)) == (before[0] + 1, before[1] + 1)


@pytest.mark.slow
def test_a_camera_with_another_clock_is_reported_with_the_difference(peer, node):
    for _ in range(14):
        stamp = time.time_ns()
        other = m.image_message(picture(), stamp - 3_000_000_000, 'w')
        peer.send_parts(stamp, wrist=other)
        peer.spin(0.1)
    assert not peer.chunks
    assert 'wrist -3.' in peer.wait_for_report('Inputs', lambda r: 'do not match' in r[1])[1]
    node.wait_for_log('their stamps do not match (sync.slop, sync.state_slop)')
    peer.trigger('vla_policy/reset')


# -- state -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('part', 'make', 'counter'),
    [
        ('pose', lambda s: m.pose_message(np.array([0, np.nan, 0]), UNIT, s, ''), 'ee_pose'),
        ('pose', lambda s: m.pose_message(np.zeros(3), np.full(4, np.inf), s, ''), 'ee_pose'),
        ('pose', lambda s: m.pose_message(np.zeros(3), np.zeros(4), s, ''), 'ee_pose'),
        ('joints', lambda s: m.joint_message(FINGERS, [0.0, np.nan], s), 'joint_states'),
        ('joints', lambda s: m.joint_message(FINGERS[:1], [0.0], s), 'joint_states'),
        ('joints', lambda s: m.joint_message(FINGERS, [0.0], s), 'joint_states'),
    ],
)
def test_a_state_that_is_not_finite_or_not_complete_never_reaches_the_model(
    peer, part, make, counter
):
    before = peer.count(f'broken.{counter}')
    peer.spin(0.05)  # the last good state is too far from the next picture
    stamp = time.time_ns()
    peer.send_parts(stamp, **{part: make(stamp)})
    assert peer.gets_nothing()
    assert peer.count(f'broken.{counter}') == before + 1


def test_joints_are_found_by_name_among_others_in_any_order(peer):
    chunks = []
    for names, values in [(FINGERS, (0.3, 0.9)), (('arm', *FINGERS[::-1]), (7.0, 0.9, 0.3))]:
        stamp = time.time_ns()
        chunks.append(peer.asked(stamp, joints=m.joint_message(names, values, stamp)).tobytes())
        peer.trigger('vla_policy/reset')
    assert chunks[0] == chunks[1]


# -- instruction and executed actions ----------------------------------------------------------
def test_an_unusable_instruction_leaves_the_old_one_in_force(peer):
    before = peer.count('broken.instruction')
    peer.instruction.publish(String(data='x' * 10_000))
    peer.spin(0.2)
    assert peer.count('broken.instruction') == before + 1
    assert peer.info[-1]['instruction'] == 'wave'


def test_an_instruction_of_any_script_is_taken_as_one_line(peer):
    for text in ('Grüße:\n 把方块放进碗里 🤖', 'wave'):
        peer.instruction.publish(String(data=text))
        said = ' '.join(text.split())
        assert peer.wait_for(lambda said=said: peer.info[-1]['instruction'] == said)
        peer.asked()
        assert peer.stats[-1]['reset_reason'] in ('reset', 'instruction')
    assert peer.stats[-1]['reset_reason'] == 'instruction'


def test_executed_actions_that_are_not_finite_are_refused_and_very_many_do_no_harm(peer):
    before = peer.count('broken.executed_actions')
    peer.executed.publish(m.executed_message(np.full((2, 7), np.nan), time.time_ns(), PERIOD))
    peer.executed.publish(m.executed_message(np.zeros((5000, 7)), time.time_ns(), PERIOD))
    assert peer.count('broken.executed_actions') == before + 1


# -- parameters --------------------------------------------------------------------------------
def test_in_a_storm_of_parameters_every_chunk_has_a_mode_with_its_own_options(peer):
    assert peer.set_parameters(pruning__mode='none')[0].successful  # whatever was before
    client = peer.parameter_client()
    pairs = [{'pruning__mode': 'none', 'pruning__random__keep': 1}]
    pairs += [{'pruning__mode': 'random', 'pruning__random__keep': k} for k in (2, 5, 9)]
    futures = []
    for number in range(120):
        futures.append(peer.set_later(client, **pairs[number % len(pairs)]))
        if number % 3 == 0:
            peer.send_parts()
        peer.spin(0.005)
    assert peer.wait_for(lambda: all(f.done() for f in futures), 20.0)
    assert all(r.successful for f in futures for r in f.result().results)
    peer.asked()
    seen = {(s['mode'], int(s['tokens_kept'])) for s in peer.stats}
    assert seen <= {('none', 32), ('random', 4), ('random', 10), ('random', 18)}
    assert peer.stats[-1]['mode'] == 'random' and int(peer.stats[-1]['tokens_kept']) == 18
    (result, _) = peer.set_parameters(pruning__mode='none', pruning__random__keep=0)
    assert result.successful
