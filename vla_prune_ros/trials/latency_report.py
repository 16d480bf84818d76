# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a sweep of artificial latency in real time shows: rows, table, picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vla_prune_ros.evaluation.statistics import percentiles, wilson_interval
from vla_prune_ros.evaluation.summary import percent, table

MARKERS = 'osD^vP'
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00')
LATE = 0.05  # share of steps that were late above which a cell says little about real time


@dataclass(frozen=True)
class Cell:
    """An episode to run."""

    execution: str
    latency_ms: int
    task: str
    state: int


@dataclass(frozen=True)
class LatencyEpisode:
    """Outcome of one episode in real time.

    Attributes:
        execution, latency_ms: the cell of the sweep; the policy's own time comes on top.
        starved: steps on which the robot held still for want of an action.
        late: steps that took the simulation longer than the control period.
        policy_ms: the node's time of every query.
    """

    execution: str
    latency_ms: int
    task: str
    state: int
    success: bool
    steps: int
    queries: int
    starved: int
    late: int
    policy_ms: tuple[float, ...] = ()


def rows(episodes: Sequence[LatencyEpisode]) -> list[dict[str, Any]]:
    """One row per execution mode and latency, with a 95 % Wilson interval of the success."""
    cells: dict[tuple[str, int], list[LatencyEpisode]] = {}
    for episode in episodes:
        cells.setdefault((episode.execution, episode.latency_ms), []).append(episode)
    result = []
    for (execution, latency), own in cells.items():
        good, steps = sum(e.success for e in own), sum(e.steps for e in own)
        low, high = wilson_interval(good, len(own))
        result.append(
            {
                'execution': execution,
                'latency_ms': latency,
                'episodes': len(own),
                'successes': good,
                'success': good / len(own),
                'low': low,
                'high': high,
                'steps': steps / len(own),
                'queries': sum(e.queries for e in own) / len(own),
                'starved': sum(e.starved for e in own) / steps,
                'late': sum(e.late for e in own) / steps,
                'policy_ms': percentiles([ms for e in own for ms in e.policy_ms]),
            }
        )
    return result


def latency_table(cells: Sequence[dict]) -> str:
    """A line per cell."""
    lines = [
        [
            f'{c["execution"]}, {c["latency_ms"]} ms',
            c['episodes'],
            percent(c),
            f'{100 * c["starved"]:.1f} %',
            f'{c["steps"]:.0f}',
            f'{c["queries"]:.1f}',
            f'{100 * c["late"]:.1f} %',
        ]
        for c in cells
    ]
    heads = ['execution, latency', 'episodes', 'success (95 % Wilson)', 'held still']
    return table([*heads, 'steps', 'queries', 'late steps'], lines)


def markdown(run: dict, cells: Sequence[dict]) -> str:
    """The page: what ran where, and the table."""
    machine = run['environment']
    own = [c['policy_ms']['p50'] for c in cells if c['policy_ms'].get('n')]
    late = max(c['late'] for c in cells)
    lines = [
        '# Success against latency, in real time',
        '',
        f'`{run["command"]}`, {machine["date"]}, {machine["cpu"]}, {machine["cores"]} cores, '
        f'{run["pairs"]} pairs of nodes at once. Control period {run["period_ms"]:g} ms. Every '
        'cell has the same tasks and initial states.',
    ]
    if run['note']:
        lines += ['', run['note']]
    if own:
        lines += [
            '',
            f'The policy itself took {min(own):.0f} to {max(own):.0f} ms (median of a cell); the '
            'artificial latency of the first column comes on top.',
        ]
    if late > LATE:
        lines += [
            '',
            f'The machine was too slow or not alone: up to {100 * late:.0f} % of the steps of a '
            'cell took longer than the control period.',
        ]
    return '\n'.join([*lines, '', latency_table(cells), ''])


def picture(cells: Sequence[dict], path: Path) -> None:
    """Success and time held still against latency, a curve per execution mode."""
    figure = Figure(figsize=(9, 3.8), dpi=120, layout='constrained')
    left, right = figure.subplots(1, 2)
    modes = list(dict.fromkeys(c['execution'] for c in cells))
    for k, mode in enumerate(modes):
        own = sorted((c for c in cells if c['execution'] == mode), key=lambda c: c['latency_ms'])
        look = {'color': COLOURS[k % len(COLOURS)], 'marker': MARKERS[k % len(MARKERS)]}
        shift = 4.0 * (k - (len(modes) - 1) / 2)  # ms, so that intervals do not hide each other
        y = [100 * c['success'] for c in own]
        error = [
            [max(0.0, v - 100 * c['low']) for v, c in zip(y, own, strict=True)],
            [max(0.0, 100 * c['high'] - v) for v, c in zip(y, own, strict=True)],
        ]
        x = [c['latency_ms'] for c in own]
        left.errorbar([v + shift for v in x], y, yerr=error, capsize=2, label=mode, **look)
        right.plot(x, [100 * c['starved'] for c in own], **look)
    left.set_ylabel('success (%), 95 % Wilson interval')
    right.set_ylabel('steps on which the robot held still (%)')
    for axes in (left, right):
        axes.set_xlabel('artificial latency of a chunk (ms)')
        axes.set_ylim(-2, 102)
        axes.grid(color='#E5E5E5', linewidth=0.7)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
    left.legend(fontsize=8, loc='lower left')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
