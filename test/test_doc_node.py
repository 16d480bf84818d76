# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""doc/node.md says what the node declares, and every fault it lists has a test."""

from __future__ import annotations

import re

import pytest
from conftest import HERE, REPOSITORY

from vla_prune_ros.nodes.policy.parameters import POLICY
from vla_prune_ros.ros.parameters import Spec

PAGE = (REPOSITORY / 'doc' / 'node.md').read_text(encoding='utf-8')


def row(spec: Spec) -> str:
    """The line of the page that describes a parameter."""
    default = spec.default
    text = ', '.join(default) if isinstance(default, tuple) else default or repr(default)
    if isinstance(default, bool):
        text = str(default).lower()
    allowed = ', '.join(spec.choices)
    if not allowed and spec.minimum is not None:
        allowed = f'{spec.minimum:g} to {spec.maximum:g}'
    when = 'start' if spec.read_only else 'any time'
    return f'| `{spec.name}` | `{text}` | {allowed} | {when} | {spec.description} |'


@pytest.mark.parametrize('spec', POLICY, ids=lambda spec: spec.name)
def test_the_page_describes_the_parameter_as_it_is_declared(spec):
    assert row(spec) in PAGE


def test_the_page_describes_no_parameter_that_is_not_declared():
    table = PAGE.split('## Parameters')[1].split('\n## ')[0]
    named = set(re.findall(r'^\| `([^`]+)` \|', table, re.MULTILINE))
    assert named == {spec.name for spec in POLICY}


def test_every_fault_on_the_page_names_a_test_that_exists():
    table = PAGE.split('## Faults')[1].split('\n## ')[0]
    named = re.findall(r'\| `(\w+)`(?: \(\w+\))? \|$', table, re.MULTILINE)
    source = '\n'.join(path.read_text(encoding='utf-8') for path in HERE.glob('test_*.py'))
    assert len(named) >= 20
    assert [name for name in named if f'def test_{name}(' not in source] == []
