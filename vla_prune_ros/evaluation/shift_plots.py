# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The heat map of shifted worlds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('agg')
from matplotlib import pyplot


def heat_map(rows: Sequence[dict], path: Path, difference_title: str) -> None:
    """Success of every entry under every shift, and beside it the paired difference.

    Args:
        rows: from `cells`; what is not there stays white.
        path: a PNG file.
        difference_title: what the difference is to.
    """
    shifts = list(dict.fromkeys(row['shift'] for row in rows))
    entries = list(dict.fromkeys(row['entry'] for row in rows))
    success = np.full((len(shifts), len(entries)), np.nan)
    difference = success.copy()
    for row in rows:
        place = shifts.index(row['shift']), entries.index(row['entry'])
        success[place] = 100 * row['success']
        if 'difference' in row:
            difference[place] = 100 * row['difference']['value']
    size = (3.0 + 1.7 * len(entries), 1.6 + 0.42 * len(shifts))
    figure, axes = pyplot.subplots(1, 2, figsize=size, sharey=True, gridspec_kw={'wspace': 0.05})
    limit = max(20.0, float(np.nanmax(np.abs(difference), initial=0.0)))
    for ax, values, title, look in (
        (axes[0], success, 'success, %', {'cmap': 'viridis', 'vmin': 0, 'vmax': 100}),
        (axes[1], difference, f'{difference_title}, points',
         {'cmap': 'RdBu', 'vmin': -limit, 'vmax': limit}),
    ):  # fmt: skip
        ax.imshow(values, aspect='auto', **look)
        ax.set_title(title, fontsize=10)
        ax.set_xticks(range(len(entries)), entries, rotation=45, ha='right')
        ax.set_yticks(range(len(shifts)), shifts)
        for (y, x), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value < 55 if ax is axes[0] else abs(value) > 0.6 * limit
                text = f'{value:.0f}' if ax is axes[0] else f'{value:+.0f}'
                colour = 'white' if dark else 'black'
                ax.text(x, y, text, ha='center', va='center', color=colour, fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches='tight')
    pyplot.close(figure)
