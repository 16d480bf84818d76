# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""sim_bridge as its own process, alone and together with policy_node, over DDS."""

from __future__ import annotations

import itertools
import json
import re
import signal

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

import rclpy
from bridge_peer import STEPS, Robot, bridge, some_actions
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from peer import PERIOD
from sensor_msgs.msg import CameraInfo, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros import messages as m
from vla_prune_ros.ros.images import decode_rgb
from vla_prune_ros.sim import make_robot, to_env_action
from vla_prune_ros.sim.tabletop.tasks import TASKS


@pytest.fixture
def robot(ros, namespace):
    robot = Robot(namespace)
    yield robot
    robot.close()


@pytest.fixture
def watcher(ros, namespace):
    watcher = Robot(namespace, answers=False)
    yield watcher
    watcher.close()


def test_it_waits_until_the_announced_recorder_hears_everything(start, namespace, robot):
    """Where a picture was taken belongs into a bag, too, and its topic comes last."""
    kinds = {'joint_states': JointState, 'ee_pose': PoseStamped}
    kinds |= dict.fromkeys(('executed_actions', 'action_chunk'), JointTrajectory)
    kinds |= {f'{camera}/image_raw': Image for camera in ('agentview', 'wrist')}
    recorder = rclpy.create_node('recorder', namespace=namespace)
    for topic, kind in kinds.items():
        recorder.create_subscription(kind, topic, lambda _: None, m.RELIABLE)
    process = start('sim_bridge', *bridge(namespace, episodes=1, recorder='recorder'))
    topics = [f'{namespace}/{camera}/camera_info' for camera in ('agentview', 'wrist')]
    process.wait_for_log(f'waiting for recorder to hear {topics[0]}, {topics[1]}')
    robot.spin(1.5)
    assert not robot.requests
    for topic in topics:
        recorder.create_subscription(CameraInfo, topic, lambda _: None, m.RELIABLE)
    robot.answer(0, some_actions(0))
    recorder.destroy_node()


def test_lockstep_executes_exactly_the_chunks_and_time_waits_for_them(start, namespace, robot):
    """The robot moves as it does without ROS; /clock stands still while no chunk is there."""
    process = start('sim_bridge', *bridge(namespace, episodes=1, task=TASKS[1].name))
    stamps = [robot.answer(n, some_actions(n), delay=0.3 * (n == 1)) for n in range(3)]
    status = robot.wait_until_done()
    assert (status['result'], status['step'], status['queries']) == ('step_limit', str(STEPS), '3')
    assert np.diff(stamps).tolist() == [8 * PERIOD] * 2
    assert all(b >= a for a, b in itertools.pairwise(robot.clocks)), 'time went back'

    sent = [m.actions_from(r) for r in robot.requests]
    assert [len(s) for s in sent] == [0, 8, 8]
    assert sent[1].tobytes() == some_actions(0).tobytes(), 'what was executed is what was sent'

    here = make_robot('tabletop')
    observation = here.reset(1, 0)
    for n, stamp in enumerate(stamps):
        joints = np.concatenate([observation.joint_positions, observation.finger_positions])
        assert robot.seen['joint_states'][stamp].position.tolist() == joints.tolist()
        for camera, pixels in observation.images.items():
            got = decode_rgb(robot.seen[f'{camera}/image_raw'][stamp])
            np.testing.assert_array_equal(got, pixels)
        for action in some_actions(n):
            observation = here.step(to_env_action(action))
    here.close()
    assert robot.seen['wrist/camera_info'][stamps[0]].header.frame_id == 'wrist_optical_frame'
    assert process.end() == (0, pytest.approx(0, abs=2.0)), process.log


def test_an_unanswered_observation_is_sent_again_and_answered_once(start, namespace, robot):
    start('sim_bridge', *bridge(namespace, episodes=1, chunk_timeout=0.3, max_steps=8))
    assert robot.wait_for(lambda: robot.repeated >= 2)
    assert len(robot.requests) == 1
    robot.answer(0, some_actions(0))
    status = robot.wait_until_done()
    assert (status['queries'], status['step']) == ('1', '8')
    assert int(status['resent']) >= 2


