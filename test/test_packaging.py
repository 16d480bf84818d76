# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The package installs, and its parameter, launch and metadata files fit the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from vla_prune_ros.__main__ import VERBS
from vla_prune_ros.nodes.policy.modes import pruning_specs
from vla_prune_ros.nodes.policy.parameters import POLICY
from vla_prune_ros.nodes.robot.parameters import ROBOT
from vla_prune_ros.nodes.simulation.parameters import BRIDGE
from vla_prune_ros.ros.parameters import Spec

SOURCES = (
    'LICENSE', 'package.xml', 'setup.py', 'setup.cfg', 'requirements', 'resource', 'config',
    'launch', 'scripts', 'vla_prune_ros',
)  # fmt: skip
CONSTRAINTS = (REPOSITORY / 'requirements' / 'constraints.txt').read_text()
NODES = {
    'vla_policy': (*POLICY, *pruning_specs()), 'sim_bridge': BRIDGE, 'robot_bridge': ROBOT
}  # fmt: skip
ALWAYS = {'use_sim_time'}  # parameters that every node has


def flat(values: dict, prefix: str = '') -> dict[str, object]:
    """Nested YAML as dotted names."""
    result = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        result |= flat(value, f'{prefix}{name}.') if nested else {f'{prefix}{name}': value}
    return result


