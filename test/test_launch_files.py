# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The launch files fit the nodes. Those marked launch_system run launch, the others read text."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from vla_prune_ros.__main__ import VERBS
from vla_prune_ros.nodes import launch_arguments
from vla_prune_ros.nodes.policy.modes import pruning_specs
from vla_prune_ros.nodes.policy.parameters import POLICY, PRUNING
from vla_prune_ros.nodes.robot.parameters import ROBOT
from vla_prune_ros.nodes.simulation.parameters import BRIDGE
from vla_prune_ros.pruning import MODES

FILES = {
    path.name.split('.')[0]: path for path in sorted((REPOSITORY / 'launch').glob('*.launch.py'))
}
SPECS = {
    'vla_policy': {spec.name: spec for spec in (*POLICY, *pruning_specs())},
    'sim_bridge': {spec.name: spec for spec in BRIDGE},
    'robot_bridge': {spec.name: spec for spec in ROBOT},
}
TABLES = {
    'MODEL': 'vla_policy',
    'ROBOT': 'vla_policy',
    'ARM_POLICY': 'vla_policy',
    'ARM': 'robot_bridge',
    'SIMULATION': 'sim_bridge',
}
EXECUTABLES = {
    'policy_node': 'vla_policy', 'sim_bridge': 'sim_bridge', 'robot_bridge': 'robot_bridge'
}  # fmt: skip


def table(name: str) -> dict:
    return getattr(launch_arguments, name)


class Source:
    """What a launch file says, read without running it."""

    def __init__(self, path) -> None:
        self.tree = ast.parse(path.read_text())
        self.constants = {
            node.targets[0].id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign)
        }

    def calls(self, name: str) -> list[ast.Call]:
        return [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == name
        ]

    def tables(self, function: str) -> set[str]:
        """Names of the tables that are handed to a function."""
        nodes = [node for call in self.calls(function) for node in ast.walk(call)]
        return {node.id for node in nodes if isinstance(node, ast.Name)} & set(TABLES)

    def topics(self) -> set[str]:
        topics = self.constants.get('TOPICS')
        return {key.value for key in topics.keys} if topics else set()

    def own(self) -> dict[str, ast.Call]:
        """Arguments that are declared one by one."""
        calls = self.calls('DeclareLaunchArgument')
        return {c.args[0].value: c for c in calls if isinstance(c.args[0], ast.Constant)}

    def declared(self) -> set[str]:
        """The names of all arguments."""
        of_tables = {name for t in self.tables('declarations') for name in table(t)}
        return {*self.own(), *self.topics(), *of_tables}


@pytest.fixture(params=FILES.values(), ids=FILES)
def source(request) -> Source:
    return Source(request.param)


def test_choices_of_the_pruning_argument_are_the_modes():
    assert PRUNING.choices == tuple(MODES)


@pytest.mark.parametrize('name', TABLES)
def test_arguments_are_those_of_parameters_that_exist(name):
    assert table(name)
    for argument, spec in table(name).items():
        if spec.name != 'use_sim_time':  # every node has it
            assert SPECS[TABLES[name]][spec.name] == spec, argument


def test_every_argument_is_described_and_has_a_default(source):
    assert len(source.declared()) > 5
    for name, call in source.own().items():
        words = {k.arg: k.value for k in call.keywords}
        assert words['description'].value and 'default_value' in words, name


def test_no_argument_is_declared_in_vain(source):
    assert source.tables('declarations') == source.tables('given') != set()
    used = {
        node.slice.value
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    }
    assert set(source.own()) == used


def test_nodes_have_the_names_that_the_documentation_uses(source):
    nodes = source.calls('Node')
    assert nodes
    for node in nodes:
        words = {k.arg: k.value for k in node.keywords}
        assert words['package'].value == 'vla_prune_ros'
        executable = words['executable'].value
        assert executable in VERBS
        if 'name' in words or executable in EXECUTABLES:
            assert EXECUTABLES[executable] == words['name'].value


def test_the_pages_on_robots_use_arguments_and_parameters_that_exist():
    pages = [(REPOSITORY / 'doc' / f'{name}.md').read_text() for name in ('robot', 'node')]
    text = '\n'.join(pages)
    commands = ' '.join(text.replace('\\\n', ' ').split())
    for name in ('policy', 'robot', 'sim'):
        declared = Source(FILES[name]).declared()
        calls = re.findall(
            rf'ros2 launch vla_prune_ros {name}.launch.py ([^`|]*?)(?:`| \|)', commands
        )
        used = {argument for call in calls for argument in re.findall(r'(\w+):=', call)}
        assert used and used <= declared, used - declared
    for topic in Source(FILES['policy']).topics():
        assert f'`{topic}`' in text, topic
    named = set(re.findall(r'`((?:sync|pruning\.mode|max)[\w.]*|finger_joints)`', text))
    assert named and named <= set(SPECS['vla_policy'])
    named = set(re.findall(r'`((?:limits|frames|topics|joints|permit)\.\w+)`', pages[0]))
    assert len(named) > 10 and named <= set(SPECS['robot_bridge'])


@pytest.fixture
def launched(monkeypatch):
    """Runs a launch file with arguments; what it would start."""
    launch = pytest.importorskip('launch', reason='the ROS 2 launch system is not installed')
    pytest.importorskip('launch_ros', reason='the ROS 2 launch system is not installed')
    from ament_index_python import packages

    monkeypatch.setattr(packages, 'get_package_share_directory', lambda _: str(REPOSITORY))

    def run(name: str, **arguments: str):
        description = runpy.run_path(str(FILES[name]))['generate_launch_description']()
        context = launch.LaunchContext()
        context.launch_configurations.update(arguments)
        started = []
        for entity in description.entities:
            started += entity.visit(context) or []
        return description, started

    return run


