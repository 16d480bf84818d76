# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A policy of absolute joint positions and two arms behind joint trajectory controllers."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

import joint_peer
from conftest import REPOSITORY
from joint_peer import CHUNK, JOINTS, OFFSET, RATE, SCALE, UNITS, Controller, JointRobot
from robot_peer import LATCHED, Peer, _stamp
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from test_robot_pilot import config
from tiny import tiny_checkpoint, variant

from vla_prune_ros.execution.joints import JointCommander, JointLimits, Joints
from vla_prune_ros.execution.playing import ChunkPlayer, Execution
from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.execution.supervisor import Facts
from vla_prune_ros.execution.targets import JointPlans
from vla_prune_ros.nodes.robot.chunks import ChunkGate
from vla_prune_ros.nodes.robot.pilot import Pilot
from vla_prune_ros.ros import messages as m

PERIOD = round(1e9 / RATE)
SEMANTICS = Semantics(kind='joint_absolute', joints=tuple(JOINTS), units=tuple(UNITS))
PARAMETERS = {
    'output': 'joint_trajectory',
    'control_rate': RATE,
    'joints.names': JOINTS,
    'joints.wire_names': ['waist', 'shoulder', 'finger'] * 2,
    'joints.topics': [
        f'{side}/{kind}_controller/joint_trajectory'
        for side in ('left', 'right')
        for kind in ('arm', 'arm', 'gripper')
    ],
    'joints.state_topics': ['left/joint_states'] * 3 + ['right/joint_states'] * 3,
    'joints.units': UNITS,
    'joints.scale': SCALE.tolist(),
    'joints.offset': OFFSET.tolist(),
    'joints.low': [-2.0, -1.0, 0.02] * 2,
    'joints.high': [2.0, 1.0, 0.06] * 2,
    'limits.joint_speed': [1.0, 1.0, 0.1] * 2,
    'limits.joint_lead': [0.3, 0.3, 0.05] * 2,
    'limits.joint_jump': [0.2, 0.2, 0.05] * 2,
}
ALOHA_ARM = ('waist', 'shoulder', 'elbow', 'forearm_roll', 'wrist_angle', 'wrist_rotate')
INFO = {k: str(v) for k, v in SEMANTICS.values().items()} | {'control_rate': str(RATE)}


def joint_config(**changes):
    return config(**{k.replace('.', '__'): v for k, v in PARAMETERS.items()} | changes)


# -- what the numbers mean ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'units': ('rad',)}, 'different names with a unit each'),
        ({'joints': ('a',) * 6}, 'different names'),
        ({'units': ('furlong',) * 6}, "'furlong' is not one of rad"),
        ({'joints': (), 'units': ()}, 'does not go with kind joint_absolute'),
        ({'kind': 'ee_delta'}, 'does not go with kind ee_delta'),
    ],
)
def test_joints_are_declared_with_their_units(changes, reason):
    with pytest.raises(ValueError, match=reason):
        replace(SEMANTICS, **changes)


def test_semantics_of_joints_survive_the_wire():
    assert Semantics.from_values(INFO) == SEMANTICS
    assert SEMANTICS.signature == joint_peer.MEANING
    actions = np.random.default_rng(0).normal(size=(CHUNK, 6))
    message = m.chunk_message(actions, 7, PERIOD, SEMANTICS.signature, SEMANTICS.names)
    assert list(message.joint_names) == JOINTS
    assert m.actions_from(message, SEMANTICS.names).tobytes() == actions.tobytes()
    with pytest.raises(m.MessageError, match='expected'):
        m.actions_from(message)


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'joints__names': ['']}, r'joints\.names'),
        ({'joints__names': ['a', 'a']}, r'joints\.names'),
        ({'joints__high': [0.0]}, r'joints\.low'),
        ({'joints__low': [0.0, 1.0]}, r'joints\.low: 2 values'),
        ({'joints__scale': [0.0]}, r'joints\.scale'),
        ({'joints__units': ['turn']}, r'joints\.units'),
        ({'joints__wire_names': ['a']}, r'joints\.wire_names'),
        ({'limits__joint_speed': [-1.0]}, r'limits\.joint_speed'),
        ({'gripper__type': 'float_array'}, r'gripper\.type'),
        ({'servo': 'servo_node'}, 'servo'),
        ({'anchor': 'measured'}, 'anchor'),
    ],
)
def test_parameters_of_joints_that_do_not_go_together_are_refused_by_name(changes, reason):
    with pytest.raises(ValueError, match=reason):
        joint_config(**changes)


