# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Success statistics of closed-loop episodes: intervals, paired tests, percentiles.

Everything here is exact or a closed formula; nothing needs ROS, torch or scipy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A closed interval on the scale of the estimate it belongs to."""

    low: float
    high: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion, without continuity correction.

    It stays inside [0, 1] and keeps a width at 0 and 100 % success, where the textbook interval
    collapses. Source: Wilson 1927; Newcombe, Stat. Med. 17:857 (1998), method 3.

    Args:
        successes: number of successful episodes.
        n: number of episodes; with none the interval is all of [0, 1].
        confidence: two-sided level, between 0 and 1.

    Raises:
        ValueError: counts or level out of range.
    """
    if not 0 <= successes <= n:
        raise ValueError(f'{successes} successes out of {n} episodes')
    z = _normal_quantile(confidence)
    if n == 0:
        return Interval(0.0, 1.0)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(low, high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test: are the discordant pairs a fair coin?

    Args:
        only_first: pairs in which only the first mode succeeded.
        only_second: pairs in which only the second mode succeeded.

    Returns:
        The p-value; 1.0 when no pair is discordant.
    """
    if min(only_first, only_second) < 0:
        raise ValueError('counts of pairs cannot be negative')
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True)
class PairedComparison:
    """Two modes on the same initial states: four counts and what follows from them."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def from_outcomes(cls, pairs: Iterable[tuple[bool, bool]]) -> PairedComparison:
        """Count pairs of (first mode succeeded, second mode succeeded)."""
        counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
        for first, second in pairs:
            counts[bool(first), bool(second)] += 1
        return cls(*counts.values())

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the first mode minus that of the second; 0 without pairs."""
        return (self.only_first - self.only_second) / self.n if self.n else 0.0

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar p-value."""
        return mcnemar_exact(self.only_first, self.only_second)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Score interval of the paired difference.

        Source: Newcombe, Stat. Med. 17:2635 (1998), method 10 (Wilson limits of both rates,
        joined through a continuity-corrected phi coefficient).
        """
        a, b, c, d, n = self.both, self.only_first, self.only_second, self.neither, self.n
        if n == 0:
            return Interval(-1.0, 1.0)
        first, second = (a + b) / n, (a + c) / n
        low1, high1 = wilson_interval(a + b, n, confidence)
        low2, high2 = wilson_interval(a + c, n, confidence)
        phi = _corrected_phi(a, b, c, d)
        down1, up1 = first - low1, high1 - first
        down2, up2 = second - low2, high2 - second
        below = sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
        above = sqrt(max(0.0, up1**2 - 2 * phi * up1 * down2 + down2**2))
        return Interval(self.difference - below, self.difference + above)


def _corrected_phi(a: int, b: int, c: int, d: int) -> float:
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    excess = a * d - b * c
    if excess > 0:  # the correction may shrink a positive association to zero, not below
        excess = max(0.0, excess - (a + b + c + d) / 2)
    return excess / sqrt(margins)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Area under the ROC curve: how often a positive's score is above a negative's; ties half.

    Args:
        positive: scores of what is to be found, at least one.
        negative: scores of the others, at least one.

    Raises:
        ValueError: one of the two is empty.
    """
    if not (len(positive) and len(negative)):
        raise ValueError('an area under the ROC curve needs both positives and negatives')
    a, b = np.asarray(positive, np.float64)[:, None], np.asarray(negative, np.float64)
    return float(((a > b) + 0.5 * (a == b)).mean())


def auroc_interval(area: float, n: int, m: int, confidence: float = 0.95) -> Interval:
    """Score-like interval of an area under the ROC curve; has a width also at 0 and 1.

    Source: Newcombe, Stat. Med. 25:559 (2006), method 5: the variance of Hanley and McNeil at the
    limit itself, with the mean of both numbers in the place of each.

    Args:
        area: the estimate.
        n: number of positives.
        m: number of negatives.
        confidence: two-sided level, between 0 and 1.

    Raises:
        ValueError: an area outside of 0..1, or an empty side.
    """
    if not 0 <= area <= 1 or min(n, m) < 1:
        raise ValueError(f'no area under a ROC curve: {area} of {n} and {m}')
    z, mean = _normal_quantile(confidence), (n + m) / 2

    def outside(limit: float) -> bool:
        spread = (1 - limit) / (2 - limit) + limit / (1 + limit)
        variance = limit * (1 - limit) * (1 + (mean - 1) * spread) / (n * m)
        return (area - limit) ** 2 > z * z * variance

    def bound(inside: float, outer: float) -> float:
        if not outside(outer):
            return outer
        for _ in range(60):
            middle = (inside + outer) / 2
            inside, outer = (inside, middle) if outside(middle) else (middle, outer)
        return (inside + outer) / 2

    # At an area of 0 or 1 the variance vanishes: the limit is looked for from just inside.
    return Interval(
        0.0 if area == 0 else bound(min(area, 1 - 1e-9), 0.0),
        1.0 if area == 1 else bound(max(area, 1e-9), 1.0),
    )


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f'confidence {confidence} is not between 0 and 1')
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def percentiles(values: Sequence[float], levels: Sequence[float] = (50, 95, 99)) -> dict:
    """Linear-interpolation percentiles with count and mean, ready for JSON.

    Args:
        values: samples, for example milliseconds.
        levels: percent, 0 to 100.

    Returns:
        `{'n': ..., 'mean': ..., 'p50': ..., ...}`; without samples the numbers are None.
    """
    keys = [f'p{level:g}' for level in levels]
    samples = np.asarray(values, dtype=np.float64)
    if samples.size == 0:
        return {'n': 0, 'mean': None, **dict.fromkeys(keys)}
    cuts = np.percentile(samples, levels)
    return {
        'n': int(samples.size),
        'mean': float(samples.mean()),
        **dict(zip(keys, map(float, cuts), strict=True)),
    }
