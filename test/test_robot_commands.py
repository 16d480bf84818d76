# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From actions to commands: anchors, gains, limits, hold; and what an arm makes of it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

from vla_prune_ros.execution.commands import Commander, GripperLatch, Limits, Tool
from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.execution.targets import Pose, rotation_matrix, rotation_vector
from vla_prune_ros.sim import make_robot
from vla_prune_ros.sim.tabletop import controller
from vla_prune_ros.sim.tabletop.arm import FINGER_OPEN, SOFT, STIFF
from vla_prune_ros.sim.tabletop.expert import expert_action

LOW, HIGH = np.full(3, -9.0), np.full(3, 9.0)
WIDE = Limits(LOW, HIGH, speed=5.0, turn=20.0)
HERE = Pose(np.array([0.1, 0.2, 1.0]), np.eye(3))
ALONG_X = np.array([1.0, 0, 0, 0, 0, 0, 1])
PERIOD = 0.05


def commander(limits=WIDE, anchor='measured', gains=(0.0, 0.0), **semantics) -> Commander:
    return Commander(Semantics(**semantics), limits, PERIOD, anchor, gains)


# -- anchor and gain ---------------------------------------------------------------------------
def test_a_soft_arm_gets_the_whole_offset_from_where_it_is_measured():
    command = commander().command(ALONG_X, HERE)
    np.testing.assert_allclose(command.pose.position, [0.15, 0.2, 1.0])
    np.testing.assert_allclose(command.expected, [0.0125, 0, 0])
    again = Pose(HERE.position + 0.01, HERE.rotation)
    assert commander().command(ALONG_X, again).pose.position[0] == pytest.approx(0.16)


