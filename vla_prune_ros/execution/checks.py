# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a chunk must be before it leaves for a robot. Numpy only."""

from __future__ import annotations

import numpy as np

# Range of an action: controller units for the six deltas, raw gripper.
ACTION_LOW = np.array([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 0.0])
ACTION_HIGH = np.ones(7)


class ChunkError(ValueError):
    """A chunk that must not reach a robot; the text says why."""


def safe_actions(
    actions: np.ndarray,
    period: int,
    low: np.ndarray = ACTION_LOW,
    high: np.ndarray = ACTION_HIGH,
) -> tuple[np.ndarray, int]:
    """Actions of a chunk, clipped to the range of the controller.

    Args:
        actions: [n, k] in robot units, n at least 1.
        period: control period, ns.
        low: least action, [k].
        high: largest action, [k].

    Returns:
        float64 [n, k], and how many numbers were outside.

    Raises:
        ChunkError: another shape, numbers that are not finite, or a period that is not positive.
    """
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or not len(actions) or actions.shape[1] != len(low):
        raise ChunkError(f'chunk of shape {actions.shape}; expected [n, {len(low)}]')
    if not np.isfinite(actions).all():
        raise ChunkError('an action of the chunk is not finite')
    if period <= 0:
        raise ChunkError(f'control period of {period} ns')
    clipped = np.clip(actions, low, high)
    return clipped, int(np.count_nonzero(clipped != actions))