def check(spec: Spec, value: object) -> None:
    """Fails if a node would refuse the value."""
    kind = list if isinstance(spec.default, tuple) else type(spec.default)
    assert type(value) is kind, f'{spec.name}: {value!r} is not {kind.__name__}'
    spec.check(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert spec.minimum is None or value >= spec.minimum, spec.name
        assert spec.maximum is None or value <= spec.maximum, spec.name


@pytest.mark.parametrize('specs', NODES.values(), ids=NODES)
def test_every_parameter_has_one_name_a_description_and_an_allowed_default(specs):
    names = [spec.name for spec in specs]
    assert len(names) == len(set(names))
    for spec in specs:
        assert spec.description, spec.name
        check(spec, list(spec.default) if isinstance(spec.default, tuple) else spec.default)


@pytest.mark.parametrize('path', sorted((REPOSITORY / 'config').rglob('*.yaml')), ids=str)
def test_parameter_files_name_existing_parameters_with_allowed_values(path):
    content = yaml.safe_load(path.read_text())
    assert content
    for node, values in content.items():
        specs = {spec.name: spec for spec in NODES[node.rpartition('/')[2]]}
        for name, value in flat(values['ros__parameters']).items():
            if name not in ALWAYS and not name.startswith('qos_overrides.'):
                assert name in specs, f'{node} has no parameter {name}'
                check(specs[name], value)


def test_package_xml_agrees_with_setup():
    root = ElementTree.parse(REPOSITORY / 'package.xml').getroot()
    setup = (REPOSITORY / 'setup.py').read_text()
    assert root.attrib['format'] == '3'
    assert root.findtext('name') == 'vla_prune_ros'
    assert f"version='{root.findtext('version')}'" in setup
    assert re.fullmatch(r'\S+@\S+\.\w+', root.find('maintainer').attrib['email'])
    assert root.findtext('license') == 'Apache-2.0'
    assert 'Apache License' in (REPOSITORY / 'LICENSE').read_text()
    names = [e.text for e in root if e.tag.endswith('depend')]
    assert len(names) == len(set(names))


def test_every_requirement_is_pinned_exactly_for_every_python():
    from packaging.requirements import Requirement

    folder = REPOSITORY / 'requirements'
    lines = [
        line.strip()
        for line in CONSTRAINTS.splitlines()
        if line.strip() and not line.startswith('#')
    ]
    pins = [Requirement(line) for line in lines]
    for pin in pins:
        assert [s.operator for s in pin.specifier] == ['=='], str(pin)
    for file in ('base', 'ros', 'sim', 'dev'):
        for line in (folder / f'{file}.txt').read_text().splitlines():
            if not line or line.startswith(('#', '-c')):
                continue
            name = Requirement(line).name
            for python in ('3.10', '3.11', '3.12', '3.13'):
                fitting = [
                    p for p in pins
                    if p.name == name
                    and (p.marker is None or p.marker.evaluate({'python_version': python}))
                ]  # fmt: skip
                assert len(fitting) == 1, f'{name} on Python {python}: {fitting}'


def test_no_index_is_prescribed():
    for path in (*(REPOSITORY / 'requirements').iterdir(), REPOSITORY / 'run'):
        assert 'index-url' not in path.read_text(), path


def test_the_command_line_lists_its_verbs_and_refuses_others():
    run = lambda *words: subprocess.run(  # noqa: E731
        [sys.executable, '-m', 'vla_prune_ros', *words], capture_output=True, text=True
    )
    listed = run('--help')
    assert listed.returncode == 0
    assert all(verb in listed.stdout for verb in VERBS)
    refused = run('fly')
    assert refused.returncode == 2
    assert "unknown verb 'fly'" in refused.stderr


def test_the_script_lists_the_same_verbs():
    shown = output([REPOSITORY / 'run', '--help'])
    assert re.findall(r'^  (\w+) {3,}', shown.split('PYTHON=')[1], re.MULTILINE) == list(VERBS)


@pytest.mark.parametrize('verb', sorted(VERBS))
def test_every_verb_has_help(verb):
    shown = subprocess.run(
        [sys.executable, '-m', 'vla_prune_ros', verb, '--help'], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert 'usage' in shown.stdout


def copy_of_the_tree(folder: Path) -> Path:
    """What an installation needs; a build in the tree itself would leave files there."""
    for name in SOURCES:
        source = REPOSITORY / name
        copier = shutil.copytree if source.is_dir() else shutil.copy
        copier(source, folder / name)
    return folder


@pytest.fixture(scope='module')
def wheel_install(tmp_path_factory) -> Path:
    """A prefix into which pip installed the package from a copy of the tree."""
    pytest.importorskip('setuptools', reason='needed to build without a network')
    copy, prefix = tmp_path_factory.mktemp('copy'), tmp_path_factory.mktemp('a prefix')
    subprocess.run(
        [
            sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation',
            '--use-pep517', '--no-index', '--prefix', str(prefix),
            '--ignore-installed',  # or pip removes the package under test from its environment
            str(copy_of_the_tree(copy)),
        ],
        check=True,
    )  # fmt: skip
    return prefix


def test_a_wheel_brings_what_ros_looks_for(wheel_install):
    share = wheel_install / 'share'
    assert (share / 'ament_index/resource_index/packages/vla_prune_ros').exists()
    for name in ('package.xml', 'launch/sim.launch.py', 'launch/policy.launch.py'):
        assert (share / 'vla_prune_ros' / name).exists(), name
    for path in (REPOSITORY / 'config').iterdir():
        assert (share / 'vla_prune_ros/config' / path.name).exists(), path.name


def test_a_wheel_brings_every_file_that_the_code_reads(wheel_install):
    (installed_package,) = wheel_install.rglob('site-packages/vla_prune_ros')
    source = REPOSITORY / 'vla_prune_ros'
    wanted = {
        p.relative_to(source)
        for p in source.rglob('*')
        if p.is_file() and '__pycache__' not in p.parts
    }
    missing = [str(p) for p in wanted if not (installed_package / p).exists()]
    assert missing == []


def output(command: list, **environment: str) -> str:
    """What a command prints that must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, cwd='/'
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_brings_one_command_and_ros2_run_finds_every_verb(wheel_install):
    assert [p.name for p in (wheel_install / 'bin').iterdir()] == ['vla_prune_ros']
    folder = wheel_install / 'lib' / 'vla_prune_ros'
    assert {p.name for p in folder.iterdir()} == set(VERBS)
    (site,) = wheel_install.rglob('site-packages')
    for command in ([folder / 'sim_bridge'], [wheel_install / 'bin/vla_prune_ros', 'sim_bridge']):
        assert 'usage: sim_bridge' in output([*command, '--help'], PYTHONPATH=str(site))


@pytest.fixture
def speaking_python(tmp_path) -> Path:
    """A folder with a python3 that only says how it was called."""
    path = tmp_path / 'active' / 'python3'
    path.parent.mkdir()
    path.write_text('#!/bin/sh\necho "$0 $*"\n')
    path.chmod(0o755)
    return path


def test_a_script_runs_the_python_of_its_environment_or_else_the_active_one(
    tmp_path, speaking_python
):
    path = f'{speaking_python.parent}:{os.environ["PATH"]}'
    (tmp_path / 'lib' / 'vla_prune_ros').mkdir(parents=True)
    script = tmp_path / 'lib' / 'vla_prune_ros' / 'policy_node'
    shutil.copy(REPOSITORY / 'scripts' / 'policy_node', script)
    said = output([script, '--help'], PATH=path)
    assert said == f'{speaking_python} -m vla_prune_ros policy_node --help\n'
    (tmp_path / 'bin').mkdir()
    shutil.copy(speaking_python, tmp_path / 'bin')
    assert output([script], PATH='/usr/bin:/bin').endswith(
        'bin/python3 -m vla_prune_ros policy_node\n'
    )


@pytest.mark.parametrize('options', [[], ['--symlink-install']], ids=['copies', 'links'])
def test_a_colcon_build_has_the_same_commands_in_the_active_python(
    tmp_path, speaking_python, options
):
    colcon = shutil.which('colcon')
    if colcon is None:
        pytest.skip('colcon is not installed')
    source = tmp_path / 'src' / 'vla_prune_ros'
    source.mkdir(parents=True)
    copy_of_the_tree(source)
    subprocess.run([colcon, 'build', *options], cwd=tmp_path, check=True, capture_output=True)
    prefix = tmp_path / 'install' / 'vla_prune_ros'
    folder = prefix / 'lib' / 'vla_prune_ros'
    assert {p.name for p in folder.iterdir()} == set(VERBS)
    assert [p.name for p in (prefix / 'bin').iterdir()] == ['vla_prune_ros']
    assert (folder / 'policy_node').is_symlink() is bool(options)
    path = f'{speaking_python.parent}:{os.environ["PATH"]}'
    for command in ([folder / 'check'], [prefix / 'bin/vla_prune_ros', 'check']):
        assert output(command, PATH=path) == f'{speaking_python} -m vla_prune_ros check\n'


def test_requirements_of_users_leave_colcon_working():
    """setuptools 80 dropped what `colcon build --symlink-install` calls."""
    from packaging.requirements import Requirement

    folder = REPOSITORY / 'requirements'
    for name in ('base', 'sim', 'kernels'):
        lines = (folder / f'{name}.txt').read_text().splitlines()
        assert not {'setuptools', 'wheel', 'pip'} & set(lines), name
    pins = [Requirement(x) for x in re.findall(r'^setuptools.*$', CONSTRAINTS, re.MULTILINE)]
    assert pins, 'torch brings it in'
    assert all(pin.specifier.contains('79.0.1') for pin in pins)


# Modules of ROS packages that are not named after their package, and what comes with others.
PACKAGE_OF = {'cv2': 'python3-opencv', 'PIL': 'python3-pil', 'yaml': 'python3-yaml',
              'numpy': 'python3-numpy'}  # fmt: skip


def imported(*folders: str) -> set[str]:
    """Top names that the Python files of some folders import or ask pytest for."""
    names = set()
    for path in (p for folder in folders for p in (REPOSITORY / folder).rglob('*.py')):
        text = path.read_text()
        names |= set(re.findall(r'^\s*(?:from|import) (\w+)', text, re.MULTILINE))
        names |= set(re.findall(r"importorskip\(\s*'(\w+)", text))
    return names


def test_package_xml_names_the_ros_packages_that_are_imported_and_no_others():
    root = ElementTree.parse(REPOSITORY / 'package.xml').getroot()
    needed = {e.text for e in root.iter('exec_depend')}
    tested = {e.text for e in root.iter('test_depend')}
    ros = re.compile(r'\w+_(msgs|srvs|interfaces)|rclpy|launch\w*|ament_\w+|cv_bridge|tf2\w*')

    def packages(names: set[str]) -> set[str]:
        return {PACKAGE_OF.get(n, n) for n in names if n in PACKAGE_OF or ros.fullmatch(n)}

    assert needed == packages(imported('vla_prune_ros', 'launch'))
    extra = packages(imported('test')) - needed
    assert extra <= tested
    assert {n for n in tested if not n.startswith('python3-')} <= extra
