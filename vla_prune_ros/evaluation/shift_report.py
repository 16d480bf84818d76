# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluations of several shifts side by side: tables, a heat map, one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.command_line import environment, environment_line, write_json
from vla_prune_ros.evaluation.rollouts import EpisodeRecord
from vla_prune_ros.evaluation.shift_runs import AGAINST, PLAIN, Runs, State, read_runs
from vla_prune_ros.evaluation.shift_statistics import holm, interaction, median_with_never
from vla_prune_ros.evaluation.statistics import PairedComparison, wilson_interval
from vla_prune_ros.evaluation.summary import table
from vla_prune_ros.sim.shifts import RECOVERED

TARGET, GOAL = 'instructed block', 'plate'
_ENDS = (RECOVERED, 'uncover')  # events that are no changes


def cells(runs: Runs, least: int = 1, against: str = AGAINST[0]) -> list[dict[str, Any]]:
    """One row for every shift and entry with enough episodes, with p-values adjusted by Holm.

    One family are all differences, another all interactions. What ran in the suite only is left
    out, if anything ran under a shift; so is, against the base, what has none and is none.
    """
    shifted = {
        name
        for shift, entries in runs.records.items()
        for name, records in entries.items()
        if shift != PLAIN and len(records) >= least
    }
    rows = []
    for shift, entries in runs.records.items():
        for name, records in entries.items():
            if len(records) < least or (shifted and name not in shifted):
                continue
            row = {'shift': shift, 'entry': name, **_cell([*records.values()])}
            other = runs.reference(name, against)
            if other and other in entries:
                row |= _against(records, entries[other])
                plain = runs.records.get(PLAIN, {})
                if shift != PLAIN and name in plain and other in plain:
                    row |= _interaction((records, entries[other], plain[name], plain[other]))
            rows.append(row)
    for what in ('difference', 'interaction'):
        of_this = [row for row in rows if what in row]
        adjusted = holm([row[what]['p'] for row in of_this])
        for row, p in zip(of_this, adjusted, strict=True):
            row[what]['p_holm'] = p
    return rows


