# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LIBERO's real code on placeholder assets: no number in here is a LIBERO score.

Needs `./run libero-setup`; nothing is downloaded.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import norm_stats, tiny_checkpoint

from vla_prune_ros.evaluation import evaluate
from vla_prune_ros.sim import SimulationError, make_robot
from vla_prune_ros.sim.libero import assets, placeholder
from vla_prune_ros.sim.libero.suites import SUITES, load_initial_states

pytestmark = [pytest.mark.libero, pytest.mark.timeout(300)]

try:
    assets.find_package()
except assets.LiberoMissingError as missing:
    pytest.skip(str(missing), allow_module_level=True)

SIZE = 64  # pixels; drawing is what takes the time
TASK = 2  # the bowl in the middle of the table
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 7))


@pytest.fixture(scope='module')
def robot():
    robot = make_robot('libero', suite='libero_spatial', assets='placeholder', image_size=SIZE)
    yield robot
    robot.close()


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A tiny random policy with the statistics of a LIBERO suite."""
    statistics = {'libero_spatial_no_noops': norm_stats()['tabletop']}
    return tiny_checkpoint(tmp_path_factory.mktemp('libero'), norm_stats=statistics)


def reference_axis_angle(quat):
    """As OpenVLA-OFT's evaluation has it from robosuite."""
    if quat[3] > 1.0:
        quat[3] = 1.0
    elif quat[3] < -1.0:
        quat[3] = -1.0
    den = np.sqrt(1.0 - quat[3] * quat[3])
    if math.isclose(den, 0.0):
        return np.zeros(3)
    return (quat[:3] * 2.0 * math.acos(quat[3])) / den


def reference_episode(robot, task, state, actions):
    """Observations of the reference evaluation, with LIBERO's own environment class."""
    from libero.libero.envs import OffScreenRenderEnv

    spec = robot.tasks[task]
    env = OffScreenRenderEnv(
        bddl_file_name=str(spec.bddl), camera_heights=SIZE, camera_widths=SIZE
    )
    states, seen = load_initial_states(spec.states), []
    try:
        env.seed(0)
        for k in range(state + 1):
            env.reset()
            obs = env.set_init_state(states[k])
        for _ in range(10):
            obs, _, done, _ = env.step([0, 0, 0, 0, 0, 0, -1])
        seen.append((obs, done))
        for action in actions:
            obs, _, done, _ = env.step(action.tolist())
            seen.append((obs, done))
    finally:
        env.close()
    return [
        {
            'agentview': obs['agentview_image'][::-1, ::-1],
            'wrist': obs['robot0_eye_in_hand_image'][::-1, ::-1],
            'proprio': np.concatenate([
                obs['robot0_eef_pos'],
                reference_axis_angle(obs['robot0_eef_quat'].copy()),
                obs['robot0_gripper_qpos'],
            ]),
            'joints': obs['robot0_joint_pos'],
            'done': done,
        }
        for obs, done in seen
    ]  # fmt: skip


def our_episode(robot, task, state, actions, lazy=False):
    observations = [(robot.reset(task, state), robot.success())]
    for action in actions:
        seen = robot.step(action, render=not lazy)
        observations.append((robot.observe() if lazy else seen, robot.success()))
    return [
        {**o.images, 'proprio': o.proprio, 'joints': o.joint_positions, 'done': done}
        for o, done in observations
    ]


def assert_equal(ours, theirs):
    for k, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        for key in one:
            assert np.array_equal(one[key], other[key]), f'{key} of step {k}'


# -- parity with LIBERO ------------------------------------------------------------------------
def test_observations_are_bit_for_bit_those_of_the_reference_evaluation(robot):
    theirs = reference_episode(robot, TASK, 2, ACTIONS)
    robot.reset(TASK, 5)  # states may be asked for in any order
    assert_equal(our_episode(robot, TASK, 2, ACTIONS), theirs)
    assert_equal(our_episode(robot, TASK, 2, ACTIONS, lazy=True), theirs)


def test_scenes_with_random_joints_get_the_places_of_their_reset(robot):
    """There LIBERO draws more random numbers at every reset."""
    other = make_robot('libero', suite='libero_10', assets='placeholder', image_size=SIZE)
    try:
        microwave = next(k for k, t in enumerate(other.tasks) if 'microwave' in t.name)
        theirs = reference_episode(other, microwave, 2, ACTIONS[:1])
        assert_equal(our_episode(other, microwave, 2, ACTIONS[:1]), theirs)
    finally:
        other.close()


def test_drawing_for_nobody_changes_nothing(robot):
    quiet = [robot.reset(TASK, 0).proprio]
    quiet += [robot.step(action, render=False).proprio for action in ACTIONS]
    loud = [step['proprio'] for step in our_episode(robot, TASK, 0, ACTIONS)]
    assert np.array_equal(quiet, loud)


def test_a_negative_gripper_command_opens(robot):
    robot.reset(TASK, 0)
    opened = [robot.step(np.array([0, 0, 0, 0, 0, 0, -1.0]), render=False) for _ in range(4)][-1]
    closed = [robot.step(np.array([0, 0, 0, 0, 0, 0, 1.0]), render=False) for _ in range(8)][-1]
    assert opened.finger_positions[0] > 0.035
    assert closed.finger_positions[0] < 0.02


