# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The tests over DDS once more, beside four busy loops per core."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
HERE = Path(__file__).parent
FILES = (
    'test_client.py',
    'test_demo.py',
    'test_faults_inference.py',
    'test_faults_inputs.py',
    'test_faults_life.py',
    'test_faults_time.py',
    'test_nodes_bridge.py',
    'test_nodes_bridge_execution.py',
    'test_nodes_parity.py',
    'test_nodes_policy.py',
    'test_nodes_policy_outputs.py',
    'test_record.py',
    'test_replay.py',
    'test_start.py',
)
SLOW = ('test_nodes_parity.py',)  # nothing in it is fast


def test_every_file_is_there():
    assert [name for name in FILES if not (HERE / name).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', FILES)
def test_the_tests_over_dds_pass_on_a_busy_machine(busy, name):
    """In a run of its own, with its own ROS domain; each test keeps its own time limit."""
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(HERE / name)]
    command += ['-m', 'slow'] if name in SLOW else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-8000:]