def test_a_bad_chunk_is_refused_and_the_next_one_counts(start, namespace, robot):
    process = start('sim_bridge', *bridge(namespace, episodes=1, max_steps=8))
    bad = some_actions(0)
    bad[3, 2] = np.nan
    robot.answer(0, bad)
    process.wait_for_log('chunk refused')
    robot.answer(0, some_actions(0))
    assert robot.wait_until_done()['step'] == '8'


def test_episodes_can_be_driven_from_outside(start, namespace, robot):
    process = start('sim_bridge', *bridge(namespace, episodes=0, max_steps=8))
    process.wait_for_log('is ready')
    robot.spin(0.3)
    assert not robot.episodes
    (refused,) = robot.set_parameters('sim_bridge', task='juggle')
    assert not refused.successful and TASKS[0].name in refused.reason
    for n, task in enumerate([TASKS[2].name, TASKS[1].name]):
        results = robot.set_parameters('sim_bridge', task=task, initial_state=3 + n)
        assert all(r.successful for r in results)
        answer = robot.trigger('sim_bridge/reset_episode')
        assert (answer.success, answer.message) == (True, f'episode {n + 1} begins')
        robot.answer(n, some_actions(n))
        number = str(n + 1)
        assert robot.wait_for(
            lambda e=number: (
                robot.episodes[-1]['episode'] == e and robot.episodes[-1]['state'] == 'done'
            )
        )
        status = robot.episodes[-1]
        assert (status['task'], status['initial_state']) == (task, str(3 + n))
    gap = m.to_ns(robot.requests[1].header.stamp) - m.to_ns(robot.requests[0].header.stamp)
    assert gap > 5 * m.NANOSECONDS, 'the policy has to see that a new episode began'


def test_a_running_episode_is_aborted_by_a_new_one(start, namespace, robot):
    start('sim_bridge', *bridge(namespace, episodes=1))
    robot.answer(0, some_actions(0))
    assert robot.wait_for(lambda: len(robot.requests) == 2)
    assert robot.trigger('sim_bridge/reset_episode').message.split()[1] == '2'
    assert robot.wait_for(lambda: len(robot.requests) == 3)
    ended = [e for e in robot.episodes if e['state'] == 'done']
    assert [(e['episode'], e['result']) for e in ended] == [('1', 'aborted')]
    assert not len(m.actions_from(robot.requests[2]))


def test_an_endless_sweep_goes_on_after_an_episode_that_was_asked_for(start, namespace, robot):
    """Nor does asking for it take one of the planned ones away; a task may be given by number."""
    process = start('sim_bridge', *bridge(namespace, episodes=2, max_steps=8))
    assert robot.wait_for(lambda: len(robot.requests) == 1)
    process.wait_for_log('is ready')
    results = robot.set_parameters('sim_bridge', task=5, initial_state=3)
    assert all(r.successful for r in results), results
    assert robot.trigger('sim_bridge/reset_episode').message.split()[1] == '2'
    for n in (1, 2):
        robot.answer(n, some_actions(n))
    ended = lambda: [e for e in robot.episodes if e['state'] == 'done']  # noqa: E731
    assert robot.wait_for(lambda: len(ended()) == 3)
    assert [(e['task'], e['initial_state'], e['result']) for e in ended()] == [
        (TASKS[0].name, '0', 'aborted'),
        (TASKS[5].name, '3', 'step_limit'),
        (TASKS[6].name, '3', 'step_limit'),
    ]
    assert 'all episodes are done: ~/reset_episode starts one' in process.wait_for_log('all epi')
    (refused,) = robot.set_parameters('sim_bridge', task=80)
    assert not refused.successful and '0..7' in refused.reason
    for wrong in (1.5, True):
        (refused,) = robot.set_parameters('sim_bridge', task=wrong)
        assert not refused.successful


def test_who_comes_late_hears_of_the_newest_episode_and_how_the_last_one_ended(
    start, namespace, robot
):
    start('sim_bridge', *bridge(namespace, episodes=2, max_steps=8))
    robot.answer(0, some_actions(0))
    assert robot.wait_for(lambda: len(robot.requests) == 2)
    late: list[DiagnosticArray] = []
    robot.node.create_subscription(DiagnosticArray, 'sim_bridge/episode', late.append, m.EPISODES)
    assert robot.wait_for(lambda: late)
    robot.spin(0.3)
    (message,) = late
    assert (m.values_from(message)['episode'], m.values_from(message)['state']) == ('2', 'running')
    last = {pair.key: pair.value for pair in message.status[1].values}
    assert (last['episode'], last['result'], len(message.status)) == ('1', 'step_limit', 2)


