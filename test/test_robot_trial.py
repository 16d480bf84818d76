# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Policy, robot bridge and an arm of physics that takes only commands, over DDS in real time."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

from conftest import REPOSITORY, patience
from robot_peer import OtherRobot

from vla_prune_ros.trials import robot_path, robot_report, robot_trial
from vla_prune_ros.trials.robot_path import RobotEpisode

LIMIT = 170
BRIDGE = robot_trial.given(robot_trial.BRIDGE)


def trial(folder, *arguments, timeout=LIMIT) -> list[dict]:
    """The cells of a trial that ran to its end."""
    command = [sys.executable, '-m', 'vla_prune_ros', 'robot_trial', '--out', str(folder)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / robot_trial.PAGE).read_text() in done.stdout
    return json.loads((folder / robot_trial.JSON).read_text())['cells']


def node_arguments(namespace, parameters, *remaps):
    words = [w for p in parameters for w in ('-p', p)]
    return ['--ros-args', '-r', f'__ns:={namespace}', *words, *remaps]


@pytest.fixture
def arm(request, start, namespace):
    """Starts a simulated arm and a bridge for an output; the bridge's process is given back."""

    def make(output, *parameters):
        simulation = [
            'episodes:=0', f'interface:={output}',
            f'interface.stiffness:={robot_trial.STIFFNESS[output]}',
        ]  # fmt: skip
        start('sim_bridge', *node_arguments(namespace, simulation, *robot_trial.DRIVER))
        bridge = [*BRIDGE, f'output:={output}', *parameters]
        return start('robot_bridge', *node_arguments(namespace, bridge))

    return make


def test_policy_bridge_and_arm_solve_a_task_by_poses_and_by_velocities(tmp_path):
    cells = trial(tmp_path, '--output', 'pose,twist', '--episodes', '1')
    assert [c['output'] for c in cells] == ['pose', 'twist']
    assert all(c['successes'] == 1 and not c['stops'] for c in cells)
    assert all(c['jerk_rms'] > 0 and c['tracking_error_p95'] > 0 for c in cells)


