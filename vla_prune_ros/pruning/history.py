# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that survives from one control tick to the next, in one place."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Frame:
    """Policy images of one query.

    Attributes:
        step: control step at which they were taken, counted in executed actions since the reset.
        images: uint8 [views, S, S, 3], after resize and crop.
    """

    step: int
    images: np.ndarray


class History:
    """State across control ticks: frames, executed actions, and what a pruning mode stores.

    A frame enters only when its query is over (`close_query`), so that a "previous" frame read
    during a query is never the current one.

    Attributes:
        frames: frames of past queries, oldest first, at most `capacity`.
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

    def close_query(self, images: np.ndarray) -> None:
        """Store the current policy images once nothing will read "previous" frames any more."""
        self.frames.append(Frame(self.step, images))
        self.executed.clear()
        self.last_query_step = self.step
        self.queries += 1
        self.reset_reason = None
