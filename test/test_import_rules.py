# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Who may know whom (see doc/architecture.md), read from the source and tried in a process."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from PIL import Image

import vla_prune_ros

ROOT = Path(vla_prune_ros.__file__).parent
DOC = REPOSITORY / 'doc'
drawing = runpy.run_path(str(DOC / 'draw_rooms.py'), run_name='drawing')
imports = drawing['imports']
# Knowing a room means knowing what it stands on: policy stands on vla, pruning and runtime.
MAY_KNOW = {
    'vla': set(),
    'sim': set(),
    'weights': set(),
    'datasets': {'vla'},
    'pruning': {'vla'},
    'runtime': {'vla', 'pruning'},
    'policy': {'vla', 'pruning', 'runtime'},
    'training': {
        'vla',
        'pruning',
        'runtime',
        'policy',
        'sim',
        'weights',
        'datasets',
        'evaluation',
    },
    'evaluation': {'vla', 'pruning', 'runtime', 'policy', 'sim', 'weights'},
    'benchmark': {
        'vla',
        'pruning',
        'runtime',
        'policy',
        'sim',
        'weights',
        'evaluation',
        'execution',
    },
    'execution': set(),
    'ros': {'execution', 'sim'},
    'nodes': {'ros', 'execution', 'pruning', 'policy', 'sim', 'weights'},
    'bags': {
        'vla',
        'ros',
        'nodes',
        'execution',
        'evaluation',
        'datasets',
        'pruning',
        'policy',
        'weights',
    },
    'trials': {'ros', 'nodes', 'execution', 'evaluation', 'pruning', 'policy', 'sim', 'weights'},
    'view': {'ros', 'bags', 'pruning'},
}
WITH_ROS = {'ros', 'nodes', 'bags', 'trials', 'view'}
ROS = {
    'rclpy',
    'launch',
    'launch_ros',
    'rosbag2_py',
    'cv_bridge',
    'ament_index_python',
    'diagnostic_updater',
    'message_filters',
    'tf2_ros',
}


def modules():
    return sorted(p for p in ROOT.rglob('*.py') if p.parent != ROOT)


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix('.py')


def is_ros(name):
    top = name.split('.')[0]
    return top in ROS or top.endswith(('_msgs', '_srvs', '_interfaces'))


def test_the_rooms_are_those_of_the_design():
    assert {room_of(p) for p in modules()} <= MAY_KNOW.keys()


def test_the_picture_of_the_rooms_is_that_of_the_imports():
    drawn = json.loads(Image.open(DOC / 'rooms.png').info['Description'])
    assert drawn == drawing['rooms'](), 'python doc/draw_rooms.py'
    assert set(drawn) <= set(drawing['COLUMNS']), 'give the new room a column'


def test_the_table_of_the_page_says_who_may_know_whom():
    rows = re.findall(
        r'^\| `(\w+)/` \|.*\| ([^|]+) \|$', (DOC / 'architecture.md').read_text(), re.M
    )
    assert {room: set(re.findall(r'`(\w+)`', known)) for room, known in rows} == MAY_KNOW


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_knows_only_the_rooms_below_it(path):
    room = room_of(path)
    allowed = MAY_KNOW[room] | {room}
    known = {
        name.split('.')[1]
        for name in imports(path)
        if name.startswith('vla_prune_ros.') and name.split('.')[1] in MAY_KNOW
    }
    assert known <= allowed


NODES = sorted(p.name for p in (ROOT / 'nodes').iterdir() if (p / '__init__.py').exists())


@pytest.mark.parametrize('node', NODES)
def test_nodes_do_not_know_each_other(node):
    others = tuple(f'vla_prune_ros.nodes.{other}' for other in NODES if other != node)
    for path in (ROOT / 'nodes' / node).rglob('*.py'):
        assert [name for name in imports(path) if name.startswith(others)] == []


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_nodes_and_what_drives_them_import_ros(path):
    if room_of(path) not in WITH_ROS:
        assert [name for name in imports(path) if is_ros(name)] == []


def names(keep):
    for path in modules():
        name = '.'.join(path.relative_to(ROOT.parent).with_suffix('').parts)
        if keep(room_of(path)):
            yield name.removesuffix('.__init__')


def loaded_after_importing(modules, forbidden):
    code = (
        'import importlib, sys\n'
        f'for name in {modules!r}: importlib.import_module(name)\n'
        f'print(sorted({forbidden!r} & sys.modules.keys()))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_importing_the_other_rooms_pulls_no_ros():
    kernels = 'vla_prune_ros.runtime.kernels.'  # are Triton; test_kernels.py imports them
    rooms = [name for name in names(lambda room: room not in WITH_ROS) if kernels not in name]
    assert 'vla_prune_ros.policy' in rooms
    assert loaded_after_importing(rooms, ROS) == '[]'


def test_importing_nodes_pulls_no_torch():
    pytest.importorskip('rclpy')
    nodes = [*names(lambda room: room in ('ros', 'nodes'))]
    assert loaded_after_importing(nodes, {'torch', 'transformers', 'mujoco'}) == '[]'


def test_importing_the_package_pulls_nothing():
    heavy = ROS | {'torch', 'numpy', 'mujoco'}
    assert loaded_after_importing(['vla_prune_ros', 'vla_prune_ros.weights'], heavy) == '[]'