@pytest.mark.parametrize('output', ['pose', pytest.param('twist', marks=pytest.mark.slow)])
def test_the_75_mm_check_passes_on_the_arm_that_an_output_is_for(arm, namespace, output):
    bridge = arm(output, 'follow_episodes:=""')
    bridge.wait_for_log('output')
    command = [sys.executable, '-m', 'vla_prune_ros', 'robot_check', '--namespace', namespace]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1 and '--go' in refused.stderr
    done = subprocess.run(
        [*command, '--go', '--patience', '60'],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + bridge.log
    assert '75 mm along y were to be expected' in done.stdout


@pytest.mark.parametrize('output', ['pose', pytest.param('twist', marks=pytest.mark.slow)])
def test_what_robot_launch_starts_plays_together(ros, start, namespace, output):
    """The same files, remappings and arguments, without launch itself."""
    source = (REPOSITORY / 'launch' / 'robot.launch.py').read_text()
    constants = {
        node.targets[0].id: node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
    }
    state, driver = (
        [w for a, b in ast.literal_eval(constants[name]) for w in ('-r', f'{a}:={b}')]
        for name in ('STATE', 'DRIVER')
    )
    file = ['--params-file', str(REPOSITORY / 'config' / 'robots' / f'tabletop_{output}.yaml')]
    arguments = ['dry_run:=false', 'speed_scale:=1.0']
    processes = [
        start('policy_node', *node_arguments(namespace, ['torch_threads:=1'], *state, *file)),
        start('robot_bridge', *node_arguments(namespace, arguments, *file)),
        start('sim_bridge', *node_arguments(namespace, [], *driver, *file)),
    ]
    watcher = Watcher(namespace)
    try:
        watcher.enable()
        watcher.moving()
    finally:
        watcher.close()
    for process in processes:
        assert process.end()[0] == 0, process.log


@pytest.mark.parametrize(
    ('parameter', 'reason'),
    [('backend:=libero', 'only backend tabletop'), ('recorder:=recorder', 'waits for nobody')],
)
def test_a_driver_that_cannot_be_says_why(start, namespace, parameter, reason):
    process = start('sim_bridge', *node_arguments(namespace, ['interface:=pose', parameter]))
    assert process.popen.wait(30) == 1
    assert reason in process.log


# -- without nodes -----------------------------------------------------------------------------
def test_jerk_is_that_of_the_path_and_leaves_out_what_is_irregular():
    times = 0.05 * np.arange(40)
    path = [(t, np.array([t**3, 0.0, 0.0])) for t in times]
    assert robot_path.jerk_rms(path) == pytest.approx(6.0)
    jumped = [(t + (5.0 if k > 20 else 0.0), p) for k, (t, p) in enumerate(path)]
    assert robot_path.jerk_rms(jumped) == pytest.approx(6.0)
    assert np.isnan(robot_path.jerk_rms(path[:3]))


def test_the_page_has_every_cell_and_every_stop():
    bridge = dict.fromkeys(robot_trial.BRIDGE_VALUES, '0.5')
    episodes = [
        RobotEpisode('chunk', 0.0, 'a', 0, True, 60, 0, 0, 5.0),
        RobotEpisode('pose', 0.15, 'a', 0, True, 70, 7, 1, 6.0, '', bridge),
        RobotEpisode('pose', 0.15, 'b', 0, False, 120, 12, 0, 8.0, 'the arm moved', bridge),
    ]
    cells = robot_report.cells(episodes)
    assert [(c['output'], c['successes'], c['episodes']) for c in cells] == [
        ('chunk', 1, 1), ('pose', 1, 2),
    ]  # fmt: skip
    assert cells[1]['starved'] == pytest.approx(19 / 190) and cells[1]['jerk_rms'] == 7.0
    run = {
        'command': 'x', 'environment': {'date': 'd', 'cpu': 'c', 'cores': 2}, 'note': 'busy',
        'load_average': [1.0, 2.0], 'lockstep': False,
    }  # fmt: skip
    page = robot_report.markdown(run, cells)
    assert 'load average 1.0 before' in page
    assert 'no clock' in robot_report.markdown(run | {'lockstep': True}, cells)
    assert 'busy' in page and '| pose ' in page and '- pose, 0.15 s: the arm moved' in page


def test_a_trial_goes_on_where_it_was_and_not_with_other_settings(tmp_path):
    path = tmp_path / 'out' / 'episodes.jsonl'
    first = RobotEpisode('pose', 0.05, 'a', 3, True, 60, 0, 0, 5.0, '', {'x': '1'})
    robot_path.Ledger(path, {'execution': 'blend'}).add(first)
    again = robot_path.Ledger(path, {'execution': 'blend'})
    assert again.episodes == [first]
    assert again.has('pose', 0.05, 'a', 3) and not again.has('pose', 0.0, 'a', 3)
    with pytest.raises(ValueError, match='another trial'):
        robot_path.Ledger(path, {'execution': 'open_loop'})


def test_in_lockstep_every_output_is_as_good_as_the_simulators_own_execution(tmp_path):
    def run(name):
        words = [
            '--lockstep',
            '--episodes',
            '1',
            '--latency',
            '0.15',
            '--out',
            f'{tmp_path}/{name}',
        ]
        assert robot_trial.main(words) == 0
        return json.loads((tmp_path / name / robot_trial.JSON).read_text())['cells']

    chunk, pose, twist = first = run('a')
    assert [c['successes'] for c in first] == [1] * 3
    assert abs(chunk['steps'] - pose['steps']) <= 2
    assert pose['chunk_arrival_p50'] == twist['chunk_arrival_p50'] == pytest.approx(0.2)
    assert run('b') == first, 'the same numbers on every machine'
    before = (tmp_path / 'a' / robot_trial.LEDGER).read_text()
    assert run('a') == first
    assert (tmp_path / 'a' / robot_trial.LEDGER).read_text() == before, 'nothing was left to run'


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['--output', 'joints'], 'chunk, pose, twist'),
        (['--latency', '-1'], 'latencies from 0 on'),
        (['--episodes', '0'], 'an episode'),
    ],
)
def test_a_trial_that_cannot_be_says_why(arguments, reason, capsys):
    assert robot_trial.main(arguments) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize('output', ['pose', 'twist'])
