# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Robot units to the numbers of the network and back, by the statistics of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_prune_ros.vla.variant import NORMALISATIONS

_EPS = 1e-8
BOUNDS = {'bounds_q99': ('q01', 'q99'), 'bounds': ('min', 'max')}


def resolve_unnorm_key(norm_stats: Mapping[str, Any], key: str | None) -> str:
    """Find the statistics to use: the key, the key with `_no_noops`, or the only ones there.

    Raises:
        ValueError: the key is unknown, or none was given and there are several.
    """
    known = ', '.join(sorted(norm_stats)) or 'none'
    if key is None:
        if len(norm_stats) == 1:
            return next(iter(norm_stats))
        raise ValueError(f'unnorm_key must be given; the checkpoint has: {known}')
    for name in (key, f'{key}_no_noops'):
        if name in norm_stats:
            return name
    raise ValueError(f'unknown unnorm_key {key!r}; the checkpoint has: {known}')


class Normaliser:
    """Scales robot state and actions so that the bounds of the training data become -1 and 1.

    Numbers that the mask leaves out stay as they are. Those that never changed in the training
    data are 0 in its labels: they are 0 here, and un-normalised they are what they were.
    """

    def __init__(
        self,
        statistics: Mapping[str, Any],
        action_dim: int,
        proprio_dim: int = 0,
        kind: str = 'bounds_q99',
    ) -> None:
        """Take the statistics of one data set.

        Args:
            statistics: `action` and `proprio` blocks with `q01` and `q99` or `min` and `max`, and
                perhaps `mask`.
            action_dim: numbers per action.
            proprio_dim: numbers in the robot state; 0: none is used.
            kind: bounds_q99, the 1 % and 99 % quantiles, or bounds, the least and the largest.

        Raises:
            ValueError: a block or a bound is missing, or has another number of numbers.
        """
        if kind not in NORMALISATIONS:
            raise ValueError(f'normalisation {kind!r} is not one of {", ".join(NORMALISATIONS)}')
        self.action = Bounds(statistics, 'action', action_dim, kind)
        self.proprio = Bounds(statistics, 'proprio', proprio_dim, kind) if proprio_dim else None

    def normalise_proprio(self, proprio: np.ndarray) -> np.ndarray:
        """Map the robot state float64 [..., proprio_dim] into -1..1; all of it is clipped.

        Raises:
            ValueError: this model takes no state.
        """
        if self.proprio is None:
            raise ValueError('this checkpoint takes no robot state')
        return self.proprio.scale(proprio).clip(-1.0, 1.0)

    def unnormalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """Map normalised actions [..., action_dim] to robot units, float64; not clipped."""
        q, actions = self.action, np.asarray(actions, dtype=np.float64)
        return np.where(q.mask, 0.5 * (actions + 1) * q.span + q.low, actions)

    def normalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """Invert `unnormalise_actions`, for training; float64, not clipped."""
        return self.action.scale(actions)


class Bounds:
    """Bounds of the numbers of one block.

    Attributes:
        low: lower bound, float64 [dim].
        span: upper bound - `low`, and a little, so that it is not 0.
        mask: whether a number is scaled, bool [dim].
        constant: whether it never changed, bool [dim].
    """

    def __init__(self, statistics: Mapping[str, Any], block: str, dim: int, kind: str) -> None:
        if block not in statistics:
            raise ValueError(f'the normalisation statistics have no {block!r} block')
        values = statistics[block]
        names = BOUNDS[kind]
        if missing := [name for name in names if name not in values]:
            raise ValueError(
                f'the {block} statistics have no {" and ".join(missing)}, which normalisation '
                f'{kind} needs; compute them from the data, or declare the other kind'
            )
        self.low, high = (np.asarray(values[name], dtype=np.float64) for name in names)
        self.mask = np.asarray(values.get('mask', [True] * dim), dtype=bool)
        if not self.low.shape == high.shape == self.mask.shape == (dim,):
            raise ValueError(f'the {block} statistics do not have {dim} numbers each')
        self.span = high - self.low + _EPS
        least, most = (np.asarray(values.get(n, ())) for n in ('min', 'max'))
        if not least.shape == most.shape == (dim,):
            least, most = self.low, high
        self.constant = (least == most) & self.mask

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Map the bounds to -1 and 1; constant numbers to 0."""
        values = np.asarray(values, dtype=np.float64)
        scaled = np.where(self.mask, 2 * (values - self.low) / self.span - 1, values)
        return np.where(self.constant, 0.0, scaled)
