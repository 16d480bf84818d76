# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""sim_bridge as a process over DDS: execution modes, bad answers, a policy that dies, signals."""

from __future__ import annotations

import ctypes.util
import os
import signal
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

from bridge_peer import Robot, bridge, some_actions
from conftest import patience
from diagnostic_msgs.msg import DiagnosticArray
from peer import PERIOD

from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.nodes.simulation.parameters import BRIDGE
from vla_prune_ros.ros import messages as m
from vla_prune_ros.ros.images import decode_rgb
from vla_prune_ros.sim import make_robot
from vla_prune_ros.sim.shifts import ShiftedRobot


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


def test_the_execution_mode_changes_between_episodes(start, namespace, robot):
    """Each mode once over DDS, in one process; what is not mixed passes bit for bit."""
    process = start('sim_bridge', *bridge(namespace, episodes=0, max_steps=8))
    process.wait_for_log('is ready')
    asked = 0
    for mode, horizon, queries in [
        ('open_loop', 0, 1), ('receding', 3, 3), ('blend', 4, 2), ('ensemble', 0, 8),
    ]:  # fmt: skip
        results = robot.set_parameters(
            'sim_bridge', execution__mode=mode, execution__horizon=horizon
        )
        assert all(r.successful for r in results)
        number = robot.trigger('sim_bridge/reset_episode').message.split()[1]
        for n in range(queries):
            robot.answer(asked + n, some_actions(n))
        done = lambda e=number: (  # noqa: E731
            robot.episodes[-1]['episode'] == e and robot.episodes[-1]['state'] == 'done'
        )
        assert robot.wait_for(done), process.log
        status = robot.episodes[-1]
        assert (status['execution'], status['queries']) == (mode, str(queries))
        sent = [m.actions_from(r) for r in robot.requests[asked : asked + queries]]
        steps = {'receding': 3, 'blend': 4, 'ensemble': 1}.get(mode, 8)
        assert [len(s) for s in sent] == [0] + [steps] * (queries - 1)
        for n, executed in enumerate(sent[1:]):
            chunk = some_actions(n)
            assert executed[:, 6].tolist() == chunk[:steps, 6].tolist()
            same = executed.tobytes() == chunk[:steps].tobytes()
            assert same == (mode == 'receding') or n == 0
        asked += queries


def test_a_policy_that_wants_to_be_asked_early_is(start, namespace, robot):
    stats = robot.node.create_publisher(DiagnosticArray, 'vla_policy/inference_stats', m.RELIABLE)
    start('sim_bridge', *bridge(namespace, episodes=1, max_steps=12))
    assert robot.wait_for(lambda: robot.requests and stats.get_subscription_count())
    for n in range(3):
        assert robot.wait_for(lambda n=n: len(robot.requests) > n)
        stamp = m.to_ns(robot.requests[n].header.stamp)
        stats.publish(m.values_message('inference', {'requery': 5}, stamp))
        robot.spin(0.1)  # two topics keep no order
        robot.answer(n, some_actions(n))
    status = robot.wait_until_done()
    assert (status['queries'], status['requeries'], status['step']) == ('3', '3', '12')
    assert [len(m.actions_from(r)) for r in robot.requests] == [0, 5, 5]


def test_bad_chunks_are_refused_counted_and_explained(start, namespace, robot):
    process = start('sim_bridge', *bridge(namespace, episodes=1, max_steps=8))
    assert robot.wait_for(lambda: robot.requests)
    stamp = m.to_ns(robot.requests[0].header.stamp)
    good = some_actions(0)

    def broken(change) -> None:
        message = m.chunk_message(good, stamp, PERIOD)
        change(message)
        robot.answers.publish(message)
        robot.spin(0.05)  # the queue holds five

    def shape(message):
        message.points[2].positions = [0.0] * 6

    def infinite(message):
        message.points[2].positions[1] = float('inf')

    def names(message):
        message.joint_names = [f'joint{i}' for i in range(7)]

    def empty(message):
        message.points = []

    def rate(message):
        for k, point in enumerate(message.points):
            point.time_from_start.nanosec = k * 100_000_000

    def backward(message):
        message.points = message.points[::-1]

    def units(message):
        message.header.frame_id = Semantics(scale_position=0.02).signature

    changes = (shape, infinite, names, empty, rate, backward, units)
    for change in changes:
        broken(change)
    robot.answers.publish(m.chunk_message(good, stamp + 1, PERIOD))
    robot.spin(0.3)
    assert len(robot.requests) == 1, 'none of them was played'
    robot.answer(0, good)
    status = robot.wait_until_done()
    assert (status['refused'], status['unknown']) == (str(len(changes)), '1')
    assert (status['result'], status['step']) == ('step_limit', '8')
    assert 'chunk refused: every point needs 7 positions' in process.log
    assert 'is of no observation' in process.log