def test_a_point_is_where_camera_pose_and_mirrored_intrinsics_say(robot):
    from vla_prune_ros.ros.messages import camera_info_message

    big = make_robot('libero', suite='libero_spatial', assets='placeholder')
    try:
        image = big.reset(TASK, 0).images['agentview']
        plate = big.objects()['plate_1'][:3]
        position, (x, y, z, w) = big.camera_pose('agentview')
        camera = big.cameras[0]
    finally:
        big.close()
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    k = np.array(camera_info_message(camera, 0, '').k).reshape(3, 3)
    u, v, depth = k @ turn.T @ (plate - position)
    assert k[0, 0] < 0
    pixel = image[round(v / depth), round(u / depth)]
    assert pixel.min() > 150, 'the plate is white, the table is not'
    other = image[round(v / depth), 255 - round(u / depth)]
    assert other.min() < 150


@pytest.mark.parametrize('suite', SUITES)
def test_every_suite_builds_loads_its_states_and_steps(suite):
    robot = make_robot('libero', suite=suite, assets='placeholder', image_size=32)
    try:
        assert robot.suite == suite
        assert len(robot.tasks) == (90 if suite == 'libero_90' else 10)
        assert robot.n_initial_states == 50
        assert robot.notice == placeholder.NOTICE
        task = robot.tasks[7]
        robot.reset(task.name, 49)
        observation = robot.step(np.zeros(7))
        assert {name: i.shape for name, i in observation.images.items()} == {
            'agentview': (32, 32, 3),
            'wrist': (32, 32, 3),
        }
        assert observation.time == pytest.approx(0.05)
        assert not robot.success()
    finally:
        robot.close()


# -- errors ------------------------------------------------------------------------------------
def test_wrong_tasks_states_and_actions_are_refused_before_libero_sees_them(robot):
    robot.reset(TASK, 0)
    with pytest.raises(ValueError, match=r'outside 0\.\.9'):
        robot.reset(10, 0)
    with pytest.raises(ValueError, match='pick_up_the_black_bowl'):
        robot.reset('pick_up_the_moon', 0)
    with pytest.raises(ValueError, match=r'outside 0\.\.49'):
        robot.reset(TASK, 50)
    with pytest.raises(ValueError, match='7 finite numbers'):
        robot.step(np.array([0, 0, 0, 0, 0, 0, np.nan]))
    assert robot.step(np.zeros(7), render=False).time == pytest.approx(0.05)


def test_a_failure_inside_libero_is_one_of_the_simulation_and_the_next_reset_recovers(robot):
    robot.reset(TASK, 0)

    def explode(action):
        raise RuntimeError('mujoco has enough')

    robot.env.env.step = explode
    with pytest.raises(SimulationError, match=r'step of libero_spatial/pick_up.*has enough'):
        robot.step(np.zeros(7))
    with pytest.raises(SimulationError, match='call reset first'):
        robot.step(np.zeros(7))
    assert robot.reset(TASK, 0).images['agentview'].std() > 1


def test_another_thread_is_refused(robot):
    robot.reset(TASK, 0)
    errors = []

    def work():
        try:
            robot.step(np.zeros(7))
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == ['LiberoRobot.step was called in another thread than made it']


def test_libero_asks_nothing_and_fetches_nothing(tmp_path):
    """With an empty home its own code would ask on standard input."""
    environment = {
        **os.environ,
        'HOME': str(tmp_path / 'home'),
        'XDG_CACHE_HOME': str(tmp_path / 'cache'),
        assets.VARIABLE: 'placeholder',
    }
    done = subprocess.run(
        [sys.executable, '-m', 'vla_prune_ros', 'libero_setup'],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert placeholder.NOTICE in done.stdout
    assert not (tmp_path / 'home' / '.libero').exists()
    assert not (tmp_path / 'home' / '.cache' / 'libero').exists()


# -- evaluation --------------------------------------------------------------------------------
def arguments(checkpoint, out, *more):
    return [
        '--suite', 'libero_spatial', '--assets', 'placeholder', '--checkpoint', str(checkpoint),
        '--modes', 'none,random', '--tasks', '0,2', '--trials', '1', '--max-steps', '3',
        '--quiet', '--out', str(out), *more,
    ]  # fmt: skip


def test_an_interrupted_evaluation_goes_on_and_says_what_it_is(checkpoint, tmp_path, capsys):
    out = tmp_path / 'out'
    command = [sys.executable, '-m', 'vla_prune_ros', 'evaluate']
    command += arguments(checkpoint, out, '--workers', '1')
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log, deadline = out / 'episodes.jsonl', time.monotonic() + 120
    while not log.exists() or log.read_text().count('\n') < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert 'the same command goes on from there' in error
    assert evaluate.main(arguments(checkpoint, out, '--workers', '2', '--shared-model')) == 0
    printed = capsys.readouterr().out
    assert placeholder.NOTICE in printed
    assert 'SpecPrune' not in printed
    assert 'OpenVLA-OFT (arXiv 2502.19645)' in printed
    results = json.loads((out / 'results.json').read_text())
    assert results['run']['notice'] == placeholder.NOTICE
    assert [row['episodes'] for row in results['entries']] == [2, 2]
    assert 'were taken over from an earlier run' in ' '.join(results['run']['notes'])
    assert placeholder.NOTICE in (out / 'report.md').read_text()
    names = {p.name for p in (out / 'videos').iterdir()}
    assert 'none--task0-state0.mp4' in names


# -- through the nodes -------------------------------------------------------------------------
def test_the_expert_solves_a_task_through_nodes_and_chunks(tmp_path):
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    command = [sys.executable, '-m', 'vla_prune_ros', 'libero_expert', '--out', str(tmp_path)]
    done = subprocess.run(
        [*command, '--tasks', str(TASK), '--episodes', '2'],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert placeholder.NOTICE in done.stdout
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['notice'] == placeholder.NOTICE
    (row,) = results['tasks']
    assert (row['successes'], row['failures']) == (2, 0)
    bridge = Path(tmp_path / 'sim_bridge.log').read_text()
    assert placeholder.NOTICE in bridge
