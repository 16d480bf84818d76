# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The files of config/robots and the pages say what the code does."""

from __future__ import annotations

import re

import pytest
import yaml

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from conftest import HERE, REPOSITORY

from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.nodes.policy.parameters import POLICY
from vla_prune_ros.nodes.robot.chunks import ChunkGate
from vla_prune_ros.nodes.robot.parameters import ANY_TIME, ROBOT, RobotConfig
from vla_prune_ros.nodes.simulation.parameters import BRIDGE
from vla_prune_ros.trials import robot_trial

FILES = sorted((REPOSITORY / 'config' / 'robots').glob('*.yaml'))
SPECS = {
    name: {spec.name: spec for spec in specs}
    for name, specs in (('vla_policy', POLICY), ('robot_bridge', ROBOT), ('sim_bridge', BRIDGE))
}
PAGE = (REPOSITORY / 'doc' / 'robot_bridge.md').read_text(encoding='utf-8')


def flat(values, prefix=''):
    """Names with dots, and values."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{name}.')
        else:
            yield prefix + name, value


def sections(path):
    """Parameters by node."""
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    return {
        node.removeprefix('/**/'): dict(flat(values['ros__parameters']))
        for node, values in content.items()
    }


def defaults(name):
    return {
        spec.name: list(spec.default) if isinstance(spec.default, tuple) else spec.default
        for spec in SPECS[name].values()
    }


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_robots_file_is_a_bridge_that_would_start(path):
    for node, values in sections(path).items():
        for name, value in values.items():
            spec = SPECS[node][name]
            spec.check(value)
            default = spec.default
            kind = type(default[0]) if isinstance(default, tuple) else type(default)
            for v in value if isinstance(value, list) else [value]:
                assert type(v) is kind, f'{node}: {name}: {v!r}'
            if spec.minimum is not None:
                assert spec.minimum <= value <= spec.maximum, name
    bridge, policy = sections(path)['robot_bridge'], sections(path)['vla_policy']
    config = RobotConfig.from_values(defaults('robot_bridge') | bridge)
    assert config['dry_run'] and config['speed_scale'] == 0.1, 'safe unless the user says so'
    assert policy['trigger'] == 'request' and policy['control_rate'] == config['control_rate']
    gate = ChunkGate(config)
    said = Semantics.from_values(defaults('vla_policy') | policy).values()
    gate.describe({**said, 'control_rate': str(policy['control_rate'])})
    assert gate.misfit == '', 'policy and bridge of a file go together'
    # as launch/robot.launch.py remaps the policy
    assert config['topics.policy_pose'] == 'vla/ee_pose'
    assert config['topics.policy_joint_states'] == 'vla/joint_states'


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_robot_has_a_section_and_says_where_its_names_come_from(path):
    page = (REPOSITORY / 'doc' / 'robot.md').read_text(encoding='utf-8')
    headings = ' '.join(re.findall(r'^### (.*)$', page, re.MULTILINE))
    assert path.stem in headings
    if not path.stem.startswith('tabletop'):
        text = path.read_text(encoding='utf-8')
        assert 'Untried on hardware' in text and 'Sources:' in text


@pytest.mark.parametrize('output', ['pose', 'twist'])
def test_the_trial_uses_what_the_file_of_the_simulated_robot_says(output):
    found = sections(REPOSITORY / 'config' / 'robots' / f'tabletop_{output}.yaml')
    own = {k: v for k, v in robot_trial.BRIDGE.items() if k not in ('dry_run', 'speed_scale')}
    theirs = {k: v for k, v in found['robot_bridge'].items() if not k.startswith('topics.')}
    assert theirs == own | {'output': output}
    assert found['sim_bridge']['interface'] == output
    assert found['sim_bridge']['interface.stiffness'] == robot_trial.STIFFNESS[output]


def row(spec) -> str:
    """The line of the page that describes a parameter."""
    default = spec.default
    text = default or repr(default)
    if isinstance(default, tuple):
        text = ', '.join(map(str, default))
    elif isinstance(default, bool):
        text = str(default).lower()
    allowed = ', '.join(choice or "''" for choice in spec.choices)
    if not allowed and spec.minimum is not None:
        allowed = f'{spec.minimum:g} to {spec.maximum:g}'
    when = 'start' if spec.read_only else 'any time' if spec.name in ANY_TIME else 'idle'
    return f'| `{spec.name}` | `{text}` | {allowed} | {when} | {spec.description} |'


def test_the_page_describes_every_parameter_as_it_is_declared():
    table = PAGE.split('## Parameters')[1]
    for spec in ROBOT:
        assert row(spec) in table, spec.name
    named = re.findall(r'^\| `([^`]+)` \|', table, re.MULTILINE)
    assert named == [spec.name for spec in ROBOT]


def test_every_failure_on_the_page_names_a_test_that_exists():
    named = re.findall(r'\| `(\w+)` \|$', PAGE.split('## Parameters')[0], re.MULTILINE)
    source = '\n'.join(path.read_text(encoding='utf-8') for path in HERE.glob('test_*.py'))
    assert len(named) >= 20
    assert [name for name in named if f'def test_{name}(' not in source] == []
