# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The robot bridge as a process, against a robot and a policy of another writer that misbehave."""

from __future__ import annotations

import os
import signal
import time

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from robot_peer import OtherRobot
from std_msgs.msg import Bool, String
from trajectory_msgs.msg import JointTrajectory

BOX = '[-2.0, -1.0, 0.0, 2.0, 1.0, 2.0]'


def arguments(namespace: str, **parameters) -> list[str]:
    """Command line of a bridge; '__' in a name stands for the dot."""
    given = {
        'limits__box': BOX, 'dry_run': 'false', 'speed_scale': '1.0', 'output': 'pose',
        'frames__base': 'base_link', 'gripper__type': 'float_array', 'hold_timeout': '3.0',
        'state_timeout': '0.25', 'diagnostic_updater__period': '0.2',
    } | parameters  # fmt: skip
    pairs = [f'{name.replace("__", ".")}:={value}' for name, value in given.items()]
    words = [word for pair in pairs for word in ('-p', pair)]
    return ['--ros-args', '-r', f'__ns:={namespace}', *words]


@pytest.fixture(scope='module', params=['pose', pytest.param('twist', marks=pytest.mark.slow)])
def pair(request, ros, start_shared):
    """A bridge and a robot for all tests of one output; each test starts from idle."""
    namespace = f'/hostile_{request.param}'
    process = start_shared('robot_bridge', *arguments(namespace, output=request.param))
    robot = OtherRobot(namespace, request.param)
    yield process, robot
    robot.close()
    assert process.end()[0] == 0, process.log
    assert 'Traceback' not in process.log


@pytest.fixture
def robot(pair):
    """The robot, moving."""
    process, robot = pair
    robot.moves, robot.stuck, robot.twice = 0.3, False, False
    robot.state_off = robot.joints_off = False
    robot.offset, robot.delay, robot.drop, robot.frame = 0.0, 0.0, 0, 'base_link'
    robot.jump[:] = 0.0
    if robot.position[0] > 0.5:
        robot.moves = -0.3
    robot.spin(0.1)
    robot.call('reset')
    robot.describe()
    robot.enable()
    robot.moving()
    robot.process = process
    yield robot
    robot.call('stop')


def told(robot, state: str, reason: str) -> None:
    """A reason is in the state, in the diagnostics and in the log."""
    assert robot.is_in(state, reason), robot.state
    seen = lambda: reason in robot.diagnostics.get('message', '')  # noqa: E731
    assert robot.wait_for(seen, 5.0), robot.diagnostics
    assert reason in robot.process.log


def test_it_moves_as_the_policy_wants_asks_and_opens_the_gripper(robot):
    way = 1 if robot.moves > 0 else -1
    start, begun = robot.position[0], time.monotonic()
    robot.spin(2.0)
    speed = way * (robot.position[0] - start) / (time.monotonic() - begun)
    assert 0.5 * 0.075 < speed < 1.1 * 0.075  # 0.3 units of 12.5 mm, 20 times per second
    assert robot.gripper and robot.gripper[-1] == 0.04
    assert any(len(message.points) for message in robot.executed)
    assert float(robot.state['chunk_age']) < 1.0


def test_lost_late_and_doubled_messages_do_not_disturb_it(robot):
    robot.drop, robot.twice, robot.delay = 4, True, 0.05
    states = set()
    for _ in range(30):
        robot.spin(0.05)
        states.add(robot.state['state'])
    assert 'stopped' not in states and robot.is_in('running')


@pytest.mark.parametrize('stream', ['pose', 'joint states'])
def test_silent_state_holds_and_then_stops(robot, stream):
    robot.state_off, robot.joints_off = stream == 'pose', stream != 'pose'
    assert robot.is_in('holding', f'no new {stream}', 3.0), robot.state
    robot.spin(0.25)
    assert robot.stands_still(0.05, 0.016)
    told(robot, 'stopped', f'{stream}: the newest is')