@pytest.mark.parametrize(
    ('said', 'reason'),
    [
        ({'action.units': ','.join(['rad'] * 6)}, 'left_shoulder is in rad; this robot takes deg'),
        ({'action.joints': ','.join([*JOINTS[:5], 'tail'])}, "the robot has no ['tail']"),
        ({'control_rate': '50'}, 'control_rate is 50 Hz'),
        ({'action.kind': 'ee_delta', 'action.joints': '', 'action.units': ''}, 'takes joint_abs'),
    ],
)
def test_a_policy_of_other_joints_units_or_kind_is_refused(said, reason):
    gate = ChunkGate(joint_config())
    gate.describe(INFO)
    assert gate.misfit == ''
    gate.describe(INFO | said)
    assert reason in gate.misfit


# -- commands ----------------------------------------------------------------------------------
def commander(**changes) -> JointCommander:
    limits = joint_config().limits
    return JointCommander(SEMANTICS, replace(limits, **changes), 1 / RATE, JOINTS, SCALE, OFFSET)


HERE = np.array([0.1, 0.2, 0.044, 0.1, 0.2, 0.044])


def policy_units(positions) -> np.ndarray:
    return (positions - OFFSET) / SCALE


def test_positions_are_converted_per_joint_in_whatever_order_the_policy_has_them():
    order = [3, 4, 5, 0, 1, 2]
    mixed = replace(
        SEMANTICS, joints=tuple(JOINTS[k] for k in order), units=tuple(UNITS[k] for k in order)
    )
    wish = HERE + np.array([0.01, -0.02, 0.001, 0.0, 0.01, 0.002])
    made = JointCommander(mixed, joint_config().limits, 1 / RATE, JOINTS, SCALE, OFFSET)
    command = made.command(policy_units(wish)[order], Joints(HERE), 1.0, np.zeros((0, 6)))
    np.testing.assert_allclose(command.pose.position, wish, atol=1e-12)
    np.testing.assert_allclose(command.effective, policy_units(wish)[order], atol=1e-12)
    assert command.limited == ()


def test_the_whole_rest_of_a_plan_is_sent_and_only_what_is_new():
    made, rows = commander(), []
    for k in range(5):
        rows.append(policy_units(HERE + (k + 1) * np.array([0.01, 0, 0, 0, 0, 0])))
    rows = np.array(rows)
    first = made.command(rows[0], Joints(HERE), 1.0, rows[1:])
    assert first.path.shape == (5, 6) and not first.follows(None)
    second = made.command(rows[1], Joints(first.path[0]), 1.0, rows[2:])
    np.testing.assert_allclose(second.path, first.path[1:], atol=1e-12)
    assert second.follows(first)
    other = made.command(rows[4], Joints(first.path[1]), 1.0, rows[:1])
    assert not other.follows(second)


def test_speed_range_and_lead_are_limited_and_counted():
    made, none = commander(), np.zeros((0, 6))
    far = policy_units(HERE + np.array([1.0, 0, 0, 0, 0, 0]))
    command = made.command(far, Joints(HERE), 0.5, np.tile(far, (9, 1)))
    np.testing.assert_allclose(np.diff(command.path[:, 0]), 0.5 / RATE, atol=1e-12)
    assert command.limited == ('joint_speed',)
    for _ in range(30):  # the arm does not follow
        command = made.command(far, Joints(HERE), 1.0, none)
    assert command.pose.position[0] == pytest.approx(HERE[0] + 0.3)
    assert 'lead' in command.limited
    out = policy_units(np.where(np.arange(6) == 1, 3.0, HERE))
    at = Joints(np.where(np.arange(6) == 1, 0.99, HERE))
    command = commander().command(out, at, 1.0, none)
    assert command.pose.position[1] == pytest.approx(1.0)
    assert command.limited == ('joint_range',)


def test_a_hold_is_one_point_within_reach_of_the_joints():
    made = commander()
    far = policy_units(HERE + np.array([0.02, 0, 0, 0, 0, 0]))
    made.command(far, Joints(HERE), 1.0, np.zeros((0, 6)))
    held = made.hold(made.freeze(Joints(HERE)))
    assert held.path.shape == (1, 6) and held.holds and not held.expected.any()
    assert held.pose.position[0] == pytest.approx(HERE[0] + 0.02), 'where the plan is'
    made.forget()
    np.testing.assert_allclose(made.freeze(Joints(HERE)).position, HERE)


def test_limits_of_joints_say_how_far_a_joint_is_out():
    limits = joint_config().limits
    assert limits.outside(HERE) == 0.0
    assert limits.outside(HERE + np.array([0, 0.9, 0, 0, 0, 0])) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r'joints\.low'):
        JointLimits(limits.high, limits.low, limits.speed, limits.lead, limits.jump)


