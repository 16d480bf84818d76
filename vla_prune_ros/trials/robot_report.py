# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the verb `robot_trial`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from vla_prune_ros.evaluation.statistics import wilson_interval
from vla_prune_ros.evaluation.summary import table
from vla_prune_ros.trials.robot_path import RobotEpisode
from vla_prune_ros.trials.robot_trial import BRIDGE_VALUES


def cells(episodes: Sequence[RobotEpisode]) -> list[dict[str, Any]]:
    """One per output and latency."""
    found = []
    for output, latency in dict.fromkeys((e.output, e.latency) for e in episodes):
        own = [e for e in episodes if (e.output, e.latency) == (output, latency)]
        wins = sum(e.success for e in own)
        low, high = wilson_interval(wins, len(own))
        won = [e.steps for e in own if e.success]
        steps = sum(e.steps for e in own)
        cell = {
            'output': output,
            'latency': latency,
            'episodes': len(own),
            'successes': wins,
            'low': low,
            'high': high,
            'steps': fmean(won) if won else None,
            'starved': sum(e.starved for e in own) / steps,
            'late': sum(e.late for e in own),
            'jerk_rms': median(e.jerk_rms for e in own),
            'stops': [e.reason for e in own if e.reason],
        }
        for key in BRIDGE_VALUES:
            values = [float(e.bridge[key]) for e in own if e.bridge.get(key, 'nan') != 'nan']
            cell[key] = median(values) if values else None
        found.append(cell)
    return found


def markdown(run: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The page: what ran where, and two tables."""
    machine = run['environment']
    where = f'`{run["command"]}`, {machine["date"]}, {machine["cpu"]}, {machine["cores"]} cores'
    if run['lockstep']:
        lines = [
            '# Policy, robot bridge and arm, step by step',
            '',
            f'{where}. One process and no clock: the numbers do not depend on how busy it was. A '
            'chunk is there one control step after its observation, and the added latency later.',
            '',
        ]
    else:
        first, last = run['load_average']
        lines = [
            '# Policy, robot bridge and arm, in real time',
            '',
            f'{where}; load average {first:.1f} before, {last:.1f} after.',
            '',
        ]
    lines += [
        "Output chunk is the simulator's own execution of chunks; pose is the robot bridge on an "
        'arm as soft as OSC_POSE, twist on a stiff one.',
    ]
    if run['note']:
        lines += ['', run['note']]
    success = [
        [
            c['output'], f'{1e3 * c["latency"]:.0f} ms', c['episodes'],
            f'{c["successes"]} ({100 * c["low"]:.0f} to {100 * c["high"]:.0f} %)',
            _number(c['steps'], '.0f'), f'{100 * c["starved"]:.1f} %', c['late'],
            len(c['stops']),
        ]
        for c in rows
    ]  # fmt: skip
    smooth = [
        [
            c['output'], f'{1e3 * c["latency"]:.0f} ms', _number(c['jerk_rms'], '.1f'),
            _number(c['jerk_within_p95'], '.1f'), _number(c['jerk_seam_p95'], '.1f'),
            _number(c['tracking_error_p95'], '.4f'), _number(c['chunk_arrival_p50'], '.3f'),
        ]
        for c in rows
    ]  # fmt: skip
    heads = ['output', 'added latency', 'episodes', 'successes (95 % Wilson)', 'steps', 'starved',
             'late', 'stops']  # fmt: skip
    lines += ['', table(heads, success), '']
    lines += [
        'Steps: mean of the successful episodes. Starved: share of the steps without an action. '
        'Late: control steps for which the machine was too slow.',
        '',
        table(
            ['output', 'added latency', 'jerk of the arm, rms', 'commanded, within chunks p95',
             'commanded, at seams p95', 'tracking error p95 (m)', 'chunk on arrival (s)'],
            smooth,
        ),
        '',
        'Jerks in m/s3, third differences over 50 ms. Tracking error: a step of the arm against '
        'what was expected of it.',
        '',
    ]  # fmt: skip
    stops = [f'- {c["output"]}, {c["latency"]:g} s: {s}' for c in rows for s in c['stops']]
    return '\n'.join([*lines, *(['Stops of the bridge:', '', *stops, ''] if stops else [])])


def _number(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)