def test_parameters_are_described_validated_and_misspelt_ones_reported(start, namespace, robot):
    process = start(
        'sim_bridge', *bridge(namespace, episodes=0, execution__mod='blend', latency='0.1')
    )
    process.wait_for_log('is ready')
    assert "no parameter 'execution.mod'" in process.log
    described = {d.name: d for d in robot.describe_all('sim_bridge')}
    for spec in BRIDGE:
        assert described[spec.name].description == spec.description
        assert described[spec.name].read_only == spec.read_only
    assert robot.get_parameter('latency', 'sim_bridge') == 0.1
    for name, value, reason in [
        ('execution__mode', 'rtc', 'open_loop, receding, blend, ensemble'),
        ('execution__horizon', -1, ''),
        ('latency', -0.1, ''),
        ('latency', float('nan'), 'out of range'),
        ('initial_state', 50, '0..49'),
        ('mode', 'fast', 'lockstep, realtime'),
        ('backend', 'libero', 'read-only'),
        ('shift', 'sepia:2', "unknown axis 'sepia'; valid: layout"),
        ('shift', 'camera:7', 'camera needs a level from 0 to 5'),
        ('shift__seed', -1, ''),
    ]:
        (refused,) = robot.set_parameters('sim_bridge', **{name: value})
        assert not refused.successful and reason in refused.reason, (name, refused.reason)
    assert robot.get_parameter('execution.mode', 'sim_bridge') == 'open_loop'


def test_the_world_shifts_from_one_episode_to_the_next(start, namespace, robot):
    """The pictures on the topics are those of the same shift without ROS."""
    process = start('sim_bridge', *bridge(namespace, episodes=0, max_steps=8))
    process.wait_for_log('is ready')
    here = ShiftedRobot(make_robot('tabletop'))
    for asked, (shift, seed) in enumerate([('noise:2,camera:4', 3), ('', 0)]):
        set_them = robot.set_parameters('sim_bridge', shift=shift, shift__seed=seed)
        assert all(r.successful for r in set_them)
        number = robot.trigger('sim_bridge/reset_episode').message.split()[1]
        stamp = robot.answer(asked, some_actions(0))
        done = lambda e=number: (  # noqa: E731
            robot.episodes[-1]['episode'] == e and robot.episodes[-1]['state'] == 'done'
        )
        assert robot.wait_for(done), process.log
        assert robot.episodes[-1]['shift'] == shift
        here.change(shift, seed)
        for camera, pixels in here.reset(0, 0).images.items():
            got = decode_rgb(robot.seen[f'{camera}/image_raw'][stamp])
            np.testing.assert_array_equal(got, pixels)
    here.close()


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'shift': 'sepia:1'}, "parameter shift: shift 'sepia:1': unknown axis 'sepia'"),
        ({'shift': 'jump:1', 'backend': 'libero'}, "'jump' does not apply to libero"),
        ({'shift': 'noise:1', 'interface': 'pose'}, "'noise:1' needs interface chunk"),
    ],
)
def test_a_shift_that_cannot_be_played_ends_the_bridge_with_the_cause(
    start, namespace, given, message
):
    process = start('sim_bridge', *bridge(namespace, **given))
    assert process.popen.wait(30) == 1
    assert message in process.log


def test_a_suite_that_is_not_there_ends_the_bridge_with_the_cause(start, namespace):
    process = start('sim_bridge', *bridge(namespace, suite='kitchen'))
    assert process.popen.wait(30) == 1
    assert "unknown suite 'kitchen'; backend 'tabletop' has 'tabletop'" in process.log


