# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation: what ran where, the tables, the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_prune_ros.command_line import environment_line
from vla_prune_ros.evaluation import plots
from vla_prune_ros.evaluation.auditing import audit_table
from vla_prune_ros.evaluation.published import published_table
from vla_prune_ros.evaluation.rollouts import EpisodeRecord
from vla_prune_ros.evaluation.summary import layer_table, stages_of, summary_table, table


def write_pictures(
    rows: Sequence[dict],
    records: Sequence[EpisodeRecord],
    dimension_names: Sequence[str],
    chunk: int,
    directory: Path,
) -> list[tuple[str, str]]:
    """Draw everything that the rows allow; returns (file name, caption)."""
    rows = [row for row in rows if row['episodes']]
    if not rows:
        return []
    pictures = [
        ('success.png', 'Success of each entry.', plots.success_bars),
        (
            'success_against_tokens.png',
            'Success against the visual tokens that the decoder really computed.',
            plots.success_against_tokens,
        ),
        (
            'success_against_flops.png',
            'Success against the FLOPs of the decoder.',
            plots.success_against_flops,
        ),
        ('tokens_per_layer.png', 'Visual tokens computed in each layer.', plots.tokens_per_layer),
        ('latency.png', 'Where the time of a query goes.', plots.latency_by_stage),
    ]
    for name, _, draw in pictures:
        draw(rows, directory / name)
    drawn = [(name, caption) for name, caption, _ in pictures]
    curves = {r.episode.entry.name: np.array(r.actions) for r in records if r.actions}
    if curves:
        one = next(r for r in records if r.actions)
        title = f'{one.instruction} (initial state {one.episode.state})'
        plots.executed_actions(curves, dimension_names, chunk, title, directory / 'actions.png')
        drawn.append(('actions.png', 'Executed actions from one and the same initial state.'))
    return drawn


def markdown(run: dict, rows: Sequence[dict], pictures: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
        run: `environment()` plus `command`, `checkpoint`, `sha256`, `suite`, `workers`, `device`,
            `dtype`, `notes`.
        rows: from `summary.summarise`.
        pictures: from `write_pictures`.
    """
    env = run['environment']
    text = [
        f'# Closed-loop evaluation, suite `{run["suite"]}`',
        '',
        *([f'**{run["notice"]}**', ''] if run.get('notice') else []),
        f'    {run["command"]}',
        '',
        *([f'**In a shifted world: `{run["shift"]}`**', ''] if run.get('shift') else []),
        *_checkpoints(run, rows),
        environment_line(env),
        f'- {env["cpu"]}, {env["cores"]} cores, GPU {env["gpu"] or "none"}; device'
        f' {run["device"]}, {run["dtype"]}, {run["workers"]} worker processes,'
        f' {run["threads"]} torch thread(s) each',
        '- Lockstep, whole chunks open loop, the same initial states for every entry. Exceptions'
        ' are not failures and are left out of the success rate.',
        '- FLOPs count 2 per multiply-add, from the rows and keys that each layer really had.'
        ' Latency is wall time with all workers running, selection and preprocessing included,'
        ' the first query of each episode left out.',
        *[f'- {note}' for note in run['notes']],
        '',
        summary_table(rows, run['checkpoint']),
        '',
    ]
    if published := published_table(rows, run['suite'], run.get('notice', '')):
        text += ['Beside published numbers, which are means over 10 tasks x 50 trials:', '']
        text += [published, '']
    if audited := audit_table(rows):
        text += ['## What pruning changed', '']
        text += [
            'Mean absolute difference of the normalised actions from those of the dense policy at'
            ' the same observations, and how well it tells episodes that fail (area under the ROC'
            ' curve with 95 % interval; 0.5 tells nothing).',
            '',
            audited,
            '',
        ]
    text += _failures(run)
    for name, caption in pictures:
        text += [f'![{caption}]({name})', '', caption, '']
    text += ['## Success by task', '', _task_table(rows), '', '## Time by stage', '']
    text += [_stage_table(rows), '', '## Visual tokens computed in each layer', '']
    text += [layer_table([r for r in rows if r['episodes']], 'entry, layer', 1), '']
    text += ['## FLOPs per query (MFLOP)', '', _flops_table(rows), '']
    if any(row['landmarks'] for row in rows):
        text += ['## How often the patch that shows a thing was kept', '']
        text += ['Of all queries with the thing in the picture; its centre counts.', '']
        text += [_landmark_table(rows), '']
    return '\n'.join(text)


def _failures(run: dict) -> list[str]:
    """Episodes that ended in an exception; failures of the environment first."""
    failures = sorted(run.get('failures', ()), key=lambda f: f['failure'] != 'environment')
    if not failures:
        return []
    lines = [[f['entry'], f['task'], f['state'], f['failure'], f['error']] for f in failures]
    head = ['entry', 'task', 'initial state', 'what failed', 'error']
    return ['## Episodes without an outcome', '', table(head, lines), '']


def _checkpoints(run: dict, rows: Sequence[dict]) -> list[str]:
    """Every checkpoint with its digest; which entries ran on it where there are several."""
    entries: dict[tuple[str, str], list[str]] = {(run['checkpoint'], run['sha256']): []}
    for row in rows:
        entries.setdefault((row['checkpoint'], row['sha256']), []).append(row['name'])
    lines = []
    for (checkpoint, sha256), names in entries.items():
        who = f': {", ".join(names)}' if len(entries) > 1 else ''
        lines.append(f'- checkpoint `{checkpoint}`, sha256 `{sha256}`{who}')
    return lines


def _task_table(rows: Sequence[dict]) -> str:
    tasks = list(dict.fromkeys(task for row in rows for task in row['per_task']))
    lines = []
    for row in rows:
        counts = [row['per_task'].get(task, (0, 0)) for task in tasks]
        lines.append([row['name'], *[f'{good}/{all_}' for good, all_ in counts]])
    return table(['entry', *tasks], lines)


def _stage_table(rows: Sequence[dict]) -> str:
    stages = [*stages_of(rows), 'total']
    lines = []
    for row in rows:
        cells = []
        for stage in stages:
            values = row['latency_ms'].get(stage)
            has = values and values['n']
            cells.append(f'{values["p50"]:.2f} / {values["p95"]:.2f}' if has else '-')
        lines.append([row['name'], *cells])
    return table(['ms, p50 / p95', *stages], lines)


def _landmark_table(rows: Sequence[dict]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row['landmarks']))
    lines = []
    for row in rows:
        counts = [row['landmarks'].get(name, (0, 0)) for name in names]
        shares = [f'{100 * kept / seen:.0f} %' if seen else '-' for kept, seen in counts]
        tokens = row['visual_tokens'] or 1
        lines.append([row['name'], f'{100 * row["kept_last_layer"] / tokens:.0f} %', *shares])
    return table(['entry', 'of all patches', *names], lines)


def _flops_table(rows: Sequence[dict]) -> str:
    parts = list(dict.fromkeys(part for row in rows for part in row['flops']))
    lines = [
        [row['name'], *[f'{row["flops"].get(p, 0) / 1e6:.2f}' for p in parts],
         f'{row["flops_total"] / 1e6:.2f}']
        for row in rows
    ]  # fmt: skip
    return table(['part', *parts, 'total'], lines)
