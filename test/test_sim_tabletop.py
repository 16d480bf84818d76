# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The tabletop: facts of the interface, determinism, control, and experts that solve it."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from vla_prune_ros.sim import make_robot, quaternion_to_axis_angle, to_env_action
from vla_prune_ros.sim.tabletop.expert import expert_action
from vla_prune_ros.sim.tabletop.tasks import COLOURS, N_INITIAL_STATES, TASKS, initial_layout


@pytest.fixture(scope='module')
def robot():
    made = make_robot('tabletop')
    yield made
    made.close()


def test_suite_has_eight_tasks_in_two_families_with_fifty_states_each(robot):
    assert len(robot.tasks) == 8
    assert {t.family for t in robot.tasks} == {'pick_up', 'put_on_plate'}
    assert robot.n_initial_states == 50
    assert len({t.instruction for t in robot.tasks}) == 8
    assert robot.control_hz == 20.0


def test_observation_has_liberos_shapes_and_conventions(robot):
    observation = robot.reset('pick_up_red', 0)
    assert {n: i.shape for n, i in observation.images.items()} == {
        'agentview': (256, 256, 3),
        'wrist': (256, 256, 3),
    }
    assert all(i.dtype == np.uint8 for i in observation.images.values())
    assert observation.proprio.dtype == np.float64
    np.testing.assert_array_equal(observation.proprio[:3], observation.ee_position)
    np.testing.assert_array_equal(
        observation.proprio[3:6], quaternion_to_axis_angle(observation.ee_quaternion)
    )
    np.testing.assert_array_equal(observation.proprio[6:], observation.finger_positions)
    # the hand points down and is open: half a turn about x, fingers at +-4 cm
    assert abs(abs(observation.proprio[3]) - np.pi) < 0.1
    np.testing.assert_allclose(observation.proprio[6:], [0.04, -0.04], atol=1e-3)


def test_home_pose_follows_the_pandas_published_kinematics(robot):
    # Denavit-Hartenberg (modified) table of the Panda, flange to grip point 0.107 + 0.1034 m
    table = [(0, 0, 0.333), (0, -1, 0), (0, 1, 0.316), (0.0825, 1, 0)]
    table += [(-0.0825, -1, 0.384), (0, 1, 0), (0.088, 1, 0)]
    observation = robot.reset(0, 3)
    pose = np.eye(4)
    pose[:3, 3] = [-0.66, 0, 0.912]
    for (a, quarter, d), q in zip(table, observation.joint_positions, strict=True):
        ca, sa = (1.0, 0.0) if quarter == 0 else (0.0, float(quarter))
        c, s = np.cos(q), np.sin(q)
        pose = pose @ np.array(
            [[c, -s, 0, a], [s * ca, c * ca, -sa, -d * sa], [s * sa, c * sa, ca, d * ca],
             [0, 0, 0, 1]]
        )  # fmt: skip
    grip = pose @ [0, 0, 0.107 + 0.1034, 1]
    np.testing.assert_allclose(observation.ee_position, grip[:3], atol=1e-6)


@pytest.mark.parametrize(
    ('axis', 'index'), [(0, 0), (1, 1), (2, 2)], ids=['forward', 'left', 'up']
)
def test_a_positive_delta_moves_the_hand_along_its_axis(robot, axis, index):
    start = robot.reset(0, 0).ee_position
    action = np.array([0, 0, 0, 0, 0, 0, -1.0])
    action[index] = 0.5
    for _ in range(10):
        moved = robot.step(action).ee_position - start
    assert moved[axis] > 0.03
    assert np.abs(np.delete(moved, axis)).max() < 0.012


def test_zero_action_holds_the_pose_and_the_gripper_sign_is_liberos(robot):
    start = robot.reset(0, 1)
    for _ in range(20):
        held = robot.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert np.abs(held.ee_position - start.ee_position).max() < 0.004
    assert held.finger_positions[0] > 0.038
    for _ in range(10):
        closed = robot.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert closed.finger_positions[0] < 0.003


def test_same_task_and_state_give_identical_frames_and_physics(robot):
    def play():
        observation = robot.reset('put_blue_on_plate', 7)
        for _ in range(12):
            observation = robot.step(expert_action(TASKS[6], robot.scene()))
        return observation

    first, second = play(), play()
    np.testing.assert_array_equal(first.proprio, second.proprio)
    for name in first.images:
        np.testing.assert_array_equal(first.images[name], second.images[name])