def test_a_stiff_arm_gets_the_part_that_was_covered_in_training_from_the_last_command():
    stiff = commander(anchor='command')
    assert stiff.gains == (0.25, 0.2)
    turn = np.array([1.0, 0, 0, 1.0, 0, 0, 1])
    for k in range(1, 4):
        command = stiff.command(turn, HERE)  # it does not follow, and the leash is long enough
        np.testing.assert_allclose(command.pose.position[0], 0.1 + 0.0125 * min(k, 4))
    np.testing.assert_allclose(command.twist, [0.25, 0, 0, 2.0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(command.effective, turn[:6], atol=1e-9)


def test_scale_gain_and_speed_scale_multiply():
    command = commander(scale_position=0.02, step_position=0.01).command(ALONG_X, HERE, 0.1)
    np.testing.assert_allclose(command.pose.position[0], 0.1 + 0.002)
    np.testing.assert_allclose(command.effective[0], 0.1)
    command = commander(anchor='command', gains=(0.5, 0.5)).command(ALONG_X, HERE)
    np.testing.assert_allclose(command.pose.position[0], 0.1 + 0.025)


def test_rotations_are_axis_angle_or_turns_about_fixed_axes():
    action = np.array([0, 0, 0, 0.4, 0.6, -0.2, 1])
    by_axis = commander().command(action, HERE).pose.rotation
    np.testing.assert_allclose(rotation_vector(by_axis), [0.2, 0.3, -0.1], atol=1e-12)
    by_angles = commander(rotation='rpy').command(action, HERE).pose.rotation
    x, y, z = (rotation_matrix(a * e) for a, e in zip((0.2, 0.3, -0.1), np.eye(3), strict=True))
    np.testing.assert_allclose(by_angles, z @ y @ x, atol=1e-12)


def test_values_beyond_a_unit_are_clipped():
    far = np.full(7, 40.0)
    command = commander(Limits(LOW, HIGH, 50.0, 50.0)).command(far, HERE)
    np.testing.assert_allclose(command.pose.position - HERE.position, 0.05)


# -- limits ------------------------------------------------------------------------------------
def test_the_speed_limit_is_on_the_motion_that_is_to_be_expected():
    limits = Limits(LOW, HIGH, speed=0.1, turn=0.5)
    action = np.array([1.0, 0, 0, 0, 1.0, 0, 1])
    soft = commander(limits).command(action, HERE)
    np.testing.assert_allclose(soft.expected[0], 0.1 * PERIOD)
    np.testing.assert_allclose(soft.pose.position[0] - 0.1, 0.1 * PERIOD * 4)
    stiff = commander(limits, 'command').command(action, HERE)
    np.testing.assert_allclose(stiff.twist, [0.1, 0, 0, 0, 0.5, 0], atol=1e-9)
    assert soft.limited == stiff.limited == ('speed', 'turn')


def test_one_unit_along_an_axis_is_just_the_default_limit():
    assert commander(Limits(LOW, HIGH)).command(ALONG_X, HERE).limited == ()


@pytest.mark.parametrize('anchor', ['measured', 'command'])
def test_no_target_leaves_the_box_and_nothing_outside_is_pulled_back(anchor):
    limits = Limits(np.array([0.0, 0.0, 0.9]), np.array([0.11, 0.3, 1.2]), 5.0, 20.0)
    command = commander(limits, anchor, (1.0, 1.0)).command(ALONG_X, HERE)
    assert command.pose.position[0] == 0.11 and command.limited == ('box',)
    outside = Pose(np.array([0.12, 0.2, 1.0]), np.eye(3))
    assert commander(limits, anchor).command(ALONG_X, outside).pose.position[0] == 0.12
    back = commander(limits, anchor).command(-ALONG_X, outside)
    assert back.pose.position[0] < 0.12
    assert limits.outside(outside.position) == pytest.approx(0.01)


def test_the_leash_keeps_the_target_near_an_arm_that_does_not_follow():
    limits = Limits(LOW, HIGH, 5.0, 20.0, lead=0.05, lead_turn=0.3)
    stiff = commander(limits, 'command', (1.0, 1.0))
    for _ in range(4):
        command = stiff.command(np.array([1.0, 0, 0, 0, 0, 1.0, 1]), HERE)
    np.testing.assert_allclose(command.pose.position[0] - 0.1, 0.05)
    np.testing.assert_allclose(rotation_vector(command.pose.rotation), [0, 0, 0.3], atol=1e-9)
    assert set(command.limited) == {'lead', 'lead_turn'}
    assert np.linalg.norm(command.effective) < 1.2, 'what was cut off was not executed'
    assert command.expected[0] == pytest.approx(0.05), 'but asked for'


def test_a_velocity_knows_no_last_command():
    arm = commander(WIDE, 'velocity')
    for _ in range(20):
        command = arm.command(ALONG_X, HERE)  # an arm that is stuck
        np.testing.assert_allclose(command.twist[:3], [0.25, 0, 0])
        np.testing.assert_allclose(command.expected, [0.0125, 0, 0])
    assert arm.freeze(HERE) is not None and not arm.hold(HERE).twist.any()
    boxed = commander(Limits(LOW, np.array([0.105, 1, 2]), 5.0, 20.0), 'velocity')
    np.testing.assert_allclose(boxed.command(ALONG_X, HERE).twist[0], 0.1)


def test_limits_without_a_box_are_refused():
    with pytest.raises(ValueError, match=r'limits\.box'):
        Limits(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match=r'limits\.speed'):
        Limits(LOW, HIGH, speed=0.0)
    with pytest.raises(ValueError, match='measured, command'):
        commander(anchor='hope')


# -- hold, interpolation, tool, gripper --------------------------------------------------------
def test_hold_freezes_once_and_within_what_an_arm_coasts():
    soft = commander()
    soft.command(ALONG_X, HERE)
    frozen = soft.freeze(HERE)
    assert 0.005 < frozen.position[0] - 0.1 < 0.015
    assert not soft.hold(frozen).twist.any()
    stiff = commander(anchor='command')
    target = stiff.command(ALONG_X, HERE).pose
    assert stiff.freeze(HERE) is not HERE
    np.testing.assert_array_equal(stiff.freeze(HERE).position, target.position)
    unmoved = commander(anchor='command').freeze(HERE)
    np.testing.assert_array_equal(unmoved.position, HERE.position)  # nothing was commanded


def test_between_two_steps_a_stiff_target_moves_evenly_and_a_soft_one_not_at_all():
    stiff, soft = commander(anchor='command'), commander()
    for c in (stiff, soft):
        c.command(ALONG_X, HERE)
        last = c.command(ALONG_X, HERE).pose
    assert soft.between(0.2) is soft.between(1.0)
    path = [stiff.between(f).position[0] - 0.1 for f in (0.0, 0.5, 1.0, 2.0)]
    np.testing.assert_allclose(path, [0.0125, 0.01875, 0.025, 0.025])
    np.testing.assert_allclose(last.position[0], 0.15)


def test_the_tool_is_where_it_is_turned_to():
    tool = Tool(Pose(np.array([0.0, 0, 0.1]), rotation_matrix(np.array([0, 0, 0.5]))))
    down = Pose(np.array([0.4, 0, 0.3]), np.diag([1.0, -1, -1]))
    np.testing.assert_allclose(tool.pose(down).position, [0.4, 0, 0.2])
    turning = np.array([0, 0, 0, 0, 1.0, 0])
    step = 1e-6
    moved = tool.pose(Pose(down.position, rotation_matrix(step * turning[3:]) @ down.rotation))
    velocity = (moved.position - tool.pose(down).position) / step
    np.testing.assert_allclose(tool.twist(turning, down)[:3], velocity, atol=1e-6)
    assert not Tool(Pose(np.zeros(3), np.eye(3))).moves


def test_the_gripper_is_told_clear_changes_only():
    latch = GripperLatch()
    wishes = [0.5, 0.9, 0.95, 0.55, 0.45, 0.1, 0.2, 0.9]
    told = [latch.update(w, 0.05 * k) for k, w in enumerate(wishes)]
    assert told == [None, True, None, None, None, False, None, None]
    assert latch.update(0.9, 0.5) is True
    assert Semantics(gripper_open=-1.0, gripper_closed=1.0).openness(-1.0) == 1.0


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        ({'action.scale_position': 'wide'}, 'not a number'),
        ({'action.kind': 'ee_pose'}, 'ee_delta, joint_absolute'),
        ({'action.scale_rotation': 0.0}, 'scale_rotation'),
        ({'action.gripper_open': 0.0}, 'gripper'),
    ],
)
def test_semantics_that_mean_nothing_are_refused(values, reason):
    good = Semantics().values()
    assert Semantics.from_values({k: str(v) for k, v in good.items()}) == Semantics()
    with pytest.raises(ValueError, match=reason):
        Semantics.from_values(good | values)
    with pytest.raises(ValueError, match=r'action\.anchor is not declared'):
        Semantics.from_values({k: v for k, v in good.items() if k != 'action.anchor'})


