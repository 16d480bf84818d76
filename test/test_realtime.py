# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `realtime`: what it concludes, and one short run of both nodes."""

import json
import os
import subprocess
import sys

import pytest

from vla_prune_ros.trials import realtime


def episode(**changes):
    one = {
        'task': 'lift', 'state': 0, 'success': True, 'steps': 200, 'control_hz': 20.0,
        'timed_steps': 190, 'timed_s': 9.5, 'late': 0, 'starved': 3, 'queries': 25,
        'latency_ms': [10.0, 30.0], 'cores': {'policy_node': 0.2, 'sim_bridge': 0.4},
    }  # fmt: skip
    return one | changes


@pytest.mark.parametrize(
    ('changes', 'held'),
    [
        ({}, True),
        ({'late': 2}, True),  # 1 of 100
        ({'late': 3}, False),
        ({'timed_s': 9.6}, False),  # 19.8 Hz
    ],
)
def test_the_rate_is_held_if_next_to_nothing_is_late_or_lost(changes, held):
    row = realtime.mode_row('none', [episode(**changes)])
    assert row['held'] is held


def test_a_row_sums_up_its_episodes():
    row = realtime.mode_row('none', [episode(), episode(success=False, steps=100, cores={})])
    assert (row['episodes'], row['successes'], row['steps'], row['starved']) == (2, 1, 300, 6)
    assert row['rate_hz'] == pytest.approx(20.0)
    assert (row['inference_ms']['p50'], row['inference_ms']['p95']) == (20.0, 30.0)
    assert row['cores']['sim_bridge'] == pytest.approx(0.2)


def test_more_cores_than_there_are_is_an_error():
    before = os.sched_getaffinity(0)
    with pytest.raises(ValueError, match='not within'):
        realtime.bind(len(before) + 1)
    assert os.sched_getaffinity(0) == before


def test_both_nodes_run_in_real_time_on_the_cores_given(tmp_path):
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    cores = min(2, len(os.sched_getaffinity(0)))
    done = subprocess.run(
        [sys.executable, '-m', 'vla_prune_ros', 'realtime', '--cores', str(cores),
         '--episodes', '1', '--max-steps', '25', '--out', str(tmp_path), '--domain-id',
         os.environ['ROS_DOMAIN_ID']],
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / 'realtime.json').read_text())
    assert len(result['cores']) == cores
    (row,) = result['modes']
    assert (row['mode'], row['steps']) == ('none', 25)
    assert 0 < row['rate_hz'] < 20.5  # a slow machine is late, never early
    assert row['queries'] >= 3 and row['inference_ms']['p50'] > 0
    assert row['cores'].keys() == {'policy_node', 'sim_bridge'}
    assert result['simulation']['pictures_ms']['p50'] > 0
    assert '| none |' in (tmp_path / 'realtime.md').read_text()