def test_restore_returns_to_the_saved_instant(robot):
    robot.reset(0, 0)
    for _ in range(5):
        robot.advance(np.array([0.5, 0.2, -0.5, 0, 0, 0, 1.0]))
    state, before = robot.save(), robot.observe()
    for _ in range(5):
        robot.advance(np.array([-0.5, 0.2, 0.5, 0, 0, 0, -1.0]))
    robot.restore(state)
    after = robot.observe()
    np.testing.assert_allclose(after.proprio, before.proprio, atol=1e-12)
    np.testing.assert_array_equal(after.images['wrist'], before.images['wrist'])


def test_projection_finds_the_blocks_colour_in_the_image(robot):
    observation = robot.reset(0, 4)
    scene = robot.scene()
    for colour in COLOURS:
        x, y = np.round(robot.project(scene.blocks[colour], 'agentview')).astype(int)
        red, green, blue = observation.images['agentview'][y, x].astype(int)
        bright = {
            'red': red > 2 * max(green, blue),
            'green': green > 1.5 * max(red, blue),
            'blue': blue > 1.5 * max(red, green),
            'yellow': min(red, green) > 1.5 * blue,
        }
        assert bright[colour], (colour, red, green, blue)


def test_camera_pose_is_optical_and_agrees_with_the_projection(robot):
    robot.reset(0, 0)
    for camera in robot.cameras:
        position, (x, y, z, w) = robot.camera_pose(camera.name)
        forward = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])
        pixel = robot.project(position + 0.3 * forward, camera.name)
        np.testing.assert_allclose(pixel, [127.5, 127.5], atol=1e-6)


def test_training_states_share_nothing_with_the_fixed_ones():
    fixed = [initial_layout(0, i, 'test') for i in range(N_INITIAL_STATES)]
    train = [initial_layout(0, i, 'train') for i in range(N_INITIAL_STATES)]
    assert len({layout.plate.tobytes() for layout in fixed + train}) == 2 * N_INITIAL_STATES


def test_unknown_tasks_and_states_are_refused_by_name(robot):
    with pytest.raises(ValueError, match='pick_up_red'):
        robot.reset('pick_up_purple', 0)
    with pytest.raises(ValueError, match=r'0\.\.7'):
        robot.reset(8, 0)
    with pytest.raises(ValueError, match=r'0\.\.49'):
        robot.reset(0, 50)
    with pytest.raises(ValueError, match='tabletop'):
        make_robot('moon')
    robot.reset(0, 0)
    with pytest.raises(ValueError, match='finite'):
        robot.step(np.full(7, np.nan))


def test_policy_gripper_is_turned_into_the_environments_sign():
    actions = np.zeros((3, 7))
    actions[:, 6] = [1.0, 0.0, 0.5]
    np.testing.assert_array_equal(to_env_action(actions)[:, 6], [-1.0, 1.0, 0.0])
    assert actions[0, 6] == 1.0, 'the argument must not be overwritten'


def test_axis_angle_is_zero_without_rotation_and_clips_w():
    np.testing.assert_array_equal(quaternion_to_axis_angle(np.array([0, 0, 0, 1.0000001])), 0)
    np.testing.assert_allclose(
        quaternion_to_axis_angle(np.array([0, 0, np.sin(0.4), np.cos(0.4)])), [0, 0, 0.8]
    )


def _expert_successes(task: int) -> int:
    robot = make_robot('tabletop', render=False)
    successes = 0
    for state in range(N_INITIAL_STATES):
        robot.reset(task, state)
        for _ in range(robot.tasks[task].max_steps):
            robot.advance(expert_action(TASKS[task], robot.scene()))
            if robot.success():
                successes += 1
                break
    return successes


def test_expert_solves_each_family_in_at_least_95_percent_of_the_fixed_states():
    with ProcessPoolExecutor(os.cpu_count(), get_context('spawn')) as pool:
        successes = dict(zip(TASKS, pool.map(_expert_successes, range(len(TASKS))), strict=True))
    for family in ('pick_up', 'put_on_plate'):
        rates = [n / N_INITIAL_STATES for t, n in successes.items() if t.family == family]
        assert np.mean(rates) >= 0.95, (family, rates)


def test_no_task_is_solved_by_doing_nothing(robot):
    for index in range(len(TASKS)):
        robot.reset(index, 0)
        for _ in range(5):
            robot.advance(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        assert not robot.success()
