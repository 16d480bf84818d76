# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The bar chart of a benchmark: what every arm spends its time on, and the floor under it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from vla_prune_ros.benchmark.report import STAGES, unit_of

# Okabe and Ito 2008, and hatches for print.
_LOOKS = dict(
    zip(
        STAGES,
        (('#999999', ''), ('#E69F00', '//'), ('#D55E00', 'xx'), ('#F0E442', '--'),
         ('#56B4E9', ''), ('#009E73', '..'), ('#CC79A7', '\\\\')),
        strict=True,
    )
)  # fmt: skip


def draw(rows: Sequence[dict], relative: bool, title: str, path: Path) -> None:
    """Write one PNG.

    Args:
        rows: from `report.make_rows`.
        relative: times as multiples of the dense arm instead of milliseconds.
        title: what was measured where.
        path: file to write.
    """
    factor, unit = unit_of(rows, relative)
    figure = Figure(figsize=(8, 1.9 + 0.42 * len(rows)), dpi=120, layout='constrained')
    axes = figure.subplots()
    axes.grid(axis='x', color='#E5E5E5', linewidth=0.7)
    axes.set_axisbelow(True)
    for place, row in enumerate(rows):
        left, latency = 0.0, row['latency_ms']
        for stage, (colour, hatch) in _LOOKS.items():
            width = latency.get(stage, {}).get('p50', 0.0) * factor
            axes.barh(place, width, left=left, color=colour, hatch=hatch, edgecolor='white')
            left += width
        total, floor = latency['total'], row['floor_ms']['total'] * factor
        axes.plot(total['p95'] * factor, place, 'k|', markersize=12)
        axes.plot([floor, floor], [place - 0.4, place + 0.4], color='#0072B2', linewidth=2)
    values = [row['latency_ms']['total']['p50'] * factor for row in rows]
    names = [f'{r["name"]}  {value:.2f}' for r, value in zip(rows, values, strict=True)]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(x=0.08)
    axes.set_xlabel(
        f'time of a query ({unit}): medians of stages; | p95 of the whole;'
        ' blue: floor of the machine'
    )
    used = [s for s in STAGES if any(s in row['latency_ms'] for row in rows)]
    patches = [axes.barh(0, 0, color=_LOOKS[s][0], hatch=_LOOKS[s][1], label=s) for s in used]
    axes.legend(handles=patches, fontsize=8, ncols=len(used), loc='lower center',
                bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