@pytest.mark.parametrize('victim', ['policy', 'bridge', 'arm'])
def test_whatever_is_killed_in_motion_the_last_command_is_to_hold_still(
    ros, start, namespace, output, victim
):
    """Physics behind the driver's interface; the policy is a real one if it is to be killed."""
    simulation = [
        'episodes:=-1', f'interface:={output}',
        f'interface.stiffness:={robot_trial.STIFFNESS[output]}',
    ]  # fmt: skip
    bridge = [*BRIDGE, f'output:={output}', 'hold_timeout:=2.0']
    processes = {
        'arm': start('sim_bridge', *node_arguments(namespace, simulation, *robot_trial.DRIVER)),
        'bridge': start('robot_bridge', *node_arguments(namespace, bridge)),
    }
    if victim == 'policy':
        policy = ['torch_threads:=1', 'trigger:=request']
        processes['policy'] = start('policy_node', *node_arguments(namespace, policy))
    watcher = Watcher(namespace, output, None if victim == 'policy' else 0.3)
    try:
        watcher.enable()
        watcher.moving()
        os.killpg(processes[victim].popen.pid, signal.SIGKILL)
        processes[victim].popen.wait()
        log = processes['bridge'].log
        if victim == 'bridge':  # nobody is left to say it: velocities run out, poses stay
            assert watcher.stands_still(patience(0.7), 0.02)
            return
        if victim == 'policy':
            assert watcher.is_in('holding', 'no action to play', 3.0), log
            assert watcher.stands_still(patience(0.4), 0.02)
            watcher.spin(0.1)
            assert watcher.holds()
            assert watcher.is_in('stopped', 'held still for 2 s')
        else:
            assert watcher.is_in('stopped', ': the newest is'), log  # pose and joints end together
        watcher.spin(0.1)
        assert watcher.holds()
    finally:
        watcher.close()


# -- long --------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('output', ['pose', 'twist'])
def test_the_bridge_is_as_good_as_the_simulators_own_execution(tmp_path, output):
    cells = trial(tmp_path, '--output', f'chunk,{output}', '--episodes', '16', timeout=800)
    own, bridge = (c['successes'] for c in cells)
    assert bridge >= own - 1
    assert not cells[1]['stops']


class Watcher(OtherRobot):
    """Another one's arm; the policy is another one's, too, unless it `moves`."""

    def __init__(self, namespace: str, output: str = 'pose', moves: float | None = None) -> None:
        super().__init__(namespace, output, name='watcher')
        self.moves, self.state_off, self.joints_off = moves, True, True
        if moves is None:
            for publisher in (
                self.chunks,
                self.info,
            ):  # or there were two
                self.node.destroy_publisher(publisher)
        self._seen: list[tuple[float, np.ndarray]] = []
        from geometry_msgs.msg import PoseStamped

        self.node.create_subscription(PoseStamped, 'arm/pose', self._on_seen, 5)

    def _tick(self) -> None:
        """There is no arm here."""
        self._k += 1
        if self.moves is not None and self._k % 5 == 0:
            self.chunk(self.moves, age=0.03)

    def _on_command(self, message) -> None:
        self.commands = [*self.commands[-20:], (time.monotonic(), message)]

    def holds(self) -> bool:
        """Whether the last commands are to hold still: no velocity, or one and the same pose."""
        last = [message for _, message in self.commands[-8:]]
        if self.output == 'twist':
            vectors = [v for m in last for v in (m.twist.linear, m.twist.angular)]
            return not any((v.x, v.y, v.z) != (0.0, 0.0, 0.0) for v in vectors)
        return len({(m.pose.position.x, m.pose.position.y, m.pose.position.z) for m in last}) == 1

    def _on_seen(self, message) -> None:
        stamp, p = message.header.stamp, message.pose.position
        at = stamp.sec + 1e-9 * stamp.nanosec
        self._seen = [*self._seen[-10:], (at, np.array([p.x, p.y, p.z]))]
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        if end > begin:
            self.speed = float(np.linalg.norm(last - first)) / (end - begin)
