# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""20 000 observations through a policy node: memory, threads, files and latency stay flat.

An hour of the embedded policy: `python -m vla_prune_ros soak --seconds 3600`.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from vla_prune_ros.trials.soak import judge


def record(kb, ms, files=lambda t: 40) -> dict[str, list]:
    ticks = range(100, 20_001, 100)
    columns = {'tick': ticks, 'seconds': ticks, 'kb': map(kb, ticks), 'node_ms': map(ms, ticks)}
    columns |= {'threads': [20] * len(ticks), 'files': map(files, ticks)}
    columns |= {'cpu_ms': [9.0] * len(ticks), 'load': [1.0] * len(ticks)}
    return {name: list(values) for name, values in columns.items()}


def test_a_line_that_rises_is_not_flat():
    warm = lambda t: 400_000 + min(t, 3000)  # noqa: E731
    assert judge(record(warm, lambda t: 3.0))['flat']
    assert not judge(record(lambda t: 400_000 + t, lambda t: 3.0))['flat'], 'one kB per tick'
    assert not judge(record(warm, lambda t: 3.0 + t / 10_000))['flat']
    assert not judge(record(warm, lambda t: 3.0, lambda t: 40 + t // 5000))['flat']


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_20000_observations_leave_memory_and_latency_flat(checkpoint, tmp_path):
    command = [sys.executable, '-m', 'vla_prune_ros', 'soak', '--ticks', '20000', '--size', '64']
    command += ['--checkpoint', str(checkpoint), '--out', str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / 'soak.json').read_text())
    assert result['ticks'] == 20_000 and result['flat']
