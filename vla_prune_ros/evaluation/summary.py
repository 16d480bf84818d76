# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From episode records to one row per entry, and the tables in files and on screen."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vla_prune_ros.evaluation.landmarks import add_counts
from vla_prune_ros.evaluation.rollouts import Entry, EpisodeRecord
from vla_prune_ros.evaluation.statistics import PairedComparison, percentiles, wilson_interval

STAGES = (
    *('preprocess', 'vision', 'select', 'rehearsal', 'decoder', 'head'),
    *('pass', 'postprocess'),  # the first: several of them that ran as one
)


def summarise(
    entries: Sequence[Entry],
    records: Iterable[EpisodeRecord],
    baseline: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[dict]:
    """One row per entry, in the order of `entries`.

    Episodes that ended in an exception are counted in `exceptions` and nowhere else. The paired
    difference is entry minus baseline over the initial states that both finished.

    Args:
        entries: the lines of the comparison.
        records: outcomes of any entries.
        baseline: name of the entry to compare with; none is compared without.
        notes: entry name -> what a reader must know about it.
    """
    by_entry: dict[str, list[EpisodeRecord]] = {entry.name: [] for entry in entries}
    for record in records:
        if record.episode.entry.name in by_entry:
            by_entry[record.episode.entry.name].append(record)
    dense = _outcomes(by_entry[baseline]) if baseline in by_entry else None
    rows = []
    for entry in entries:
        row = _row(entry, by_entry[entry.name])
        row['note'] = (notes or {}).get(entry.name, '')
        if dense is not None and entry.name != baseline:
            row['paired'] = _paired(_outcomes(by_entry[entry.name]), dense)
        rows.append(row)
    return rows


def _outcomes(records: Iterable[EpisodeRecord]) -> dict[tuple, bool]:
    return {(r.episode.task, r.episode.state): r.success for r in records if not r.error}


def _paired(ours: dict[tuple, bool], dense: dict[tuple, bool]) -> dict:
    common = sorted(ours.keys() & dense.keys())
    result = PairedComparison.from_outcomes((ours[k], dense[k]) for k in common)
    low, high = result.interval()
    return {
        'n': result.n,
        'only_this': result.only_first,
        'only_baseline': result.only_second,
        'difference': result.difference,
        'low': low,
        'high': high,
        'p': result.p_value,
    }


def _row(entry: Entry, records: Sequence[EpisodeRecord]) -> dict:
    done = [r for r in records if not r.error]
    successes = sum(bool(r.success) for r in done)
    low, high = wilson_interval(successes, len(done))
    row = {
        'name': entry.name,
        'mode': entry.mode,
        'options': dict(entry.options),
        'checkpoint': entry.checkpoint,
        'sha256': entry.sha256,
        'episodes': len(done),
        'successes': successes,
        'exceptions': len(records) - len(done),
        'environment_failures': sum(r.failure == 'environment' for r in records),
        'success': successes / len(done) if done else 0.0,
        'low': low,
        'high': high,
        'paired': None,
    }
    queries = np.array([r.queries for r in done], dtype=np.float64)
    weights = queries / queries.sum() if done else queries
    per_layer = sum((w * np.asarray(r.visual_rows) for w, r in zip(weights, done, strict=True)), 0)
    per_layer = np.atleast_1d(per_layer)
    flops = {
        part: float(sum(w * r.flops[part] for w, r in zip(weights, done, strict=True)))
        for part in (done[0].flops if done else ())
    }
    row |= {
        'visual_tokens': max((r.visual_tokens for r in done), default=0),
        'kept_last_layer': float(weights @ [r.kept for r in done]) if done else 0.0,
        'visual_rows_per_layer': per_layer.round(3).tolist(),
        'visual_rows_mean': float(per_layer.mean()),
        'flops': flops,
        'flops_total': sum(flops.values()),
        'queries_per_episode': float(queries.mean()) if done else 0.0,
        'steps_if_success': _mean([r.steps for r in done if r.success]),
        'latency_ms': _latency(done),
        'landmarks': _landmarks(done),
        'resets': _sum_counts(r.resets for r in done),
        'per_task': _per_task(done),
    }
    return row


def _latency(records: Sequence[EpisodeRecord]) -> dict[str, dict]:
    """Percentiles by stage; the first query of each episode warms up and is left out."""
    samples: dict[str, list[float]] = {}
    for record in records:
        for stage, values in record.timing_ms.items():
            samples.setdefault(stage, []).extend(values[1:] or values)
    return {stage: percentiles(values) for stage, values in samples.items()}


def _per_task(records: Sequence[EpisodeRecord]) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = {}
    for record in sorted(records, key=lambda r: r.episode.task):
        tally = counts.setdefault(record.task_name, [0, 0])
        tally[0] += bool(record.success)
        tally[1] += 1
    return counts


def _landmarks(records: Sequence[EpisodeRecord]) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for record in records:
        add_counts(total, record.landmarks)
    return total


def _sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for key, n in one.items():
            total[key] = total.get(key, 0) + n
    return total


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


COLUMNS = (
    ('entry', lambda r: r['name']),
    ('mode', lambda r: r['mode']),
    ('options', lambda r: json.dumps(r['options'], sort_keys=True)),
    ('episodes', lambda r: r['episodes']),
    ('successes', lambda r: r['successes']),
    ('exceptions', lambda r: r['exceptions']),
    ('success', lambda r: round(r['success'], 4)),
    ('low', lambda r: round(r['low'], 4)),
    ('high', lambda r: round(r['high'], 4)),
    ('difference', lambda r: round(r['paired']['difference'], 4) if r['paired'] else ''),
    ('mcnemar_p', lambda r: f'{r["paired"]["p"]:.4g}' if r['paired'] else ''),
    ('visual_tokens', lambda r: r['visual_tokens']),
    ('kept_last_layer', lambda r: round(r['kept_last_layer'], 2)),
    ('visual_rows_mean', lambda r: round(r['visual_rows_mean'], 2)),
    ('decoder_mflop', lambda r: round(r['flops'].get('decoder', 0) / 1e6, 3)),
    ('total_mflop', lambda r: round(r['flops_total'] / 1e6, 3)),
    ('queries_per_episode', lambda r: round(r['queries_per_episode'], 2)),
    ('latency_p50_ms', lambda r: _total(r, 'p50')),
    ('latency_p95_ms', lambda r: _total(r, 'p95')),
    ('checkpoint', lambda r: r['checkpoint'] or ''),
    ('sha256', lambda r: r['sha256']),
    ('note', lambda r: r['note']),
)


def _total(row: dict, level: str) -> float | str:
    value = row['latency_ms'].get('total', {}).get(level)
    return '' if value is None else round(value, 3)


def write_summary_csv(rows: Sequence[dict], path: Path) -> None:
    """One line per entry."""
    with Path(path).open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow([name for name, _ in COLUMNS])
        writer.writerows([get(row) for _, get in COLUMNS] for row in rows)


def write_episodes_csv(records: Sequence[EpisodeRecord], path: Path) -> None:
    """One line per episode."""
    with Path(path).open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(
            ['entry', 'mode', 'task', 'state', 'success', 'steps', 'queries', 'kept_last_layer',
             'decoder_mflop', 'latency_p50_ms', 'wall_s', 'error']
        )  # fmt: skip
        for r in records:
            latency = percentiles(r.timing_ms.get('total', []))['p50']
            writer.writerow([
                r.episode.entry.name, r.episode.entry.mode, r.task_name, r.episode.state,
                '' if r.success is None else int(r.success), r.steps, r.queries,
                round(r.kept, 2), round(r.flops.get('decoder', 0) / 1e6, 3),
                '' if latency is None else round(latency, 3), r.wall_s, r.error or '',
            ])  # fmt: skip


def table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well on a terminal; first column left, others right."""
    cells = [list(map(str, headers)), *[list(map(str, line)) for line in lines]]
    widths = [max(len(row[k]) for row in cells) for k in range(len(headers))]

    def draw(row: Sequence[str]) -> str:
        first, *rest = (cell for cell in row)
        padded = [first.ljust(widths[0])]
        padded += [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        return '| ' + ' | '.join(padded) + ' |'

    rule = ['-' * widths[0]] + ['-' * (w - 1) + ':' for w in widths[1:]]
    return '\n'.join([draw(cells[0]), draw(rule), *map(draw, cells[1:])])


def stages_of(rows: Iterable[Mapping]) -> list[str]:
    """Stages that were timed in any row, in the order of a query, `total` left out."""
    found = {stage for row in rows for stage in row['latency_ms']} - {'total'}
    return [*(s for s in STAGES if s in found), *sorted(found.difference(STAGES))]


def layer_table(rows: Sequence[Mapping], corner: str, digits: int) -> str:
    """Visual tokens computed in each decoder layer, mean over queries."""
    depth = max((len(row['visual_rows_per_layer']) for row in rows), default=0)
    lines = [
        [row['name'], *[f'{v:.{digits}f}' for v in row['visual_rows_per_layer']]] for row in rows
    ]
    return table([corner, *range(depth)], lines)


def footnotes(names: Sequence[str], notes: Sequence[Sequence[str]]) -> tuple[list[str], str]:
    """Mark the lines of a table that something must be said about; equal notes count once.

    Args:
        names: of the lines.
        notes: texts on each of them.

    Returns:
        The names with marks, and the numbered texts for below the table, one per line.
    """
    numbers = {text: k for k, text in enumerate(dict.fromkeys(n for ns in notes for n in ns), 1)}
    marked = [
        ' '.join([name, *(f'[{numbers[text]}]' for text in texts)])
        for name, texts in zip(names, notes, strict=True)
    ]
    return marked, '\n'.join(f'- [{number}] {text}' for text, number in numbers.items())


def percent(row: dict) -> str:
    """Success with its interval, as in `92.0 % (86.1 to 95.6)`."""
    if not row['episodes']:
        return 'no episode'
    return f'{100 * row["success"]:.1f} % ({100 * row["low"]:.1f} to {100 * row["high"]:.1f})'


def _milliseconds(values: dict | None) -> str:
    if not values or not values['n']:
        return '-'
    return f'{values["p50"]:.2f} / {values["p95"]:.2f}'


def summary_table(rows: Sequence[dict], checkpoint: str | None = None) -> str:
    """The table of an evaluation in Markdown, with notes below it.

    Args:
        rows: from `summarise`.
        checkpoint: that of the run; other ones are noted.
    """
    notes = [
        [f'on checkpoint {row["checkpoint"]}'] * (row['checkpoint'] not in (None, checkpoint))
        + [row['note']] * bool(row['note'])
        for row in rows
    ]
    names, below = footnotes([row['name'] for row in rows], notes)
    lines = []
    for name, row in zip(names, rows, strict=True):
        paired = row['paired']
        lines.append([
            name,
            row['episodes'],
            row['exceptions'],
            percent(row),
            f'{100 * paired["difference"]:+.1f} ({100 * paired["low"]:+.1f} to'
            f' {100 * paired["high"]:+.1f}), p {paired["p"]:.3g}' if paired else '-',
            f'{row["kept_last_layer"]:.1f}',
            f'{row["visual_rows_mean"]:.1f}',
            f'{row["flops"].get("decoder", 0) / 1e6:.1f}',
            f'{row["queries_per_episode"]:.1f}',
            _milliseconds(row['latency_ms'].get('total')),
        ])  # fmt: skip
    headers = [
        'entry', 'episodes', 'exceptions', 'success (95 % Wilson)',
        'minus dense, points (McNemar)',
        'kept in last layer', 'computed per layer', 'decoder MFLOP', 'queries per episode',
        'chunk ms p50 / p95',
    ]  # fmt: skip
    return table(headers, lines) + (f'\n\n{below}' if below else '')