def test_state_that_comes_back_in_time_goes_on(robot):
    robot.state_off = True
    assert robot.is_in('holding', 'no new pose', 3.0), robot.state
    robot.state_off = False
    assert robot.is_in('running')


def test_a_clock_of_the_robot_that_jumps_stops_it(robot):
    robot.offset = 5.0
    told(robot, 'stopped', 's away')
    assert robot.stands_still(slow=0.016)


def test_another_frame_is_silence(robot):
    robot.frame = 'tool0'
    told(robot, 'stopped', 'pose: the newest is')
    assert "frame 'tool0' is not 'base_link'" in robot.process.log


def test_a_pose_that_jumps_stops_it(robot):
    robot.jump[1] = 0.3
    told(robot, 'stopped', 'the measured pose jumped by 0.3')


def test_an_arm_that_is_stuck_stops_it(robot):
    robot.moves, robot.stuck = 1.0 if robot.moves > 0 else -1.0, True
    told(robot, 'stopped', 'the arm moved')


def test_a_policy_that_stops_holds_the_arm_and_at_last_stops_it(robot):
    robot.moves = None
    assert robot.is_in('holding', 'no action to play'), robot.state
    assert robot.stands_still(slow=0.016)
    told(robot, 'stopped', 'held still for 3 s')
    robot.commands.clear()
    robot.spin(0.6)
    robot.commands.clear()
    robot.spin(0.3)
    assert not robot.commands, 'silent, so that others may drive'


def test_a_policy_of_another_scale_stops_it_and_its_chunks_are_not_played(robot):
    robot.describe(action__scale_position='0.02')
    told(robot, 'stopped', 'policy_info changed')
    robot.describe(action__frame='tool')
    robot.call('reset')
    refused = robot.call('set_enabled', True)
    assert not refused.success and 'action.frame is tool' in refused.message


def test_bad_chunks_are_refused_while_the_old_plan_goes_on(robot):
    before = int(robot.state['refused'])
    for changes in (
        {'x': float('nan')}, {'meaning': 'base/ee_delta/0.02m'}, {'names': ['joint1'] * 7},
        {'period': 100_000_000}, {'age': 0.6}, {'age': -0.4},
    ):  # fmt: skip
        robot.chunk(**({'x': 1.0} | changes))
        robot.spin(0.05)
    assert robot.wait_for(lambda: int(robot.state['refused']) >= before + 6, 3.0), robot.state
    assert robot.is_in('running')


def test_a_second_publisher_of_chunks_holds_and_is_named(robot):
    other = robot.node.create_publisher(JointTrajectory, 'action_chunk', 5)
    told(robot, 'holding', 'chunks come from')
    robot.chunk(1.0, publisher=other)
    assert robot.stands_still(slow=0.016)
    robot.node.destroy_publisher(other)
    assert robot.is_in('running')


def test_a_second_publisher_of_commands_stops_it(robot):
    kind = type(robot.commands[-1][1])
    other = robot.node.create_publisher(kind, robot.arm_in.topic_name, 5)
    told(robot, 'stopped', 'also commands the arm')
    robot.node.destroy_publisher(other)


def test_another_instruction_ends_the_plan(robot):
    robot.instruction.publish(String(data='wave'))
    robot.spin(0.3)
    robot.moves = None
    robot.instruction.publish(String(data='point'))
    assert robot.is_in('holding', 'the instruction changed: point'), robot.state
    assert robot.stands_still(slow=0.016)


def test_stop_and_disable_need_no_policy(robot):
    assert robot.call('stop').success
    assert robot.stands_still(slow=0.016)
    told(robot, 'stopped', '~/stop was called')
    robot.call('reset')
    robot.enable()
    robot.moving()
    robot.call('set_enabled', False)
    assert robot.stands_still(slow=0.016)
    robot.commands.clear()
    robot.spin(0.5)
    assert not robot.commands and robot.state['state'] == 'idle'


