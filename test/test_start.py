# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What both nodes are started with: files of parameters, wrong values, threads."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

from bridge_peer import Robot, bridge
from conftest import REPOSITORY, Process
from rclpy.parameter import parameter_dict_from_yaml_file
from rclpy.parameter_client import AsyncParameterClient

from vla_prune_ros.nodes.policy.loading import default_threads
from vla_prune_ros.ros.parameters import ParameterError, check_file

NAMES = {'policy_node': 'vla_policy', 'sim_bridge': 'sim_bridge'}


def refusal(process) -> str:
    """The one line with which a node ends that is not to start."""
    assert process.popen.wait(30) == 1, process.log
    (line,) = (text for text in process.log.splitlines() if '[INFO]' not in text)
    return line


@pytest.mark.parametrize(
    ('verb', 'given', 'valid'),
    [
        ('policy_node', 'pruning.mode:=best', "'best' is not one of none, specprune"),
        ('policy_node', 'control_rate:=20', '20 is not a number such as 1.0 from 0.1 to 1000.0'),
        ('policy_node', 'cameras:=[a,a]', "['a', 'a'] are not different names"),
        ('sim_bridge', 'execution.mode:=rtc', "'rtc' is not one of open_loop, receding"),
        ('sim_bridge', 'latency:=-1.0', '-1.0 is not a number such as 1.0 from 0.0 to 10.0'),
        ('sim_bridge', 'episodes:=many', "'many' is not an integer from -1"),
        ('sim_bridge', 'task:=juggle', "unknown task 'juggle'; suite 'tabletop' has ['pick_up_"),
        ('sim_bridge', 'task:=80', 'task index 80 is outside 0..7'),
        ('sim_bridge', 'task:=true', 'True is not a text'),
        ('sim_bridge', 'initial_state:=50', '50 is outside 0..49'),
    ],
)
def test_a_wrong_value_ends_a_node_with_one_line(start, verb, given, valid):
    line = refusal(start(verb, '--ros-args', '-p', given))
    assert f'parameter {given.split(":=")[0]}: ' in line and valid in line


@pytest.mark.parametrize('verb', NAMES)
def test_a_file_of_parameters_that_would_leave_a_node_on_its_defaults_is_refused(
    start, tmp_path, verb
):
    file = tmp_path / 'robot.yaml'
    line = refusal(start(verb, '--ros-args', '--params-file', str(file)))
    assert str(file) in line
    file.write_text('/vla_polcy: {ros__parameters: {enabled: false}}\n')
    line = refusal(start(verb, '--ros-args', '--params-file', str(file)))
    assert f'no section for /{NAMES[verb]}, only for /vla_polcy' in line


@pytest.mark.parametrize('section', ['robot', '/robot', '/**', '/*', '/left/robot', '/**/robot'])
def test_sections_of_a_file_match_as_in_ros(tmp_path, section):
    file = tmp_path / 'robot.yaml'
    file.write_text(f'{section}: {{ros__parameters: {{}}}}\n')
    for node in ('/robot', '/left/robot', '/other'):
        fits = {
            'robot': node == '/robot', '/robot': node == '/robot', '/**': True,
            '/*': node.count('/') == 1, '/left/robot': node == '/left/robot',
            '/**/robot': node.endswith('robot'),
        }[section]  # fmt: skip
        if fits:
            check_file(str(file), node)
        else:
            with pytest.raises(ParameterError, match=f'for {node}'):
                check_file(str(file), node)


@pytest.mark.parametrize('content', ['', '[1, 2]', 'a: [', 'x: {ros__parameters', '\x00'])
def test_what_is_no_file_of_parameters_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / 'robot.yaml'
    file.write_text(content)
    with pytest.raises(ParameterError) as caught:
        check_file(str(file), '/robot')
    assert '\n' not in str(caught.value)


def test_the_file_for_run_time_is_taken_as_ros2_param_load_takes_it(ros, start, namespace):
    """With the reader of `ros2 param load`, which knows no section such as /**/vla_policy."""
    file = str(REPOSITORY / 'config' / 'run_time.yaml')
    robot = Robot(namespace)
    policy = start(
        'policy_node', '--ros-args', '-r', f'__ns:={namespace}', '-p', 'autostart:=false'
    )
    start('sim_bridge', *bridge(namespace, episodes=0)).wait_for_log('is ready')
    for name in NAMES.values():
        parameters = parameter_dict_from_yaml_file(file, True, [f'/{name}'])
        client = AsyncParameterClient(robot.node, f'{namespace}/{name}')
        assert robot.wait_for(client.services_are_ready), policy.log
        future = client.set_parameters(list(parameters.values()))
        assert robot.wait_for(future.done)
        results = dict(zip(parameters, future.result().results, strict=True))
        assert len(results) > 4
        assert {n: r.reason for n, r in results.items() if not r.successful} == {}
    robot.close()


@pytest.mark.parametrize('wanted', [None, 'ACTIVE'])
def test_waiting_threads_of_the_model_leave_the_cores_to_others(start, monkeypatch, wanted):
    """The OpenMP of torch says with what it runs; what the user wants is left alone."""
    monkeypatch.setenv('OMP_DISPLAY_ENV', 'true')
    monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)
    if wanted:
        monkeypatch.setenv('OMP_WAIT_POLICY', wanted)
    process = start('policy_node', '--ros-args', '-p', 'autostart:=false')
    log = process.wait_for_log('OPENMP DISPLAY ENVIRONMENT END')
    assert f"OMP_WAIT_POLICY = '{wanted or 'PASSIVE'}'" in log


def test_the_model_takes_half_of_the_cores_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    for cores, threads in [(1, 1), (2, 1), (3, 1), (8, 4)]:
        monkeypatch.setattr(os, 'sched_getaffinity', lambda _, n=cores: set(range(n)))
        assert default_threads() == threads
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert default_threads() == 0, 'torch has read it already'


def test_every_shipped_file_names_the_nodes_it_is_for():
    for name, nodes in {
        'policy': ['/vla_policy'], 'sim': ['/vla_policy', '/sim_bridge'],
        'run_time': ['/vla_policy', '/sim_bridge'],
    }.items():  # fmt: skip
        check_file(str(Path(REPOSITORY, 'config', f'{name}.yaml')), *nodes)


@pytest.mark.parametrize('where', ['start', 'close'])
def test_a_node_that_hangs_says_where_and_ends_after_a_signal(tmp_path, where):
    """Whoever sent the signal may be gone, so that nobody kills it."""
    program = tmp_path / 'hanging.py'
    program.write_text(
        'import sys, threading\n'
        'from rclpy.node import Node\n'
        'from vla_prune_ros.ros import process\n'
        'process.END = 0.5\n'
        'class Hanging(Node):\n'
        '    failed = False\n'
        '    def start(self): self.reach("start")\n'
        '    def close(self): self.reach("close")\n'
        '    def reach(self, where):\n'
        '        print("in", where, flush=True)\n'
        '        threading.Event().wait() if where == sys.argv[1] else None\n'
        'process.run_node(lambda stop: Hanging("hanging"), [], "hanging", "")\n'
    )
    process = Process(tmp_path, '', where, program=(str(program),))
    try:
        process.wait_for_log('in start')
        assert process.end(signal.SIGTERM)[0] == 1
        assert f'"{program}", line 11 in reach' in process.log
    finally:
        process.kill()
