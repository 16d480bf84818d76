# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that survives from one control tick to the next, in one place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

Images = np.ndarray | Tensor


class Frame:
    """Policy images of one control step.

    Attributes:
        step: control step at which they were taken, counted in executed actions since the reset.
        queried: a query was answered from them.
    """

    def __init__(self, step: int, images: Images | Callable[[], Images], queried: bool) -> None:
        self.step, self.queried = step, queried
        self._images = images

    @property
    def images(self) -> Images:
        """uint8 [views, S, S, 3], after resize and crop; made now if they were put off."""
        if callable(self._images):
            self._images = self._images()
        return self._images


class History:
    """State across control ticks: frames, executed actions, and what a pruning mode stores.

    The frame of a query enters only when the query is over (`close_query`), and `previous` passes
    over one that `observe` stored for the same step, so a "previous" frame is never the current.

    Attributes:
        frames: one frame per control step, oldest first, at most `capacity`.
        executed: actions executed since the last query, oldest first, each float64 [action_dim].
        step: control steps executed since the reset.
        queries: completed queries since the reset.
        last_query_step: `step` at the last completed query, None before the first.
        slots: whatever the pruning mode keeps; dropped at every reset.
        reset_reason: why the history was emptied last; None once a query was completed since.
    """

    def __init__(self, capacity: int = 16, max_actions: int = 256) -> None:
        self.frames: deque[Frame] = deque(maxlen=capacity)
        self.executed: deque[np.ndarray] = deque(maxlen=max_actions)
        self.slots: dict[str, Any] = {}
        self.reset('start')

    def reset(self, reason: str) -> None:
        """Forget everything."""
        self.frames.clear()
        self.executed.clear()
        self.slots.clear()
        self.step = 0
        self.queries = 0
        self.last_query_step: int | None = None
        self.reset_reason: str | None = reason

    def record_executed(self, actions: np.ndarray) -> None:
        """Append actions the robot really executed, float64 [k, action_dim] in robot units."""
        for action in np.array(actions, dtype=np.float64):
            self.executed.append(action)
            self.step += 1

    def observe(self, images: Images | Callable[[], Images]) -> None:
        """Store policy images between two queries, those after the last executed action.

        A function gives them when a mode first looks at them, which may be never.
        """
        if not (self.frames and self.frames[-1].queried and self.frames[-1].step == self.step):
            self._store(Frame(self.step, images, queried=False))

    def previous(self, distance: int) -> Frame | None:
        """Find the frame to compare the current one with.

        Args:
            distance: control steps to go back, at least 1.

        Returns:
            The newest frame at least that old; the oldest frame if none is; None if there is no
            earlier frame. Without any executed action the frame of the last query counts as older.
        """
        earlier = [f for f in self.frames if f.step < self.step or f.queried]
        old_enough = [f for f in earlier if f.step <= self.step - distance]
        return old_enough[-1] if old_enough else next(iter(earlier), None)

    def close_query(self, images: np.ndarray | Tensor) -> None:
        """Store the current policy images once nothing will read "previous" frames any more."""
        self._store(Frame(self.step, images, queried=True))
        self.executed.clear()
        self.last_query_step = self.step
        self.queries += 1
        self.reset_reason = None

    def _store(self, frame: Frame) -> None:
        """Append a frame; a newer one of the same step takes its place."""
        if self.frames and self.frames[-1].step == frame.step:
            self.frames.pop()
        self.frames.append(frame)