def test_a_simulation_that_cannot_start_ends_the_bridge_with_the_cause(
    start, namespace, monkeypatch
):
    monkeypatch.setenv('MUJOCO_GL', 'crayons')
    process = start('sim_bridge', *bridge(namespace))
    assert process.popen.wait(30) == 1
    assert 'simulation failed' in process.log and 'MUJOCO_GL' in process.log


def test_without_any_way_to_render_the_bridge_says_what_to_install(start, namespace, monkeypatch):
    monkeypatch.delenv('MUJOCO_GL', raising=False)
    monkeypatch.setenv('__EGL_VENDOR_LIBRARY_DIRS', '/nonexistent')
    if ctypes.util.find_library('OSMesa'):
        pytest.skip('OSMesa is installed: it renders instead')
    process = start('sim_bridge', *bridge(namespace))
    assert process.popen.wait(30) == 1
    assert 'no way to render' in process.log and 'apt install' in process.log


@pytest.mark.parametrize('mode', ['lockstep', 'realtime'])
def test_a_policy_that_is_killed_and_started_again_goes_on_with_the_episode(
    start, checkpoint, namespace, watcher, mode
):
    from conftest import REPOSITORY

    params = ['--params-file', str(REPOSITORY / 'config' / 'sim.yaml')]
    command = [
        'policy_node', '--ros-args', '-r', f'__ns:={namespace}', *params,
        '-p', f'checkpoint:={checkpoint}',
    ]  # fmt: skip
    policy = start(*command)
    simulation = start(
        'sim_bridge', *bridge(namespace, *params, mode=mode, episodes=1, max_steps=400)
    )
    assert watcher.wait_for(lambda: len(watcher.requests) > 2, 60.0), policy.log + simulation.log
    os.killpg(policy.popen.pid, signal.SIGKILL)
    policy.popen.wait()
    watcher.spin(patience(1.0))  # until it has the last chunks of the killed one
    answered = len(watcher.chunks)
    policy = start(*command)
    more = lambda: len(watcher.chunks) > answered + 2  # noqa: E731
    assert watcher.wait_for(more, 60.0), policy.log + simulation.log
    running = watcher.episodes[-1]
    assert (running['episode'], running['state']) == ('1', 'running')
    # In lockstep a request is not sent before the readers have what it is about: the killed one,
    # too, until DDS gives it up.
    assert int(running['resent']) >= 1 or 'a reader confirms nothing' in simulation.log
    if mode == 'realtime':
        assert int(running['starved']) >= 1
        assert 'holds still' in simulation.log
    for process in (policy, simulation):
        assert process.end()[0] == 0, process.log


@pytest.mark.parametrize(
    ('state', 'number'),
    [
        ('starting', signal.SIGINT), ('starting', signal.SIGTERM), ('idle', signal.SIGTERM),
        ('alone', signal.SIGINT), ('running', signal.SIGTERM),
    ],
)  # fmt: skip
def test_signals_end_the_bridge_in_every_state(start, namespace, ros, state, number):
    parameters = {
        'starting': {}, 'alone': {}, 'idle': {'episodes': 0},
        'running': {'mode': 'realtime', 'max_steps': 1000},
    }[state]  # fmt: skip
    peer = Robot(namespace) if state == 'running' else None
    process = start('sim_bridge', *bridge(namespace, **parameters))
    if state == 'starting':
        wait_for_handlers(process)
    elif state == 'running':
        peer.answer(0, some_actions(0))
        assert peer.wait_for(lambda: len(peer.requests) > 1)
        peer.close()
    else:
        process.wait_for_log('is ready' if state == 'idle' else 'waiting for a policy')
    code, seconds = process.end(number)
    assert (code, seconds < 2.0) == (0, True), (code, seconds, process.log)
    assert 'Traceback' not in process.log


def wait_for_handlers(process) -> None:
    """Until the process catches SIGTERM: before, Python itself is starting."""
    status = f'/proc/{process.popen.pid}/status'
    deadline = time.monotonic() + 20
    while True:
        with open(status) as lines:
            caught = next(int(line.split()[1], 16) for line in lines if line.startswith('SigCgt'))
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        assert time.monotonic() < deadline
        time.sleep(0.002)
