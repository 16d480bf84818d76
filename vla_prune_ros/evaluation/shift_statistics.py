# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Statistics of shifted worlds: interactions, many comparisons, times that may never come."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vla_prune_ros.evaluation.statistics import Interval

RESAMPLES = 10_000


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given (Holm, Scand. J. Stat. 6:65, 1979).

    Rejecting what is below alpha keeps the chance of any false rejection below alpha.
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = largest
    return adjusted


def interaction(units: Sequence[Sequence[bool]], seed: int = 0) -> tuple[float, Interval, float]:
    """How much more a mode loses against dense in a shifted world than in the suite.

    Args:
        units: (mode shifted, dense shifted, mode plain, dense plain) successes of every initial
            state that all four finished.
        seed: of resampling.

    Returns:
        The difference of the differences; its 95 % interval by resampling initial states (paired
        bootstrap, percentiles); the two-sided p-value of a sign-flip test over initial states.
    """
    d = np.array([int(a) - int(b) - int(c) + int(e) for a, b, c, e in units], dtype=np.float64)
    if not len(d):
        return 0.0, Interval(-2.0, 2.0), 1.0
    rng = np.random.default_rng(seed)
    means = d[rng.integers(len(d), size=(RESAMPLES, len(d)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    flipped = np.abs(rng.choice([-1.0, 1.0], size=(RESAMPLES, len(d))) @ d)
    as_far = int((flipped >= abs(d.sum()) - 1e-9).sum())
    return float(d.mean()), Interval(float(low), float(high)), (as_far + 1) / (RESAMPLES + 1)


def median_with_never(times: Sequence[float | None]) -> float:
    """Median of times of which some never came (None counts as infinite); inf, NaN for none."""
    if not times:
        return math.nan
    known = sorted(math.inf if t is None else t for t in times)
    middle = len(known) // 2
    if len(known) % 2:
        return known[middle]
    return (known[middle - 1] + known[middle]) / 2 if math.isfinite(known[middle]) else math.inf