@pytest.mark.parametrize('mode', ['blend', 'ensemble'])
def test_plans_of_joints_mix_as_plain_vectors(mode):
    player = ChunkPlayer(Execution(mode, horizon=2), plans=JointPlans(2))
    player.observe(0)
    player.add(0, np.tile([1.0, 5.0], (6, 1)))
    assert player.next().tolist() == [1.0, 5.0]
    player.observe(1)
    player.add(1, np.tile([2.0, 7.0], (6, 1)))
    ahead = player.rest
    first = player.next()
    assert 1.0 < first[0] < 2.0 and first[1] == pytest.approx(5.0 + 2.0 * (first[0] - 1.0))
    np.testing.assert_allclose(ahead[0], first)
    np.testing.assert_allclose(ahead[1], player.next())


def test_a_plan_that_begins_far_away_is_refused_and_the_old_one_goes_on():
    said: list[str] = []
    pilot = Pilot(joint_config(), warn=lambda cause, text: said.append(text))
    pilot.configure(joint_config(), SEMANTICS)
    assert pilot.supervisor.enable(Facts(0.0)) == []
    rows = np.tile(policy_units(HERE), (10, 1))
    for k, (shift, state) in enumerate([(0.5, 'holding'), (0.0, 'running'), (0.5, 'running')]):
        pilot.add(k * PERIOD, rows + shift * np.array([1, 0, 0, 0, 0, 0]), k / RATE, k * PERIOD)
        pilot._asked = None
        pilot.player.execution = Execution('receding', 1)
        assert pilot.tick(Facts(k / RATE), k * PERIOD, Joints(HERE)) == state
    assert pilot.refused == {'jump': 2}
    assert said[0] == 'chunk refused: left_waist would jump by 0.500'
    assert pilot.player.stamp == PERIOD


# -- processes ---------------------------------------------------------------------------------
def words(namespace: str, **changes) -> list[str]:
    given = PARAMETERS | {
        'dry_run': False, 'speed_scale': 1.0, 'state_timeout': 0.5, 'hold_timeout': 3.0,
        'diagnostic_updater.period': 0.2,
    }  # fmt: skip
    given |= {k.replace('__', '.'): v for k, v in changes.items()}
    pairs = [f'{k}:={v}'.replace("'", '') for k, v in given.items()]
    return ['--ros-args', '-r', f'__ns:={namespace}', *(w for p in pairs for w in ('-p', p))]


@pytest.fixture
def robot(ros, namespace, start):
    """Two arms in motion, and the process of their bridge."""
    robot = JointRobot(namespace)
    robot.process = start('robot_bridge', *words(namespace))
    robot.enable()
    robot.moving()
    yield robot
    robot.close()


def test_two_arms_follow_a_policy_of_joints_and_every_stop_holds_them(robot):
    start, begun = robot.positions, time.monotonic()
    robot.spin(1.0)
    moved = (robot.positions - start) / (time.monotonic() - begun)
    np.testing.assert_allclose(moved[[0, 3]], 0.3, rtol=0.3)  # both waists, as the policy wants
    np.testing.assert_allclose(robot.positions[[1, 4]], 0.2, atol=1e-3)
    np.testing.assert_allclose(robot.positions[[2, 5]], 0.058, atol=1e-3)  # open: 0.044 + 0.014
    for controller in robot.controllers.values():
        assert not controller.refused
        assert len(controller.taken) < 15, 'a message for a plan, not for a step'
        assert len(controller.taken[-1][1].points) > 5
    told = robot.policy_reads[-1]  # in the units of the policy, by its names
    np.testing.assert_allclose(told.position[1], np.degrees(0.2), atol=0.1)
    assert list(told.name) == JOINTS and told.position[2] == pytest.approx(1.0, abs=0.1)
    executed = [message for message in robot.executed if message.points]
    assert list(executed[-1].joint_names) == JOINTS
    # one after the other, as each start of a process takes seconds
    robot.wave = None
    assert robot.is_in('holding', 'no action to play'), robot.state
    assert robot.stands_still(0.4)
    robot.wave = -0.3
    robot.moving()
    refused = int(robot.state['refused'])
    robot.chunk(meaning='joint_absolute/6rad')
    robot.chunk(names=JOINTS[::-1])
    assert robot.wait_for(lambda: int(robot.state['refused']) >= refused + 2, 3.0)
    assert robot.call('stop').success
    assert robot.stands_still(0.4)
    robot.call('reset')
    robot.enable()
    robot.moving()
    robot.silent = 'right'
    assert robot.is_in('stopped', 'joint states: the newest is'), robot.state
    assert robot.stands_still(0.4)
    robot.silent = ''
    robot.spin(0.2)
    robot.call('reset')
    robot.enable()
    robot.moving()
    robot.jump[3] = 0.5
    assert robot.is_in('stopped', 'measured right_waist jumped by'), robot.state
    robot.jump[3] = 0.0
    robot.spin(0.2)
    robot.call('reset')
    robot.ahead[0] = 0.5
    robot.enable()
    assert robot.wait_for(lambda: 'left_waist would jump' in robot.process.log), robot.process.log
    assert robot.stands_still(0.4)
    robot.ahead[0] = 0.0
    robot.moving()
    other = robot.node.create_publisher(
        joint_peer.JointTrajectory, 'right/gripper_controller/joint_trajectory', 5
    )
    assert robot.is_in('stopped', 'also commands the arm'), robot.state
    robot.node.destroy_publisher(other)
    assert robot.process.end(signal.SIGTERM)[0] == 0