def test_what_moves_the_arm_changes_only_when_it_is_idle(robot):
    client = AsyncParameterClient(robot.node, 'robot_bridge')
    assert robot.wait_for(client.services_are_ready)

    def set_parameter(name, value):
        future = client.set_parameters([Parameter(name, value=value)])
        assert robot.wait_for(future.done)
        return future.result().results[0]

    refused = set_parameter('limits.speed', 1.0)
    assert not refused.successful and 'only in state idle' in refused.reason
    assert set_parameter('speed_scale', 0.5).successful
    assert set_parameter('speed_scale', 1.0).successful
    assert not set_parameter('speed_scale', 2.0).successful
    robot.call('set_enabled', False)
    assert not set_parameter('limits.box', [0.0] * 6).successful
    assert set_parameter('limits.speed', 0.25).successful


# -- processes of their own --------------------------------------------------------------------
@pytest.fixture
def other(ros, namespace):
    robot = OtherRobot(namespace)
    yield robot
    robot.close()


def test_it_starts_disabled_in_dry_run_and_publishes_nothing(start, namespace, other):
    process = start('robot_bridge', *arguments(namespace, dry_run='true'))
    assert other.is_in('idle', timeout=30.0), process.log
    other.spin(0.5)
    assert not other.commands
    other.enable()
    assert other.is_in('running'), process.log
    other.spin(0.5)
    assert not other.commands and not other.gripper
    assert other.state['dry_run'] == 'true'
    assert all(not len(message.points) for message in other.executed), 'nothing was executed'
    assert process.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(
    ('parameters', 'reason'),
    [
        ({'limits__box': '[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]'}, 'limits.box'),
        ({'pose_source': 'tf', 'frames__ee': 'tool0'}, 'needs tf2_ros'),
        ({'gripper__type': 'parallel_gripper'}, 'needs control_msgs'),
        ({'servo': 'servo_node'}, 'needs moveit_msgs'),
    ],
)
def test_a_start_that_cannot_be_ends_with_the_reason(start, namespace, parameters, reason):
    if 'needs' in reason:
        try:
            __import__(reason.split()[1])
            pytest.skip(f'{reason.split()[1]} is installed')
        except ImportError:
            pass
    process = start('robot_bridge', *arguments(namespace, **parameters))
    assert process.popen.wait(30) == 1
    assert reason in process.log


def test_two_bridges_on_one_arm_refuse_each_other(start, namespace, other):
    first = start('robot_bridge', *arguments(namespace))
    other.enable()
    other.moving()
    second = start('robot_bridge', *arguments(namespace, frames__base='base_link'))
    assert other.is_in('stopped', 'also commands the arm', 30.0), first.log
    assert other.stands_still(slow=0.016)
    assert second.end()[0] == 0
    other.call('reset')
    other.enable()


def test_a_permit_that_is_withdrawn_stops_at_once(start, namespace, other):
    process = start('robot_bridge', *arguments(namespace, permit__required='true'))
    refused = other.call('set_enabled', True)
    assert not refused.success and 'permit is not given' in refused.message
    other.permit.publish(Bool(data=True))
    other.enable()
    other.moving()
    other.permit.publish(Bool(data=False))
    assert other.is_in('stopped', 'permit is not given'), process.log
    assert other.stands_still(slow=0.016)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_bridge_ends_in_motion_the_last_command_is_to_hold_still(
    start, namespace, other, number
):
    process = start('robot_bridge', *arguments(namespace))
    other.enable()
    other.moving()
    if number == signal.SIGKILL:
        os.killpg(process.popen.pid, number)
        process.popen.wait()
        assert other.stands_still(0.5, 0.016), 'a pose that is not followed by another'
        return
    process.popen.send_signal(number)
    assert other.wait_for(lambda: process.popen.poll() is not None, 10.0)
    assert process.popen.returncode == 0 and 'idle: the node ends' in process.log
    last = [message.pose.position.x for _, message in other.commands[-8:]]
    assert len(set(last)) == 1, 'the same pose again and again'
    assert other.stands_still(slow=0.016)
