# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which action of which chunk comes next, when robot and policy run at the same time.

Pure Python. The rule (aligned switch): a new chunk replaces the old one, and as many of its first
actions are left out as were really executed since its observation. A step on which the robot
held still executed nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np

MARKS = 256  # observations that a chunk may still answer
LATENCIES = 10  # how many of the last delays decide when to ask


class ChunkPlayer:
    """Plays chunks open loop and says when to ask for the next one.

    `horizon` limits how many actions of a chunk are used (0: all). `prefetch` is how many actions
    may be left when the next chunk is asked for; 0 takes the longest of the last delays.
    """

    def __init__(self, horizon: int = 0, prefetch: int = 0) -> None:
        self.horizon = horizon
        self.prefetch = prefetch
        self.starved = 0  # steps without a valid action after the first chunk
        self.unknown = 0  # chunks for an observation that was never made, or too long ago
        self._delays: deque[int] = deque(maxlen=LATENCIES)
        self.clear()

    def clear(self) -> None:
        """Start an episode: no chunk, nothing executed. Delays and counters stay."""
        self._marks: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._executed = 0
        self._step = 0
        self._actions: np.ndarray | None = None
        self._stamp = -1
        self._next = 0

    def observe(self, stamp: int) -> None:
        """An observation was made now, before the next action."""
        self._marks[stamp] = (self._executed, self._step)
        if len(self._marks) > MARKS:
            self._marks.popitem(last=False)

    def add(self, stamp: int, actions: np.ndarray) -> bool:
        """Take the chunk [n, 7] that answers the observation at `stamp`; False if unusable."""
        if stamp not in self._marks or stamp <= self._stamp:
            self.unknown += stamp not in self._marks
            return False
        executed, step = self._marks[stamp]
        self._delays.append(self._step - step)
        self._actions = actions[: self.horizon or None]
        self._next = self._executed - executed
        self._stamp = stamp
        return True

    @property
    def remaining(self) -> int:
        """Actions left of the current chunk."""
        return 0 if self._actions is None else max(0, len(self._actions) - self._next)

    @property
    def wants_chunk(self) -> bool:
        """Whether a chunk should be asked for with the next observation."""
        return self.remaining <= (self.prefetch or max([1, *self._delays]))

    def next(self) -> np.ndarray | None:
        """The action [7] of this control step; None means hold still."""
        self._step += 1
        if self.remaining == 0:
            self.starved += self._actions is not None
            return None
        action = self._actions[self._next]
        self._next += 1
        self._executed += 1
        return action
