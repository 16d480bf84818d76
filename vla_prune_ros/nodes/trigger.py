# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which observations become inferences.

`observation`: every one; what a robot without a bridge of ours does. `request`: those named by an
executed-actions message of the same stamp. A request and the actions that led to it are one
message, so nothing can come between them, and a replay or a direct call sees exactly the same
sequence.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, replace

import numpy as np

from vla_prune_ros.nodes.assembler import REWIND, MatchedSet

TRIGGERS = ('observation', 'request')
DEPTH = 64


@dataclass(frozen=True)
class Tick:
    """An observation and the actions [n, 7] executed before it, each reported once."""

    observation: MatchedSet
    executed: tuple[np.ndarray, ...] = ()
    instruction: str = ''

    @staticmethod
    def merge(superseded: Tick, newer: Tick) -> Tick:
        """`newer` with the executed actions of a tick that is left out."""
        return replace(newer, executed=superseded.executed + newer.executed)


class Trigger:
    """Joins observations with executed actions. Pure Python, bounded."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._newest = 0  # stamp of the newest observation
        self._done: deque[int] = deque(maxlen=DEPTH)  # executed actions that were handed on
        self._sets: OrderedDict[int, MatchedSet] = OrderedDict()
        self._executed: OrderedDict[int, np.ndarray] = OrderedDict()

    def add_observation(self, observation: MatchedSet) -> Tick | None:
        """The inference that a complete observation makes due, if any."""
        now = observation.stamp
        if now < self._newest - REWIND:  # time started anew
            executed = {t: a for t, a in self._executed.items() if t <= now + REWIND}
            self.clear()
            self._executed.update(executed)
        self._newest = now
        if self.mode == 'observation':
            return self._tick(observation, sorted(t for t in self._executed if t <= now))
        _put(self._sets, now, observation)
        return self._requested(now)

    def add_executed(self, stamp: int, actions: np.ndarray) -> Tick | None:
        """The inference that an executed-actions message makes due; repeats are ignored."""
        if stamp in self._done and stamp <= self._newest:
            return None
        _put(self._executed, stamp, actions)
        return self._requested(stamp) if self.mode == 'request' else None

    def _requested(self, stamp: int) -> Tick | None:
        if stamp not in self._sets or stamp not in self._executed:
            return None
        observation = self._sets[stamp]
        for older in [t for t in self._sets if t <= stamp]:
            del self._sets[older]
        return self._tick(observation, [stamp])

    def _tick(self, observation: MatchedSet, due: list[int]) -> Tick:
        self._done.extend(due)
        return Tick(observation, tuple(self._executed.pop(t) for t in due))


def _put(store: OrderedDict, key: int, value: object) -> None:
    store[key] = value
    if len(store) > DEPTH:
        store.popitem(last=False)
