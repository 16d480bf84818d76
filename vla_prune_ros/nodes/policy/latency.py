# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Latency statistics of the newest inferences. Pure Python and numpy."""

from __future__ import annotations

from collections import deque

import numpy as np

WINDOW = 500  # inferences that the percentiles look back on


class LatencyWindow:
    """Durations of the last inferences in ms, one series per stage.

    Cold ones (the first after loading or after a change of the mode, when memory is allocated and
    kernels are chosen) are counted, but in no percentile. Safe to read from another thread.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._series: dict[str, deque[float]] = {}
        self.warm = 0
        self.cold = 0

    def add(self, stages: dict[str, float], *, cold: bool) -> None:
        """One inference: stage -> ms."""
        if cold:
            self.cold += 1
            return
        self.warm += 1
        for stage, ms in stages.items():
            self._series.setdefault(stage, deque(maxlen=self._window)).append(ms)

    def clear(self) -> None:
        """Forget the durations; the counters stay."""
        self._series = {}

    def percentile(self, stage: str, percent: float) -> float:
        """A percentile of a stage in ms; NaN before the first warm inference."""
        values = list(self._series.get(stage, ()))
        return float(np.percentile(values, percent)) if values else float('nan')

    def summary(self, stage: str) -> dict[str, float]:
        """p50, p95 and max of a stage in ms; empty before the first warm inference."""
        values = list(self._series.get(stage, ()))
        if not values:
            return {}
        p50, p95 = np.percentile(values, (50, 95))
        return {'p50_ms': float(p50), 'p95_ms': float(p95), 'max_ms': max(values)}
