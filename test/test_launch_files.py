# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The launch files fit the nodes. All tests but the last read them as text, without launch."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from vla_prune_ros.nodes.policy.parameters import POLICY, pruning_specs
from vla_prune_ros.nodes.simulation.parameters import BRIDGE
from vla_prune_ros.pruning import MODES

FILES = sorted((REPOSITORY / 'launch').glob('*.launch.py'))
SPECS = {
    'vla_policy': {spec.name: spec for spec in (*POLICY, *pruning_specs())},
    'sim_bridge': {spec.name: spec for spec in BRIDGE},
}
TABLES = {'POLICY': 'vla_policy', 'BRIDGE': 'sim_bridge'}  # of a launch file, and their nodes
EXECUTABLES = {'policy_node': 'vla_policy', 'sim_bridge': 'sim_bridge'}
KINDS = {'str': str, 'int': int, 'float': float}


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

    def declared(self) -> dict[str, dict[str, ast.expr]]:
        """Argument -> keywords of its declaration; those made in a loop by their table."""
        found = {}
        for call in self.calls('DeclareLaunchArgument'):
            words = {k.arg: k.value for k in call.keywords}
            if isinstance(call.args[0], ast.Constant):
                found[call.args[0].value] = words
            else:
                found |= {key.value: words for key in self.constants['TOPICS'].keys}
        return found

    def table(self, name: str) -> dict[str, tuple[str, type]]:
        """Argument -> parameter and type, of POLICY or BRIDGE."""
        if name not in self.constants:
            return {}
        node = self.constants[name]
        result = {}
        if name == 'POLICY' and 'SWITCHES' in self.constants:
            switches = ast.literal_eval(self.constants['SWITCHES'])
            result = {name: (name, bool) for name in switches}
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(value, ast.Tuple):
                parameter, kind = value.elts
                result[key.value] = (parameter.value, KINDS[kind.id])
            else:
                result[key.value] = (value.value, str)
        return result

    def words(self) -> set[str]:
        """All strings that are used as values."""
        return {n.value for n in ast.walk(self.tree) if isinstance(n, ast.Constant)}


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def source(request) -> Source:
    return Source(request.param)


def test_every_argument_is_described_and_has_a_default(source):
    assert len(source.declared()) > 5
    for name, words in source.declared().items():
        assert 'default_value' in words, name
        description = words['description']
        assert isinstance(description, ast.JoinedStr) or description.value, name


def test_arguments_set_parameters_that_exist_with_their_type(source):
    checked = 0
    for table, node in TABLES.items():
        for argument, (parameter, kind) in source.table(table).items():
            assert argument in source.declared()
            if parameter != 'use_sim_time':  # every node has it
                assert type(SPECS[node][parameter].default) is kind, parameter
            assert source.declared()[argument]['default_value'].value == '', (
                'a default would win over the file of parameters'
            )
            checked += 1
    assert checked >= 5


def test_choices_are_those_of_the_parameters(source):
    assert ast.literal_eval(source.constants['PRUNING']) == tuple(MODES)
    for table, node in TABLES.items():
        for argument, (parameter, _) in source.table(table).items():
            spec, words = SPECS[node].get(parameter), source.declared()[argument]
            if spec is None or isinstance(spec.default, bool):
                assert ast.literal_eval(words['choices']) == ['', 'true', 'false']
                continue
            if not spec.choices:
                assert 'choices' not in words, argument
                continue
            first, *rest = words['choices'].elts
            assert first.value == ''
            if isinstance(rest[0], ast.Starred):
                constant = {'PRUNING': 'pruning.mode', 'BACKENDS': 'backend',
                            'EXECUTION_MODES': 'execution.mode'}  # fmt: skip
                assert constant[rest[0].value.id] == parameter
            else:
                assert tuple(c.value for c in rest) == spec.choices


