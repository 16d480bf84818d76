# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the node adds to a direct call adds up, and the verb that measures it runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from vla_prune_ros.trials.driver import Reply
from vla_prune_ros.trials.overhead import ROWS, row, summarise, table

STATS = {
    'node.convert_ms': '0.3', 'node.queue_ms': '0.1', 'node.prepare_ms': '0.05',
    'node.check_ms': '0.05', 'node.publish_ms': '0.5', 'node.step_ms': '20.0',
    'preprocess_ms': '5.0',
}  # fmt: skip


def test_the_stages_add_up_to_what_the_node_adds():
    one = row(Reply(0.4, 22.0, STATS), direct=19.0)
    assert one['added'] == pytest.approx(2.0)
    stages = ('convert', 'queue', 'prepare', 'check', 'publish', 'dds')
    assert sum(one[stage] for stage in stages) == pytest.approx(one['added'])
    assert one['dds'] == pytest.approx(1.0)
    summary = summarise([one, one])
    assert summary.keys() == ROWS.keys() == one.keys()
    assert '| 2.00 | 2.00 | 2.00 |' in table(summary)


@pytest.mark.slow
def test_the_verb_measures_both_ways_in_one_run(checkpoint, tmp_path):
    command = [sys.executable, '-m', 'vla_prune_ros', 'overhead', '--ticks', '20', '--size', '64']
    command += ['--checkpoint', str(checkpoint), '--out', str(tmp_path)]
    command += ['--mode', 'fastv', '--audit', '--rate', '5']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / 'overhead.json').read_text())
    assert result['ms'].keys() == ROWS.keys()
    assert result['audits'] > 0
    assert result['within_budget'] is (result['ms']['added']['p95'] <= result['budget_ms'])
    assert (tmp_path / 'overhead.md').read_text().startswith('# What the policy node adds')
