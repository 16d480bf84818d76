# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stage times of one inference, in milliseconds."""

from __future__ import annotations

import time

import torch


class StageTimer:
    """Attributes all time since the start to stages, without gaps.

    On a GPU the marks are events in the stream, so they cost no synchronisation; only `finish`
    waits. Stages then add up to the device's view of the same span.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == 'cuda'
        self._device = device
        self._start = time.perf_counter()
        self._marks = [('', self._now())]

    def mark(self, stage: str) -> None:
        """Attribute the time since the last mark to a stage; stages may recur and add up."""
        self._marks.append((stage, self._now()))

    def finish(self) -> dict[str, float]:
        """Wait for the device and return stage -> ms, with the wall clock as `total`."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        total = (time.perf_counter() - self._start) * 1e3
        stages: dict[str, float] = {}
        for (_, before), (stage, after) in zip(self._marks, self._marks[1:], strict=False):
            spent = before.elapsed_time(after) if self._cuda else (after - before) * 1e3
            stages[stage] = stages.get(stage, 0.0) + spent
        return {**stages, 'total': total}

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