def test_no_argument_is_declared_in_vain(source):
    used = {
        call.args[0].value
        for name in ('LaunchConfiguration', 'value')
        for call in source.calls(name)
        if isinstance(call.args[0], ast.Constant)
    }
    used |= {argument for table in TABLES for argument in source.table(table)}
    if 'TOPICS' in source.constants:
        used |= {key.value for key in source.constants['TOPICS'].keys}
    assert set(source.declared()) == used


def test_nodes_have_the_names_that_the_documentation_uses(source):
    nodes = source.calls('Node')
    assert nodes
    for node in nodes:
        words = {k.arg: k.value for k in node.keywords}
        assert words['package'].value == 'vla_prune_ros'
        if words['executable'].value == 'record':  # it chooses its name itself
            assert 'name' not in words
            continue
        assert EXECUTABLES[words['executable'].value] == words['name'].value


def test_the_page_on_robots_uses_arguments_and_parameters_that_exist():
    text = (REPOSITORY / 'doc' / 'robot.md').read_text()
    commands = ' '.join(text.replace('\\\n', ' ').split())
    for name in ('policy', 'sim'):
        declared = set(Source(REPOSITORY / 'launch' / f'{name}.launch.py').declared())
        (call,) = re.findall(
            rf'ros2 launch vla_prune_ros {name}.launch.py ([^`|]*?)(?:`| \|)', commands
        )
        used = set(re.findall(r'(\w+):=', call))
        assert used and used <= declared, used - declared
    topics = Source(REPOSITORY / 'launch' / 'policy.launch.py').constants['TOPICS']
    for topic in topics.keys:
        assert f'`{topic.value}`' in text, topic.value
    named = set(re.findall(r'`((?:sync|pruning|max|control|finger)[\w.]*)`', text))
    assert named and named <= set(SPECS['vla_policy'])


@pytest.mark.launch
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_launch_itself_lists_the_same_arguments(path, monkeypatch):
    pytest.importorskip('launch_ros', reason='the ROS 2 launch system is not installed')
    from ament_index_python import packages

    monkeypatch.setattr(packages, 'get_package_share_directory', lambda _: str(REPOSITORY))
    description = runpy.run_path(str(path))['generate_launch_description']()
    arguments = description.get_launch_arguments()
    assert {argument.name for argument in arguments} == set(Source(path).declared())
    assert all(argument.description for argument in arguments)


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
def launched(tmp_path, monkeypatch):
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


@pytest.mark.launch
@pytest.mark.parametrize(
    ('name', 'argument', 'reason'),
    [
        ('policy', 'params_file:=/nowhere.yaml', 'params file /nowhere.yaml'),
        ('sim', 'params_file:=/nowhere.yaml', 'params file /nowhere.yaml'),
        ('sim', f'params_file:={REPOSITORY}/config/policy.yaml', 'no section for /sim_bridge'),
        ('sim', 'task:=juggle', "unknown task 'juggle'"),
        ('sim', 'initial_state:=900', '900 is outside 0..49'),
        ('sim', f'record:={REPOSITORY}/config', 'record-1 ended with exit code'),
    ],
)
def test_a_launch_that_cannot_do_what_it_was_told_ends_with_an_error(
    launched, name, argument, reason
):
    code, output = launched(name, argument)
    assert code == 1 and reason in output, output


@pytest.mark.launch
@pytest.mark.parametrize('required', ['false', 'true'])
def test_a_policy_that_ends_takes_what_was_launched_beside_it_with_it_only_if_required(
    launched, required, tmp_path
):
    file = tmp_path / 'robot.yaml'
    file.write_text('vla_policy: {ros__parameters: {control_rate: fast}}')
    code, output = launched(
        'policy', f'params_file:={file}', f'required:={required}',
        beside=100 if required == 'true' else 25,
    )  # fmt: skip
    assert "parameter control_rate: 'fast' is not a number" in output
    assert code == (required == 'true'), output
    finished = '[other-2]: process has finished cleanly' in output
    assert finished == (required == 'false'), output