def _cell(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Numbers of one entry under one shift; those of the motion over successful episodes."""
    good = [r for r in records if r.success]
    low, high = wilson_interval(len(good), len(records))
    changed = [(r, start) for r in records if (start := change_time(r)) is not None]
    waits = [recovery_time(r, start) for r, start in changed]
    recovers = any(RECOVERED in kinds(r) for r in records)
    return {
        'episodes': len(records),
        'successes': len(good),
        'success': len(good) / len(records),
        'low': low,
        'high': high,
        'steps': _mean([r.steps for r in good]),
        'path_m': _mean([r.path_m for r in good if r.path_m]),  # older logs have none
        'jerk': _mean([r.jerk for r in good if r.path_m]),
        'kept': _mean([r.kept / r.visual_tokens for r in records]),
        'changed': len(changed),
        'recovered': sum(w is not None for w in waits) if recovers else None,
        'recovery_s': _finite(median_with_never(waits)) if recovers else None,
        'after_change_s': _finite(median_with_never([_to_success(r, s) for r, s in changed])),
        **{f'{k}_target': v for k, v in _shares(records, TARGET).items()},
        **{f'{k}_goal': v for k, v in _shares(records, GOAL).items()},
    }


def kinds(record: EpisodeRecord) -> list[str]:
    """What happened in an episode."""
    return [kind for _, kind in record.events]


def change_time(record: EpisodeRecord) -> float | None:
    """When the world changed first (s); None if it did not."""
    return next((time for time, kind in record.events if kind not in _ENDS), None)


def recovery_time(record: EpisodeRecord, start: float) -> float | None:
    """Seconds from the change to the hand being at its target again; None if it never was."""
    return next((time - start for time, kind in record.events if kind == RECOVERED), None)


def _to_success(record: EpisodeRecord, start: float, hz: float = 20.0) -> float | None:
    return record.steps / hz - start if record.success else None


def _shares(records: Sequence[EpisodeRecord], thing: str) -> dict[str, float | None]:
    """How often the patch of a thing was kept: before a change, in the next query, after it."""
    sums = {'before': [0, 0], 'next': [0, 0], 'after': [0, 0]}
    for record in records:
        for sign, key, counts in (
            (1, 'before', record.landmarks),
            (-1, 'before', record.landmarks_after),
            (1, 'after', record.landmarks_after),
            (1, 'next', record.landmarks_next),
        ):
            for name, (kept, seen) in counts.items():
                if name.startswith(f'{thing},'):
                    sums[key][0] += sign * kept
                    sums[key][1] += sign * seen
    return {key: kept / seen if seen else None for key, (kept, seen) in sums.items()}


def _against(ours: dict[State, EpisodeRecord], dense: dict[State, EpisodeRecord]) -> dict:
    common = sorted(ours.keys() & dense.keys())
    pairs = PairedComparison.from_outcomes(
        (bool(ours[k].success), bool(dense[k].success)) for k in common
    )
    low, high = pairs.interval()
    values = {'n': pairs.n, 'value': pairs.difference, 'low': low, 'high': high}
    return {'difference': values | {'p': pairs.p_value}}


def _interaction(four: Sequence[dict[State, EpisodeRecord]]) -> dict:
    common = sorted(set.intersection(*(set(records) for records in four)))
    if not common:
        return {}
    units = [[bool(records[k].success) for records in four] for k in common]
    value, (low, high), p = interaction(units)
    return {'interaction': {'n': len(units), 'value': value, 'low': low, 'high': high, 'p': p}}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _finite(value: float) -> float | str | None:
    """Ready for JSON."""
    return value if math.isfinite(value) else 'never' if math.isinf(value) else None


def write_report(
    directories: Sequence[Path],
    out: Path,
    command: str,
    least: int = 1,
    against: str = AGAINST[0],
) -> str:
    """Write report.md, results.json and success.png; returns the table of success.

    Raises:
        ValueError: see `read_runs`; or no cell has so many episodes.
    """
    from vla_prune_ros.evaluation.shift_plots import heat_map

    runs = read_runs(directories)
    rows = cells(runs, least, against)
    if not rows:
        raise ValueError(f'no cell has {least} episodes')
    out.mkdir(parents=True, exist_ok=True)
    run = {'command': command, 'environment': environment(), **runs.facts}
    write_json(out / 'results.json', {'run': run, 'cells': rows})
    heat_map(rows, out / 'success.png')
    overview = _overview(rows)
    (out / 'report.md').write_text(_page(run, rows, overview, against), encoding='utf-8')
    return overview


def _overview(rows: Sequence[dict]) -> str:
    """Success in per cent with the number of episodes; shifts down, entries across."""
    shifts = list(dict.fromkeys(row['shift'] for row in rows))
    entries = list(dict.fromkeys(row['entry'] for row in rows))
    found = {(row['shift'], row['entry']): row for row in rows}
    lines = []
    for shift in shifts:
        line = [shift]
        for entry in entries:
            row = found.get((shift, entry))
            line.append(f'{100 * row["success"]:.0f} ({row["episodes"]})' if row else '-')
        lines.append(line)
    return table(['success, % (episodes)', *entries], lines)


def _page(run: dict, rows: Sequence[dict], overview: str, against: str) -> str:
    other = {
        'dense': 'dense on the same weights',
        'base': 'the entry of the same mode with the largest part of its options',
    }[against]
    success = [
        [r['shift'], r['entry'], r['episodes'], _percent(r), _points(r, 'difference'),
         _points(r, 'interaction')]
        for r in rows
    ]  # fmt: skip
    motion = [
        [r['shift'], r['entry'], _number(r['steps'], 1), _number(r['path_m'], 3),
         _number(r['jerk'], 1), _share(r['kept'])]
        for r in rows
    ]  # fmt: skip
    after = [
        [r['shift'], r['entry'], r['changed'],
         '-' if r['recovered'] is None else f'{r["recovered"]} of {r["changed"]}',
         _seconds(r['recovery_s']), _seconds(r['after_change_s']),
         *(_share(r[f'{when}_{what}']) for what in ('target', 'goal')
           for when in ('before', 'next', 'after'))]
        for r in rows if r['changed']
    ]  # fmt: skip
    text = [
        '# Shifted worlds', '', f'    {run["command"]}', '',
        environment_line(run['environment']),
        f'- suite `{run["suite"]}`, weights `{run["sha256"]}`, device {run["device"]},'
        f' {run["dtype"]}',
        '- Lockstep, whole chunks open loop; the same initial states and the same shifts for every'
        ' entry. A cell that is not here was not run.',
        '', overview, '', '![Success of every entry under every shift](success.png)', '',
        '## Success, and what the shift has to do with it', '',
        '95 % intervals: Wilson for success, Newcombe (method 10) for the paired difference to'
        f' {other}, paired bootstrap for the interaction, which is that'
        ' difference minus the same one in the unshifted suite, over the initial states that all'
        ' four have. p by McNemar (exact) and by a sign-flip test; behind the arrow adjusted by'
        ' Holm, once over all differences and once over all interactions on this page.', '',
        table(['shift', 'entry', 'episodes', 'success, %', f'minus {against}, points',
               'interaction, points'], success),
        '', '## Motion', '',
        'Means over successful episodes: control steps to completion, way of the hand, root mean'
        ' square of its jerk. Kept: share of the visual tokens in the last layer, all episodes.',
        '', table(['shift', 'entry', 'steps', 'path, m', 'jerk, m/s3', 'kept'], motion), '',
    ]  # fmt: skip
    if after:
        text += [
            '## After a change', '',
            'Recovery: from the change to the hand at its target again (0.04 m; `plate`: the'
            ' target over the plate); to success: from the change to the end. Medians over all'
            ' episodes with a change, those that never came included. Then in how many queries the'
            ' patch of the target and that of the goal was kept: before the change, in the very'
            ' next query, and in all after it.', '',
            table(['shift', 'entry', 'changes', 'recovered', 'recovery, s', 'to success, s',
                   'target before', 'next', 'after', 'goal before', 'next', 'after'], after), '',
        ]  # fmt: skip
    return '\n'.join(text)


def _percent(row: dict) -> str:
    return f'{100 * row["success"]:.0f} ({100 * row["low"]:.0f} to {100 * row["high"]:.0f})'


def _points(row: dict, what: str) -> str:
    if what not in row:
        return '-'
    v = row[what]
    return (
        f'{100 * v["value"]:+.0f} ({100 * v["low"]:+.0f} to {100 * v["high"]:+.0f}),'
        f' p {v["p"]:.2g} > {v["p_holm"]:.2g}'
    )


def _number(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def _seconds(value: float | str | None) -> str:
    return value if isinstance(value, str) else _number(value, 2)


def _share(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.0f} %'
