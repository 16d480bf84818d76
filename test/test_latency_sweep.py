# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The sweep of artificial latency: its cells, its report, and one small run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from vla_prune_ros.evaluation.statistics import wilson_interval
from vla_prune_ros.execution.playing import EXECUTION_MODES
from vla_prune_ros.trials import latency_report
from vla_prune_ros.trials.latency_report import LatencyEpisode
from vla_prune_ros.trials.latency_sweep import chosen_cells, parser

GOOD = LatencyEpisode('blend', 100, 'pick_up_red', 0, True, 50, 10, 5, 0, (8.0, 12.0))
BAD = replace(GOOD, success=False, steps=150, starved=45, late=30)


def test_every_cell_has_the_same_episodes_and_the_cells_take_turns():
    cells = chosen_cells(parser().parse_args(['--episodes', '3', '--tasks', 'a,b']))
    per_cell = {}
    for cell in cells:
        per_cell.setdefault((cell.execution, cell.latency_ms), []).append((cell.task, cell.state))
    assert {mode for mode, _ in per_cell} == set(EXECUTION_MODES)
    assert max(ms for _, ms in per_cell) == 400
    assert list(per_cell.values()) == [[('a', 0), ('b', 0), ('a', 1)]] * len(per_cell)
    assert len({(c.execution, c.latency_ms) for c in cells[: len(per_cell)]}) == len(per_cell)


@pytest.mark.parametrize(
    'words', [['--executions', 'rtc'], ['--latencies', '-5'], ['--episodes', '0']]
)
def test_a_sweep_that_cannot_be_is_refused(words):
    with pytest.raises(ValueError, match=r'rtc|latencies'):
        chosen_cells(parser().parse_args(words))


def test_a_row_counts_episodes_and_steps_of_its_cell():
    other = replace(GOOD, latency_ms=0)
    row, _ = latency_report.rows([GOOD, other, BAD])
    assert (row['execution'], row['latency_ms'], row['episodes'], row['successes']) == (
        'blend', 100, 2, 1,
    )  # fmt: skip
    assert (row['low'], row['high']) == wilson_interval(1, 2)
    assert row['starved'] == pytest.approx(50 / 200), 'a share of steps, not of episodes'
    assert row['late'] == pytest.approx(30 / 200)
    assert row['policy_ms']['p50'] == 10.0


def test_the_page_says_what_ran_and_that_the_machine_was_too_slow(tmp_path):
    machine = {'date': 'today', 'cpu': 'abacus', 'cores': 4}
    run = {
        'command': 'python ...',
        'environment': machine,
        'pairs': 2,
        'period_ms': 50.0,
        'note': 'A note.',
    }
    text = latency_report.markdown(run, latency_report.rows([GOOD, BAD]))
    assert 'blend, 100 ms' in text and '50.0 % (9.5 to 90.5)' in text
    assert '15 % of the steps' in text and 'A note.' in text
    assert 'too slow' not in latency_report.markdown(run, latency_report.rows([GOOD]))
    latency_report.picture(
        latency_report.rows([GOOD, replace(BAD, latency_ms=0)]), tmp_path / 'x.png'
    )
    assert Image.open(tmp_path / 'x.png').width > 500


@pytest.mark.slow
def test_a_small_sweep_runs_and_writes_everything(tmp_path, checkpoint):
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    words = [
        '--latencies', '0,100', '--executions', 'open_loop,blend', '--episodes', '1',
        '--pairs', '2', '--max-steps', '12', '--checkpoint', str(checkpoint), '--quiet',
        '--out', str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, '-m', 'vla_prune_ros', 'latency', *words],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / 'results.json').read_text())
    assert [(c['execution'], c['latency_ms'], c['episodes']) for c in data['cells']] == [
        ('open_loop', 0, 1), ('open_loop', 100, 1), ('blend', 0, 1), ('blend', 100, 1),
    ]  # fmt: skip
    assert all(e['steps'] == 12 for e in data['episodes'])
    assert 'blend, 100 ms' in (tmp_path / 'latency.md').read_text()
    assert (tmp_path / 'latency.png').stat().st_size > 10_000