# -- on the simulated arm ----------------------------------------------------------------------
@pytest.fixture(scope='module')
def robot():
    made = make_robot('tabletop', render=False)
    yield made
    made.close()


def drive(robot, command, between, output):
    """One control step of a driver that looks at its commands every 10 ms."""
    for k in range(5):
        if output == 'twist':
            robot.arm.drive(command.twist)
        else:
            pose = between((k + 1) / 5)
            robot.arm.follow(pose.position, pose.rotation)
        robot.arm.run(5)


def solved(robot, number, stiffness, output, anchor, gains=(0.0, 0.0)):
    """Whether the expert solves a task through commands."""
    task = robot.tasks[number % 8]
    robot.reset(number % 8, number // 8)
    robot.arm.controller.stiffness = stiffness
    limits = Limits(LOW, HIGH, speed=2.0, turn=20.0)
    made = commander(limits, anchor, gains)
    for _ in range(task.max_steps):
        action = expert_action(task, robot.scene())
        command = made.command(action, Pose(*robot.arm.pose))
        robot.arm.grip(FINGER_OPEN if action[6] < 0 else 0.0)
        drive(robot, command, made.between, output)
        if robot.success():
            return True
    return False


@pytest.fixture
def restored(robot):
    yield robot
    robot.arm.controller.stiffness = SOFT


def test_pose_targets_from_the_measured_pose_are_the_simulators_own_execution_bit_for_bit(
    monkeypatch,
):
    monkeypatch.setattr(controller, 'rotation_from_axis_angle', rotation_matrix)
    first, second = (make_robot('tabletop', render=False) for _ in range(2))
    for task in (0, 5):
        made = commander()
        first.reset(task, 1), second.reset(task, 1)
        for _ in range(80):
            action = expert_action(first.tasks[task], first.scene())
            first.advance(action)
            command = made.command(action, Pose(*second.arm.pose))
            second.arm.grip(FINGER_OPEN if action[6] < 0 else 0.0)
            second.arm.follow(command.pose.position, command.pose.rotation)
            second.arm.run(25)
            assert first.data.qpos.tobytes() == second.data.qpos.tobytes()


@pytest.mark.parametrize(
    ('stiffness', 'output', 'anchor'),
    [(SOFT, 'pose', 'measured'), (STIFF, 'pose', 'command'), (STIFF, 'twist', 'velocity')],
)
def test_every_output_solves_the_tasks_on_the_arm_that_it_is_for(
    restored, stiffness, output, anchor
):
    assert all(solved(restored, n, stiffness, output, anchor) for n in range(8))


@pytest.mark.parametrize(
    ('stiffness', 'anchor', 'gains', 'expected'),
    [
        (SOFT, 'measured', (1.0, 1.0), 0.0125),
        (STIFF, 'command', (0.0, 0.0), 0.0125),
        (STIFF, 'command', (1.0, 1.0), 0.05),
    ],
)
def test_0_3_units_for_a_second_move_the_hand_by_75_mm(
    restored, stiffness, anchor, gains, expected
):
    """The check of doc/robot.md; a stiff arm with a soft one's gain goes four times as far."""
    restored.reset(0, 0)
    restored.arm.controller.stiffness = stiffness
    made = commander(anchor=anchor, gains=gains)
    start = restored.arm.pose[0]
    for _ in range(20):
        command = made.command(np.array([0, 0.3, 0, 0, 0, 0, 1]), Pose(*restored.arm.pose))
        drive(restored, command, made.between, 'pose')
    moved = float(restored.arm.pose[0][1] - start[1])
    assert moved == pytest.approx(20 * 0.3 * expected, rel=0.12)


@pytest.mark.parametrize(
    ('stiffness', 'anchor', 'output', 'slow'),
    [
        (SOFT, 'measured', 'pose', 0.016),  # m/s; its own stiffness is what takes the time
        (STIFF, 'command', 'pose', 0.01),
        (STIFF, 'velocity', 'twist', 0.01),
    ],
)
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_an_arm_at_full_speed_comes_to_rest_within_300_ms(
    restored, stiffness, anchor, output, slow, axis
):
    restored.reset(0, 0)
    restored.arm.controller.stiffness = stiffness
    made = commander(Limits(LOW, HIGH), anchor)
    action = np.zeros(7)
    action[axis] = -1.0 if axis == 2 else 1.0
    for _ in range(10):
        before = restored.arm.pose[0]
        command = made.command(action, Pose(*restored.arm.pose))
        drive(restored, command, made.between, output)
    stop = restored.arm.pose[0]
    assert np.linalg.norm(stop - before) / PERIOD > 0.15, 'in motion'
    hold = made.hold(made.freeze(Pose(*restored.arm.pose)))
    for _ in range(6):
        drive(restored, hold, lambda _: hold.pose, output)
    before = restored.arm.pose[0]
    restored.arm.run(5)
    assert np.linalg.norm(restored.arm.pose[0] - before) / 0.01 < slow
    assert np.linalg.norm(restored.arm.pose[0] - stop) < 0.02