def test_realtime_does_not_wait_and_counts_starvation(start, namespace, robot):
    start('sim_bridge', *bridge(namespace, episodes=1, mode='realtime', max_steps=40))
    robot.answer(0, some_actions(0))
    assert robot.wait_for(lambda: len(robot.requests) >= 2)
    status = robot.wait_until_done()  # nobody answers any more
    assert status['step'] == '40'
    assert int(status['starved']) > 10
    times = sorted(robot.seen['joint_states'])
    assert set(np.diff(times)) == {PERIOD}, 'observations come with every control step'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_bridge_within_two_seconds_with_code_zero(
    start, namespace, robot, number
):
    process = start('sim_bridge', *bridge(namespace, episodes=1))
    assert robot.wait_for(lambda: robot.requests)
    files = process.shared_memory()
    assert files, 'DDS talks through shared memory'
    code, seconds = process.end(number)
    assert (code, seconds < 2.0) == (0, True), (code, seconds, process.log)
    assert 'Traceback' not in process.log
    assert [path for path in files if path.exists()] == []


@pytest.mark.parametrize('mode', ['lockstep', 'realtime'])
def test_both_nodes_run_episodes_to_their_step_limit(start, checkpoint, namespace, watcher, mode):
    """A random policy on the real simulation; the configuration is the one that is shipped."""
    from conftest import REPOSITORY

    params = ['--params-file', str(REPOSITORY / 'config' / 'sim.yaml')]
    policy = start(
        'policy_node', '--ros-args', '-r', f'__ns:={namespace}', *params,
        '-p', f'checkpoint:={checkpoint}', '-p', 'pruning.mode:=random',
    )  # fmt: skip
    assert watcher.wait_for(lambda: watcher.info, 60.0), policy.log  # so we hear its statistics
    limits = {'episodes': 2, 'max_steps': 24, 'recorder': 'peer'}  # it hears both episodes
    simulation = start('sim_bridge', *bridge(namespace, *params, mode=mode, **limits))
    ended = lambda: [e for e in watcher.episodes if e['state'] == 'done']  # noqa: E731
    assert watcher.wait_for(lambda: len(ended()) == 2, 60.0), policy.log + simulation.log
    assert [(e['result'], e['step']) for e in ended()] == [('step_limit', '24')] * 2
    assert [e['task'] for e in ended()] == [TASKS[0].name, TASKS[1].name]
    if mode == 'lockstep':
        assert len(watcher.chunks) == len(watcher.stats) == 6
        reasons = [s['reset_reason'] for s in watcher.stats]
        assert reasons == ['start', '', '', 'gap', '', ''], 'one reset at the start of an episode'
    assert {s['mode'] for s in watcher.stats} == {'random'}
    if mode == 'lockstep':
        check_layouts(watcher, namespace)
    for process in (policy, simulation):
        assert 'no parameter' not in process.log
        code, seconds = process.end()
        assert (code, seconds < 2.0) == (0, True), process.log


def check_layouts(watcher: Robot, namespace: str) -> None:
    """Every topic, service and key that the layouts show is there while both nodes run."""
    from conftest import REPOSITORY

    foxglove = json.loads((REPOSITORY / 'config' / 'foxglove.json').read_text())
    panels = foxglove['configById']
    assert set(panels) == set(re.findall(r'"(\w+!\w+)"', json.dumps(foxglove['layout'])))
    text = json.dumps(panels) + (REPOSITORY / 'config' / 'sim.rviz').read_text()
    shown = set(re.findall(r'(?:"|Value: )(/[\w/]+)', text))
    assert len(shown) > 10
    node = watcher.node
    there = {name for name, _ in node.get_topic_names_and_types()}
    there |= {name for name, _ in node.get_service_names_and_types()}
    there |= {name.removeprefix(namespace) for name in there}
    assert shown <= there
    keys = set(re.findall(r'key==\\"(\w+)\\"', text))
    assert keys and keys <= set(watcher.stats[-1])
