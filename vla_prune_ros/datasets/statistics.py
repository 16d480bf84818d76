# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Normalisation statistics in the published layout, `dataset_statistics.json`.

As OpenVLA-OFT computes them (rlds/utils/data_utils.py): over all steps, float32 values after the
conversion of the gripper, before chunks are cut. Quantiles are taken in float64: numpy 1, which
the released statistics were made with, promoted float32 there, and numpy 2 does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE = 'dataset_statistics.json'


def statistics(
    actions: np.ndarray,
    proprio: np.ndarray | None,
    mask: Sequence[bool],
    trajectories: int,
) -> dict[str, Any]:
    """One entry of the published file.

    Args:
        actions: float32 [N, A]; may be mapped from a file, one column is in memory at a time.
        proprio: float32 [N, P], likewise; None for a robot without.
        mask: [A], which numbers of an action are normalised.
        trajectories: episodes.
    """
    entry: dict[str, Any] = {'action': {**_block(actions), 'mask': [bool(m) for m in mask]}}
    if proprio is not None:
        entry['proprio'] = _block(proprio)
    return entry | {'num_transitions': len(actions), 'num_trajectories': trajectories}


def _block(values: np.ndarray) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {
        name: [] for name in ('mean', 'std', 'max', 'min', 'q01', 'q99')
    }
    for number in range(values.shape[1]):
        x = np.asarray(values[:, number], dtype=np.float64)
        q01, q99 = np.quantile(x, (0.01, 0.99))
        numbers = (x.mean(), x.std(), x.max(), x.min(), q01, q99)
        for column, value in zip(columns.values(), numbers, strict=True):
            column.append(float(value))
    return columns


def save_statistics(directory: Path, entries: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `dataset_statistics.json`, one entry per data set, in the place of an older one."""
    path = directory / FILE
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(entries, indent=2) + '\n', encoding='utf-8')
    partial.rename(path)
    return path
