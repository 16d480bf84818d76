# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Does the deviation of a pruned policy from the dense one tell which episodes will fail?

The deviations are those that the policy node publishes (`policy/audit.py`), here of every query.
An episode's score is their mean, or the largest value that their running mean ever has, which is
what a threshold on the robot sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros.evaluation.statistics import Interval, auroc, auroc_interval

if TYPE_CHECKING:
    from vla_prune_ros.evaluation.rollouts import EpisodeRecord
    from vla_prune_ros.policy.audit import Deviation

OVERALL = 'overall'
FALSE_ALARM = 0.05  # share of the good episodes in which a threshold may act


def note_audit(store: dict[str, list[float]], found: Deviation | None) -> None:
    """Keep the deviation of a query with those before."""
    assert found is not None  # nobody gives it up
    for name, value in {**found.groups, OVERALL: found.overall}.items():
        store.setdefault(name, []).append(round(value, 6))


def running_mean(values: Sequence[float]) -> list[float]:
    """The smoothed deviation after every query, as the node has it."""
    from vla_prune_ros.policy.audit import SMOOTHING

    smoothed: list[float] = []
    for value in values:
        before = smoothed[-1] if smoothed else value
        smoothed.append(SMOOTHING * value + (1 - SMOOTHING) * before)
    return smoothed


def audit_row(records: Iterable[EpisodeRecord]) -> dict[str, Any] | None:
    """What the audit says about an entry; None if nothing was audited.

    Returns:
        Counts, the mean deviation by group, AUROC of failure with its interval for the episode's
        mean by group and for the running mean (None without failures or without successes), and
        the threshold of `FALSE_ALARM` with the share of failures that exceed it.
    """
    audited = [r for r in records if not r.error and r.audit.get(OVERALL)]
    if not audited:
        return None
    failed = np.array([not r.success for r in audited])
    scores = {
        f'mean {group}': np.array([np.mean(r.audit[group]) for r in audited])
        for group in audited[0].audit
    }
    scores['running mean'] = np.array([max(running_mean(r.audit[OVERALL])) for r in audited])
    row: dict[str, Any] = {
        'episodes': len(audited),
        'failures': int(failed.sum()),
        'queries': sum(len(r.audit[OVERALL]) for r in audited),
        'deviation': {
            group: float(np.mean(np.concatenate([r.audit[group] for r in audited])))
            for group in audited[0].audit
        },
        'auroc': {name: _predicts(values, failed) for name, values in scores.items()},
        'threshold': None,
    }
    running = scores['running mean']
    if (~failed).any():
        threshold = float(np.quantile(running[~failed], 1 - FALSE_ALARM, method='higher'))
        row['threshold'] = {
            'false_alarm': FALSE_ALARM,
            'value': threshold,
            'noticed': float((running[failed] > threshold).mean()) if failed.any() else None,
        }
    return row


def add_audits(rows: Sequence[dict], records: Iterable[EpisodeRecord]) -> None:
    """Put what the audit says into the rows of a summary, as `audit`."""
    by_entry: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        by_entry.setdefault(record.episode.entry.name, []).append(record)
    for row in rows:
        row['audit'] = audit_row(by_entry.get(row['name'], ()))


def _predicts(values: np.ndarray, failed: np.ndarray) -> dict[str, float] | None:
    bad, good = values[failed], values[~failed]
    if not (len(bad) and len(good)):
        return None
    area = auroc(bad, good)
    low, high = auroc_interval(area, len(bad), len(good))
    return {'value': area, 'low': low, 'high': high}


def audit_table(rows: Sequence[dict]) -> str:
    """The rows that were audited, in Markdown; '' if none was."""
    from vla_prune_ros.evaluation.summary import table

    audited = [(row['name'], row['audit']) for row in rows if row.get('audit')]
    if not audited:
        return ''
    groups = [*audited[0][1]['deviation']]
    lines = []
    for name, audit in audited:
        threshold = audit['threshold']
        noticed = threshold and threshold['noticed']
        lines.append([
            name,
            f'{audit["failures"]} / {audit["episodes"]}',
            *[f'{audit["deviation"][group]:.4f}' for group in groups],
            _area(audit['auroc'][f'mean {OVERALL}']),
            _area(audit['auroc']['running mean']),
            f'{threshold["value"]:.3f}' if threshold else '-',
            '-' if noticed is None else f'{100 * noticed:.0f} %',
        ])  # fmt: skip
    headers = [
        'entry', 'failures', *groups, 'AUROC of the mean (95 %)',
        'AUROC of the largest running mean (95 %)', 'threshold of 5 % false alarms',
        'failures above it',
    ]  # fmt: skip
    return table(headers, lines)


def _area(found: dict[str, float] | None) -> str:
    if found is None:
        return '-'
    interval = Interval(found['low'], found['high'])
    return f'{found["value"]:.3f} ({interval.low:.3f} to {interval.high:.3f})'
