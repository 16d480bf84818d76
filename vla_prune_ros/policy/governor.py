# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The share of visual tokens that holds a control deadline on whatever hardware is there.

Pure arithmetic: no clock, no torch; every time is an argument, in seconds. A pass over `rows`
rows takes `constant + per_row * rows`, times a scale that follows what else runs on the machine,
times a margin for what it does not follow. Before a query the governor takes the largest class of
the budget whose predicted 95th percentile fits, after it the governor learns how long that took.

Down at once, up by one class after `PATIENCE` queries in a row that would have allowed it. It
changes tokens and nothing else: an action is never dropped, repeated or altered here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

RISE, FALL = 0.5, 0.15  # how far the scale moves towards a slower, a faster query
WINDOW, QUANTILE = 48, 95.0  # queries and percentile of the margin
LEAST, FIRST_MARGIN = 8, 1.15  # queries before which the margin is this
PATIENCE = 4  # queries that must allow a larger class before it is taken
HELD, INFEASIBLE, WAITING = 'held', 'infeasible', 'waiting'


@dataclass(frozen=True)
class LatencyModel:
    """Seconds of a pass on a quiet machine, by the rows that it computes per layer."""

    constant: float
    per_row: float

    def __call__(self, rows: float) -> float:
        """Predict a pass."""
        return self.constant + self.per_row * rows

    @classmethod
    def fit(cls, measured: Iterable[tuple[float, float]]) -> LatencyModel:
        """Least squares over (rows, seconds); neither part is negative.

        Raises:
            ValueError: nothing was measured, or a number is not positive.
        """
        points = np.array([*measured], dtype=np.float64).reshape(-1, 2)
        if not len(points) or not (np.isfinite(points).all() and (points > 0).all()):
            raise ValueError(f'a latency model needs positive rows and seconds, not {points}')
        rows, seconds = points.T
        spread = rows - rows.mean()
        slope = spread @ seconds / (spread @ spread) if spread.any() else 0.0
        slope = min(max(0.0, slope), seconds.mean() / rows.mean())
        return cls(float(seconds.mean() - slope * rows.mean()), float(slope))


@dataclass(frozen=True)
class Decision:
    """What the governor wants of a query.

    Attributes:
        share: of the visual tokens, the class.
        deadline: seconds that were left for the query; None where nobody knows.
        predicted: its 95th percentile, s.
        scale: how much slower the machine is than at warm-up.
        margin: 95th percentile over median, about.
        state: held; infeasible: not even the smallest class allowed fits; waiting: no deadline
            is known, the class stays.
        changes: of the class so far.
    """

    share: float
    deadline: float | None
    predicted: float
    scale: float
    margin: float
    state: str
    changes: int


class Governor:
    """Chooses a class before every query and learns from it afterwards.

    Attributes:
        model: of the latency on a quiet machine.
        rows: class -> rows per layer that a query of this class computes.
        scale: how much slower the machine is now.
        margin: quantile of what the scale does not explain; at least 1.
    """

    def __init__(self, model: LatencyModel, rows: Mapping[float, float]) -> None:
        """Start at the largest class.

        Args:
            model: fitted at warm-up.
            rows: share -> rows per layer, as measured or as bounded.

        Raises:
            ValueError: there is no class.
        """
        if not rows:
            raise ValueError('a governor needs at least one class')
        self.model, self.rows = model, dict(sorted(rows.items()))
        self.scale, self.margin = 1.0, FIRST_MARGIN
        self._shares = tuple(self.rows)
        self._ratios: deque[float] = deque(maxlen=WINDOW)
        self._at = len(self._shares) - 1
        self._allowed = self._changes = 0

    def predict(self, share: float) -> float:
        """95th percentile of the seconds that a query of a class takes now."""
        return self.model(self.rows[share]) * self.scale * self.margin

    def decide(self, deadline: float | None, floor: float = 0.0) -> Decision:
        """Choose the class of the next query.

        Args:
            deadline: seconds that it may take from now on; None where nobody knows.
            floor: smallest share allowed now, as in fine motion; the largest class is allowed in
                any case.
        """
        lowest = next((i for i, s in enumerate(self._shares) if s >= floor), len(self._shares) - 1)
        before, state = self._at, WAITING
        self._at = max(self._at, lowest)
        if deadline is not None:
            fitting = [i for i, s in enumerate(self._shares) if self.predict(s) <= deadline]
            state = HELD if lowest in fitting else INFEASIBLE
            best = max((i for i in fitting if i >= lowest), default=lowest)
            self._allowed = self._allowed + 1 if best > self._at else 0
            if best < self._at:
                self._at = best
            elif self._allowed >= PATIENCE:
                self._at, self._allowed = self._at + 1, 0
        self._changes += self._at != before
        share = self._shares[self._at]
        return Decision(
            share, deadline, self.predict(share), self.scale, self.margin, state, self._changes
        )

    def learn(self, seconds: float, rows: float, *, dense: bool = False) -> None:
        """Take in how long the query took that was decided last.

        Args:
            seconds: from the decision to the chunk.
            rows: per layer, those that it really computed.
            dense: it had to be dense whatever the class, as the first one after a reset is in
                some modes: it says nothing about the rows of the class.

        Raises:
            ValueError: not positive.
        """
        if not (math.isfinite(seconds) and seconds > 0 and math.isfinite(rows) and rows > 0):
            raise ValueError(f'{seconds} s for {rows} rows is no measurement')
        ratio = seconds / self.model(rows)
        self.scale += (RISE if ratio > self.scale else FALL) * (ratio - self.scale)
        share = self._shares[self._at]
        if not dense:
            # What a mode makes of its budget may differ from what it made of noise at warm-up.
            self.rows[share] += FALL * (rows - self.rows[share])
        expected = self.model(rows if dense else self.rows[share]) * self.scale
        self._ratios.append(seconds / expected)
        if len(self._ratios) >= LEAST:
            self.margin = max(1.0, float(np.percentile(self._ratios, QUANTILE)))
