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

from vla_prune_ros.__main__ import VERBS, installed
from vla_prune_ros.nodes.policy.parameters import POLICY, pruning_specs
from vla_prune_ros.nodes.simulation.parameters import BRIDGE
from vla_prune_ros.ros.parameters import Spec

SOURCES = ('LICENSE', 'package.xml', 'setup.py', 'setup.cfg', 'resource', 'config', 'launch')
NODES = {'vla_policy': (*POLICY, *pruning_specs()), 'sim_bridge': BRIDGE}
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


@pytest.mark.parametrize('path', sorted((REPOSITORY / 'config').glob('*.yaml')), ids=str)
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
        for line in (folder / 'constraints.txt').read_text().splitlines()
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
    assert all(verb in listed.stdout for verb in installed())
    refused = run('fly')
    assert refused.returncode == 2
    assert "unknown verb 'fly'" in refused.stderr


@pytest.mark.parametrize('verb', sorted(VERBS))
def test_every_verb_has_help(verb):
    if verb not in installed():
        pytest.skip(f'{verb} is not part of this tree')
    shown = subprocess.run(
        [sys.executable, '-m', 'vla_prune_ros', verb, '--help'], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert 'usage' in shown.stdout


@pytest.fixture(scope='module')
def wheel_install(tmp_path_factory) -> Path:
    """A prefix into which pip installed the package from a copy of the tree."""
    pytest.importorskip('setuptools', reason='needed to build without a network')
    pytest.importorskip('wheel', reason='needed to build without a network')
    copy, prefix = tmp_path_factory.mktemp('copy'), tmp_path_factory.mktemp('a prefix')
    for name in (*SOURCES, 'vla_prune_ros'):
        source = REPOSITORY / name
        copier = shutil.copytree if source.is_dir() else shutil.copy
        copier(source, copy / name)
    subprocess.run(
        [
            sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation',
            '--use-pep517', '--no-index', '--prefix', str(prefix),
            '--ignore-installed',  # or pip removes the package under test from its environment
            str(copy),
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


def test_ros2_run_finds_every_verb_and_it_starts(wheel_install):
    folder = wheel_install / 'lib' / 'vla_prune_ros'
    assert {p.name for p in folder.iterdir()} == set(installed())
    for path in folder.iterdir():
        assert os.access(path, os.X_OK), path
    (site,) = wheel_install.rglob('site-packages')
    environment = os.environ | {'PYTHONPATH': str(site)}
    shown = subprocess.run(
        [folder / 'sim_bridge', '--help'], capture_output=True, text=True, env=environment
    )
    assert shown.returncode == 0, shown.stderr


def test_scripts_of_a_colcon_build_use_the_active_python():
    assert 'executable=/usr/bin/env python3' in (REPOSITORY / 'setup.cfg').read_text()
