# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Answers of the policy on their way from the executor's thread to the one that plays them."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

import numpy as np

DEPTH = 64  # answers that may wait; of more, the oldest go


class Answer(NamedTuple):
    """What came for the observation at `stamp`.

    actions: a chunk [n, 7], or None if only its limit came.
    limit: so many actions of the chunk are to be played; 0: all of them.
    """

    stamp: int
    actions: np.ndarray | None
    limit: int = 0


class Inbox:
    """A bounded queue whose items become visible `latency` seconds of wall clock after they came.

    The latency is artificial: it shows what a slower policy would mean.

    Attributes:
        refused: chunks with bad content since `clear`.
    """

    def __init__(self) -> None:
        self.latency = 0.0
        self.refused = 0
        self._items: deque[tuple[float, Answer]] = deque(maxlen=DEPTH)
        self._changed = threading.Condition()

    def put(self, answer: Answer) -> None:
        """An answer came now."""
        with self._changed:
            self._items.append((time.monotonic() + self.latency, answer))
            self._changed.notify()

    def get(self, timeout: float) -> Answer | None:
        """The next visible answer within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                due = self._items[0][0] if self._items else float('inf')
                if due <= now:
                    return self._items.popleft()[1]
                if now >= deadline:
                    return None
                self._changed.wait(min(due, deadline) - now)

    def clear(self) -> None:
        """Forget all that came, visible or not."""
        self.refused = 0
        with self._changed:
            self._items.clear()

    def limits_follow(self) -> bool:
        """Whether it is said of every chunk, after it, how much of it is to be played."""
        return False