@pytest.mark.launch_system
@pytest.mark.parametrize('name', FILES)
def test_launch_itself_lists_the_same_arguments(name, launched):
    arguments = launched(name)[0].get_launch_arguments()
    assert {argument.name for argument in arguments} == Source(FILES[name]).declared()
    assert all(argument.description for argument in arguments)
    for argument in arguments:
        for spec in (table(t).get(argument.name) for t in TABLES):
            if spec is not None:
                assert argument.default_value[0].text == '', 'it would win over the file'
                assert bool(argument.choices) is bool(
                    spec.choices or isinstance(spec.default, bool)
                )


@pytest.mark.launch_system
def test_arguments_become_parameters_of_their_type(launched):
    from launch import LaunchContext

    context = LaunchContext()
    names = {name: '' for t in TABLES for name in table(t)}
    given = {'pruning': 'random', 'enabled': 'false', 'episodes': '3', 'latency': '0.25'}
    context.launch_configurations.update(names | given)
    assert launch_arguments.given(context, table('MODEL')) == {'pruning.mode': 'random'}
    assert launch_arguments.given(context, table('ROBOT')) == {'enabled': False}
    assert launch_arguments.given(context, table('SIMULATION')) == {'episodes': 3, 'latency': 0.25}


@pytest.mark.launch_system
def test_an_argument_of_another_type_or_choice_ends_the_launch(launched):
    with pytest.raises(RuntimeError, match=r"argument episodes: 'many' is not int"):
        launched('sim', episodes='many')
    with pytest.raises(RuntimeError, match=r'pruning.*specprune'):
        launched('policy', pruning='magic')


# -- failures are not hidden ---------------------------------------------------------------------
RUN = """
import sys
from launch.actions import ExecuteProcess, IncludeLaunchDescription, TimerAction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch import LaunchDescription, LaunchService
seconds, file, *words = sys.argv[1:]
source = PythonLaunchDescriptionSource(file)
arguments = [tuple(word.split(':=', 1)) for word in words]
service = LaunchService(noninteractive=True)
other = ExecuteProcess(cmd=['sleep', seconds], name='other', output='screen')
include = IncludeLaunchDescription(source, launch_arguments=arguments)
service.include_launch_description(LaunchDescription([include, other]))
sys.exit(service.run())
"""


@pytest.fixture
def launch_beside(tmp_path, monkeypatch):
    """Includes a launch file beside another process; returns exit code and output."""
    pytest.importorskip('launch_ros', reason='the ROS 2 launch system is not installed')
    pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')
    prefix = tmp_path / 'prefix'
    share, programs = prefix / 'share', prefix / 'lib' / 'vla_prune_ros'
    programs.mkdir(parents=True)
    index = share / 'ament_index' / 'resource_index' / 'packages' / 'vla_prune_ros'
    index.parent.mkdir(parents=True)
    index.touch()
    (share / 'vla_prune_ros').symlink_to(REPOSITORY)
    for verb in (*EXECUTABLES, 'record'):
        (programs / verb).write_text(
            f'#!/bin/sh\nexec {sys.executable} -m vla_prune_ros {verb} "$@"'
        )
        (programs / verb).chmod(0o755)
    before = os.environ.get('AMENT_PREFIX_PATH', '')
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{prefix}:{before}')
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))

    def run(name: str, *arguments: str, beside: int = 100) -> tuple[int, str]:
        file = str(REPOSITORY / 'launch' / f'{name}.launch.py')
        done = subprocess.run(
            [sys.executable, '-c', RUN, str(beside), file, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout

    return run


@pytest.mark.launch_system
@pytest.mark.parametrize(
    ('name', 'argument', 'reason'),
    [
        ('policy', 'params_file:=/nowhere.yaml', 'params file /nowhere.yaml'),
        ('sim', 'params_file:=/nowhere.yaml', 'params file /nowhere.yaml'),
        ('sim', f'params_file:={REPOSITORY}/config/policy.yaml', 'no section for /sim_bridge'),
        ('sim', 'task:=juggle', "unknown task 'juggle'"),
        ('sim', 'initial_state:=900', '900 is outside 0..49'),
        ('sim', f'record:={REPOSITORY}/config', 'record-1 ended with exit code'),
        ('robot', 'robot:=nobody', 'there are aloha, franka_crisp'),
        ('robot', 'robot:=/nowhere.yaml', 'params file /nowhere.yaml'),
        ('robot', 'images:=front', "argument images: 'front' is not NAME=TOPIC"),
        ('robot', 'speed_scale:=fast', "argument speed_scale: 'fast' is not float"),
    ],
)
def test_a_launch_that_cannot_do_what_it_was_told_ends_with_an_error(
    launch_beside, name, argument, reason
):
    code, output = launch_beside(name, argument)
    assert code == 1 and reason in output, output


@pytest.mark.launch_system
@pytest.mark.parametrize('required', ['false', 'true'])
def test_a_policy_that_ends_takes_what_was_launched_beside_it_with_it_only_if_required(
    launch_beside, required, tmp_path
):
    file = tmp_path / 'robot.yaml'
    file.write_text('vla_policy: {ros__parameters: {control_rate: fast}}')
    code, output = launch_beside(
        'policy', f'params_file:={file}', f'required:={required}',
        beside=100 if required == 'true' else 25,
    )  # fmt: skip
    assert "parameter control_rate: 'fast' is not a number" in output
    assert code == (required == 'true'), output
    finished = '[other-2]: process has finished cleanly' in output
    assert finished == (required == 'false'), output
