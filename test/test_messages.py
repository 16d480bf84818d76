# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost between plain values and messages, and unusable messages are named."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from rclpy.serialization import deserialize_message, serialize_message
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros import messages as m
from vla_prune_ros.sim.base import Camera, quaternion_to_axis_angle

PERIOD = 50_000_000
STAMP = 12 * m.NANOSECONDS + 345_678_901


def actions(n: int = 8) -> np.ndarray:
    """Float64 that float32 could not hold."""
    return np.random.default_rng(5).normal(size=(n, 7)) / 3.0


def through_dds(message):
    """What the other side of a topic gets."""
    return deserialize_message(serialize_message(message), type(message))


def test_a_chunk_keeps_every_bit_and_its_stamp():
    sent = actions()
    got = through_dds(m.chunk_message(sent, STAMP, PERIOD))
    assert m.actions_from(got).tobytes() == sent.tobytes()
    assert m.to_ns(got.header.stamp) == STAMP


def test_action_k_of_a_chunk_belongs_to_stamp_plus_k_periods():
    got = through_dds(m.chunk_message(actions(25), STAMP, PERIOD))
    assert [m.to_ns(p.time_from_start) for p in got.points] == [k * PERIOD for k in range(25)]
    assert tuple(got.joint_names) == m.ACTION_NAMES


def test_executed_actions_end_at_their_stamp():
    got = through_dds(m.executed_message(actions(3), STAMP, PERIOD))
    times = [m.to_ns(p.time_from_start) for p in got.points]
    assert times == [-3 * PERIOD, -2 * PERIOD, -PERIOD]
    executed = m.executed_from(got)
    assert executed.ends == (STAMP - 2 * PERIOD, STAMP - PERIOD, STAMP)
    assert executed.actions.tobytes() == actions(3).tobytes()


def test_no_executed_actions_are_an_array_without_rows():
    executed = m.executed_from(m.executed_message(np.empty((0, 7)), STAMP, PERIOD))
    assert (executed.actions.shape, executed.ends) == ((0, 7), ())


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (lambda c: setattr(c, 'joint_names', ['panda_joint1']), 'joint_names'),
        (lambda c: setattr(c.points[2], 'positions', [0.0] * 6), '7 positions'),
        (lambda c: c.points[1].positions.__setitem__(4, float('nan')), 'finite'),
        (lambda c: c.points[1].positions.__setitem__(4, float('inf')), 'finite'),
        (lambda c: c.points.reverse(), 'increase'),
    ],
)
def test_a_broken_chunk_is_refused_with_its_reason(spoil, reason):
    chunk = m.chunk_message(actions(), STAMP, PERIOD)
    spoil(chunk)
    with pytest.raises(m.MessageError, match=reason):
        m.actions_from(chunk)


def test_an_empty_trajectory_is_not_taken_for_a_chunk():
    with pytest.raises(m.MessageError, match='joint_names'):
        m.actions_from(JointTrajectory())


def test_a_pose_gives_the_axis_angle_of_its_quaternion_bit_for_bit():
    rng = np.random.default_rng(1)
    for _ in range(50):
        position, quaternion = rng.normal(size=3), rng.normal(size=4)
        quaternion /= np.linalg.norm(quaternion)
        got = m.pose_from(through_dds(m.pose_message(position, quaternion, STAMP, 'world')))
        expected = np.concatenate([position, quaternion_to_axis_angle(quaternion)])
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ('position', 'quaternion', 'reason'),
    [
        ([np.nan, 0, 0], [0, 0, 0, 1], 'finite'),
        ([0, 0, 0], [0, 0, np.inf, 1], 'finite'),
        ([0, 0, 0], [0, 0, 0, 0], 'unit'),
        ([0, 0, 0], [0, 0, 0, 2], 'unit'),
    ],
)
def test_an_impossible_pose_is_refused(position, quaternion, reason):
    with pytest.raises(m.MessageError, match=reason):
        m.pose_from(m.pose_message(np.array(position), np.array(quaternion), STAMP, ''))


def test_joints_are_read_by_name_in_any_order():
    message = through_dds(m.joint_message(['b', 'x', 'a'], [2.5, 9.0, 1.5], STAMP))
    assert m.joints_from(message, ['a', 'b']).tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ('names', 'positions', 'reason'),
    [
        (['a'], [1.0], 'no joint b'),
        (['a', 'b'], [1.0], '2 names, 1 positions'),
        (['a', 'b'], [1.0, np.nan], 'finite'),
    ],
)
def test_joints_that_are_missing_or_not_finite_are_refused(names, positions, reason):
    with pytest.raises(m.MessageError, match=reason):
        m.joints_from(m.joint_message(names, positions, STAMP), ['a', 'b'])


def test_stamps_survive_as_nanoseconds():
    for stamp in (0, 1, 999_999_999, m.NANOSECONDS, STAMP):
        assert m.to_ns(m.to_time(stamp)) == stamp


def test_camera_info_projects_the_optical_axis_to_the_middle():
    info = m.camera_info_message(Camera('agentview', 256, 128, 90.0), STAMP, 'frame')
    k = np.array(info.k).reshape(3, 3)
    np.testing.assert_allclose((k @ [0, 0, 1])[:2], [127.5, 63.5])
    # The upper edge of the picture lies at half the field of view.
    assert k[1, 1] == pytest.approx(64.0)


def test_values_come_back_as_text():
    sent = {'mode': 'none', 'n': 3, 'x': 0.1, 'yes': np.bool_(True), 'ids': [1, 2], 'empty': []}
    got = m.values_from(through_dds(m.values_message('node', sent, STAMP)))
    assert got == {'mode': 'none', 'n': '3', 'x': '0.1', 'yes': 'true', 'ids': '1,2', 'empty': ''}


def test_texts_with_commas_stay_apart():
    values = {'units': ('controller input, 1 = full step', '1 = open'), 'kept': [3, 4]}
    got = m.values_from(m.values_message('policy', values, 0))
    assert got['units'].split('; ') == list(values['units'])
    assert got['kept'] == '3,4'