def test_a_killed_bridge_leaves_a_plan_that_ends_at_rest(robot):
    os.killpg(robot.process.popen.pid, signal.SIGKILL)
    robot.process.popen.wait()
    robot.spin(CHUNK / RATE)  # the rest of the plan
    assert robot.stands_still(0.1)


class Aloha(Peer):
    """Two ViperX behind their own names, three cameras and an instruction; no policy."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace, 'aloha')
        self.controllers, self._out = {}, {}
        for side in ('left', 'right'):
            for kind, joints in (('arm', ALOHA_ARM), ('gripper', ('left_finger',))):
                topic = f'/follower_{side}/{kind}_controller/joint_trajectory'
                start = np.full(len(joints), 0.0 if kind == 'arm' else 0.05)
                self.controllers[topic] = Controller(self.node, topic, joints, start)
            self._out[side] = self.node.create_publisher(
                JointState, f'/follower_{side}/joint_states', 5
            )
        self._cameras = {
            name: self.node.create_publisher(Image, f'{name}/image_raw', 5)
            for name in ('cam_high', 'cam_left_wrist', 'cam_right_wrist')
        }
        self.instruction = self.node.create_publisher(String, 'instruction', LATCHED)
        self.instruction.publish(String(data='fold the shirt'))
        self._k = 0
        self.node.create_timer(0.01, self._tick)

    def _tick(self) -> None:
        self._k += 1
        now, stamp = time.monotonic(), _stamp(time.time())
        for side, publisher in self._out.items():
            parts = [c for topic, c in self.controllers.items() if f'_{side}/' in topic]
            message = JointState(
                name=[name for part in parts for name in part.joints],
                position=np.concatenate([part.position(now) for part in parts]).tolist(),
            )
            message.header.stamp = stamp
            publisher.publish(message)
        for publisher in self._cameras.values() if self._k % 4 == 0 else ():
            picture = Image(height=32, width=32, encoding='rgb8', step=96)
            picture.data = bytes(np.random.default_rng(self._k).bytes(32 * 96))
            picture.header.stamp = stamp
            publisher.publish(picture)


@pytest.mark.slow
def test_a_policy_of_14_joints_moves_two_arms_as_the_file_for_aloha_says(
    ros, namespace, start, tmp_path
):
    """The real node with a network that was never trained, and the bridge, by the file."""
    checkpoint = tiny_checkpoint(tmp_path / 'aloha', **variant('aloha'))
    file = ['--params-file', str(REPOSITORY / 'config' / 'robots' / 'aloha.yaml')]
    inside = ['--ros-args', '-r', f'__ns:={namespace}', *file]
    remaps = ['-r', 'joint_states:=vla/joint_states', '-r', 'ee_pose:=vla/ee_pose']
    policy = start(
        'policy_node',
        *inside,
        *remaps,
        '-p',
        f'checkpoint:={checkpoint}',
        '-p',
        'torch_threads:=1',
    )
    bridge = start(
        'robot_bridge', *inside, '-p', 'dry_run:=false', '-p', 'speed_scale:=1.0',
        '-p', 'state_timeout:=0.5', '-p', 'limits.joint_jump:=[100.0]',  # it knows nothing
    )  # fmt: skip
    robot = Aloha(namespace)
    try:
        policy.wait_for_log('configure: inactive')
        robot.enable()
        assert robot.is_in('running', timeout=30.0), (robot.state, policy.log, bridge.log)
        taken = lambda: [len(c.taken) for c in robot.controllers.values()]  # noqa: E731
        assert robot.wait_for(lambda: min(taken()) >= 3, 20.0), (robot.state, taken())
        for topic, controller in robot.controllers.items():
            assert not controller.refused, controller.refused
            message = controller.taken[-1][1]
            assert 1 <= len(message.points) <= 25
            rows = np.array([point.positions for point in message.points])
            if 'gripper' in topic:
                assert rows.min() >= 0.021 - 1e-9 and rows.max() <= 0.058 + 1e-9
        reports = lambda: [message for message in robot.executed if message.points]  # noqa: E731
        assert robot.wait_for(reports, 10.0), (robot.state, bridge.log)
        assert len(reports()[-1].joint_names) == 14
        assert reports()[-1].joint_names[0] == 'left_waist'
    finally:
        robot.close()
