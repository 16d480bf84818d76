# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation: readable in print and with any kind of colour vision.

Every function takes summary rows as `summary.summarise` makes them and writes one PNG. Modes
differ by marker or position as well as by colour (palette: Okabe and Ito 2008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vla_prune_ros.evaluation.summary import stages_of

_PALETTE = (
    '#000000', '#E69F00', '#56B4E9', '#009E73', '#0072B2', '#D55E00', '#CC79A7', '#B5A900',
    '#888888', '#44AA99', '#882255', '#999933',
)  # fmt: skip
_MARKERS = 'osD^vPX*<>hdp'
_STAGE_HATCHES = ('', '//', '..', 'xx', '\\\\', 'oo', '--', '++')
CONTROLS = ('random', 'grid')


def method(row: Mapping) -> tuple[str, str | None]:
    """What makes entries points of one curve: their mode and the weights they run on."""
    return row['mode'], row['checkpoint']


def styles(rows: Sequence[Mapping]) -> dict[tuple[str, str | None], dict]:
    """Colour and marker of each method, the same in every picture of one report."""
    methods = list(dict.fromkeys(map(method, rows)))
    return {
        one: {
            'color': _PALETTE[k % len(_PALETTE)],
            'marker': _MARKERS[k % len(_MARKERS)],
        }
        for k, one in enumerate(methods)
    }


def success_bars(rows: Sequence[Mapping], path: Path) -> None:
    """Success of each entry with its 95 % Wilson interval, entries from top to bottom."""
    figure, axes = _figure(7, 1.2 + 0.42 * len(rows))
    style = styles(rows)
    for k, row in enumerate(rows):
        axes.barh(k, 100 * row['success'], color=style[method(row)]['color'], alpha=0.5)
        axes.plot([100 * row['low'], 100 * row['high']], [k, k], color='#222222', linewidth=2)
        label = f'{row["successes"]}/{row["episodes"]}'
        axes.text(101, k, label, va='center', fontsize=8)
    axes.set_yticks(range(len(rows)), [row['name'] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel('episodes that succeeded (%), bar: 95 % Wilson interval')
    _save(figure, path)


def success_against_tokens(rows: Sequence[Mapping], path: Path) -> None:
    """Success against visual tokens computed per layer; see `_success_against`."""
    label = 'visual tokens per decoder layer (mean over layers and queries)'
    _success_against([row['visual_rows_mean'] for row in rows], label, rows, path)


def success_against_flops(rows: Sequence[Mapping], path: Path) -> None:
    """Success against the FLOPs of the decoder, of the dense model if it ran, else absolute."""
    dense = next((row for row in rows if row['mode'] == 'none'), None)
    unit, label = 1e6, 'decoder MFLOP per query (mean)'
    if dense is not None:
        unit, label = dense['flops']['decoder'], 'decoder FLOPs per query, dense = 1'
    _success_against([row['flops']['decoder'] / unit for row in rows], label, rows, path)


def _success_against(
    cost: Sequence[float], cost_label: str, rows: Sequence[Mapping], path: Path
) -> None:
    """Success against what a query costs.

    Several budgets of a mode are joined, ablations stand alone and pale. `random` at the count of
    a method is the hollow mark in that method's look, joined to it by a thin line: the shorter
    the line, the less was selected.
    """
    figure, axes = _figure(8, 4.6)
    style = styles(rows)
    defaults = {row['mode']: row for row in reversed(rows) if not row['options']}
    several = len({row['checkpoint'] for row in rows}) > 1
    rows = [{**row, 'cost': value} for row, value in zip(rows, cost, strict=True)]
    for one, look in style.items():
        mode, checkpoint = one
        label = _with_note(mode) + (f' on {Path(checkpoint).name}' if several else '')
        points = [row for row in rows if method(row) == one and not _matched(row)]
        points.sort(key=lambda row: row['cost'])
        curves: dict[str, list[Mapping]] = {}
        for row in points:
            curves.setdefault(_curve(row), []).append(row)
        line = '--' if mode in CONTROLS else '-'
        for k, curve in enumerate(curves.values()):
            budgets = [row for row in curve if not _is_ablation(row)]
            _success_points(axes, budgets, **look, label=label if not k else None, linestyle=line)
            ablations = [row for row in curve if _is_ablation(row)]
            _success_points(axes, ablations, **look, linestyle='none', alpha=0.5)
    for row in rows:
        other = defaults.get(_matched(row))
        if other is None:
            continue
        look = style[method(other)]
        _success_points(axes, [row], **look, markerfacecolor='white', linestyle='none')
        axes.plot(
            [row['cost'], next(r['cost'] for r in rows if r['name'] == other['name'])],
            [100 * row['success'], 100 * other['success']],
            color=look['color'], linewidth=0.8, linestyle=':',
        )  # fmt: skip
    if any(map(_matched, rows)):
        axes.plot([], [], 'ko', markerfacecolor='white', label='random, as many as that method')
    axes.set_xlim(left=0)
    axes.set_ylim(0, 103)
    axes.set_xlabel(cost_label)
    axes.set_ylabel('success (%), 95 % Wilson interval')
    figure.legend(fontsize=8, loc='outside right upper')
    _save(figure, path)


def _matched(row: Mapping) -> str | None:
    """The method whose count a control takes."""
    return (row['options'] or {}).get('matched_to') or None


def _curve(row: Mapping) -> str:
    """What the points of one curve have in common: a budget varies, and then nothing else."""
    options = row['options'] or {}
    rest = {k: v for k, v in options.items() if k != 'budget'}
    return repr(sorted(rest.items())) if 'budget' in options else ''


def _is_ablation(row: Mapping) -> bool:
    """A part switched off, which is no other budget."""
    return any(isinstance(value, bool) for value in (row['options'] or {}).values())


def _success_points(axes, rows: Sequence[Mapping], **look) -> None:
    y = np.array([100 * row['success'] for row in rows])
    low = y - [100 * row['low'] for row in rows]
    high = [100 * row['high'] for row in rows] - y
    axes.errorbar(
        [row['cost'] for row in rows], y,
        yerr=[np.maximum(low, 0), np.maximum(high, 0)], capsize=3, markersize=7, **look,
    )  # fmt: skip


def tokens_per_layer(rows: Sequence[Mapping], path: Path) -> None:
    """Visual tokens computed in each decoder layer, mean over all queries, modes at defaults."""
    figure, axes = _figure(7, 4)
    style = styles(rows)
    plain = [row for row in rows if not row['options']]
    for row in plain or rows:
        look = style[method(row)]
        axes.plot(row['visual_rows_per_layer'], label=row['name'], alpha=0.85, **look)
    axes.set_ylim(bottom=0)
    axes.set_xlabel('decoder layer (0 = first)')
    axes.set_ylabel('visual tokens computed')
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(fontsize=8, loc='outside right upper')
    _save(figure, path)


def latency_by_stage(
    rows: Sequence[Mapping], path: Path, factor: float = 1.0, unit: str = 'ms', title: str = ''
) -> None:
    """Median wall time of each stage of a query, stacked; the mark is the p95 of the total.

    Args:
        rows: with `latency_ms`; where there is a `floor_ms` its total is drawn, too.
        path: PNG to write.
        factor: what milliseconds are multiplied with.
        unit: what they are called then.
        title: above the picture.
    """
    figure, axes = _figure(8, 1.9 + 0.42 * len(rows))
    stages = stages_of(rows)
    names = []
    for k, row in enumerate(rows):
        left, latency = 0.0, row['latency_ms']
        for s, stage in enumerate(stages):
            width = ((latency.get(stage) or {}).get('p50') or 0.0) * factor
            axes.barh(
                k, width, left=left, edgecolor='white', label=stage if k == 0 else None,
                color=_PALETTE[(s + 1) % len(_PALETTE)], hatch=_STAGE_HATCHES[s % 8],
            )  # fmt: skip
            left += width
        total = latency.get('total') or {}
        names.append(row['name'])
        if total.get('p95') is not None:
            names[-1] += f'  {total["p50"] * factor:.2f}'
            axes.plot(total['p95'] * factor, k, 'k|', markersize=12)
        if 'floor_ms' in row:
            floor = row['floor_ms']['total'] * factor
            axes.plot([floor, floor], [k - 0.4, k + 0.4], color='#0072B2', linewidth=2)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    below = '; blue: floor of the machine' if any('floor_ms' in row for row in rows) else ''
    axes.set_xlabel(
        f'wall time per query ({unit}): median of each stage; | is p95 of the total{below}'
    )
    axes.legend(fontsize=8, ncols=4, loc='lower center', bbox_to_anchor=(0.5, 1.0))
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def executed_actions(
    episodes: Mapping[str, np.ndarray],
    names: Sequence[str],
    chunk: int,
    title: str,
    path: Path,
) -> None:
    """What the robot was told in one and the same initial state, one curve per entry.

    Args:
        episodes: entry name -> executed actions [steps, D] in robot units.
        names: D dimension names.
        chunk: actions per query; a faint line marks each query.
        title: task and initial state.
        path: PNG to write.
    """
    figure = Figure(figsize=(8, 1.25 * len(names) + 0.8), dpi=120, layout='constrained')
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for d, (axes, name) in enumerate(zip(panels, names, strict=True)):
        for k, (entry, actions) in enumerate(episodes.items()):
            axes.plot(
                actions[:, d], color=_PALETTE[k % len(_PALETTE)], linewidth=1.3, label=entry,
                linestyle=('-', '--', '-.', ':')[k % 4],
            )  # fmt: skip
        longest = max(len(actions) for actions in episodes.values())
        for query in range(0, longest, chunk):
            axes.axvline(query, color='#DDDDDD', linewidth=0.6, zorder=0)
        axes.set_ylabel(name, fontsize=8)
        axes.tick_params(labelsize=7)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=6, loc='outside lower center')
    panels[-1].set_xlabel('control step')
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _with_note(mode: str) -> str:
    if mode == 'none':
        return 'none (dense)'
    return f'{mode} (control)' if mode in CONTROLS else mode


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), dpi=120, layout='constrained')
    axes = figure.subplots()
    axes.grid(axis='both', color='#E5E5E5', linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
