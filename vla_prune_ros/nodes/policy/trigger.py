# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which observations become inferences.

`observation`: every one, or not more of them than `max_rate` allows. `request`: those named by an
executed-actions message of the same stamp; the frames between two of them only feed the history. A
request and the actions that led to it are one message, so nothing can come between them, and a
replay or a direct call sees exactly the same sequence.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import REWIND, MatchedSet

TRIGGERS = ('observation', 'request')
DEPTH = 64
MAX_BETWEEN = 16  # frames between two inferences that are worth looking at


@dataclass(frozen=True)
class Tick:
    """An observation to infer from, and what happened before it; everything is reported once."""

    observation: MatchedSet
    executed: tuple[Executed, ...] = ()
    between: tuple[MatchedSet, ...] = ()
    instruction: str = ''

    @staticmethod
    def merge(superseded: Tick, newer: Tick) -> Tick:
        """`newer` with what a tick that is left out would have told the history."""
        between = (*superseded.between, superseded.observation, *newer.between)
        return replace(
            newer,
            executed=superseded.executed + newer.executed,
            between=between[-MAX_BETWEEN:],
        )

    def events(self) -> Iterator[np.ndarray | MatchedSet]:
        """Executed actions [n, 7] and frames before the observation, in order of time."""
        actions = [
            (end, a) for e in self.executed for end, a in zip(e.ends, e.actions, strict=True)
        ]
        for frame in self.between:
            before = [a for end, a in actions if end <= frame.stamp]
            if before:
                yield np.stack(before)
            actions = actions[len(before) :]
            yield frame
        if actions:
            yield np.stack([a for _, a in actions])


class Trigger:
    """Joins observations with executed actions. Pure Python, bounded."""

    def __init__(self, mode: str, gap: int = 0) -> None:
        """Prepare; by `observation` at least `gap` ns lie between two inferences."""
        self.mode, self._gap = mode, gap
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._last = -self._gap  # stamp of the last tick by `observation`
        self._newest = 0  # stamp of the newest observation
        self._done: deque[int] = deque(maxlen=DEPTH)  # executed actions that were handed on
        self._sets: OrderedDict[int, MatchedSet] = OrderedDict()
        self._executed: OrderedDict[int, Executed] = OrderedDict()

    def add_observation(self, observation: MatchedSet) -> Tick | None:
        """The inference that a complete observation makes due, if any."""
        now = observation.stamp
        if now < self._newest - REWIND:  # time started anew
            executed = {t: e for t, e in self._executed.items() if t <= now + REWIND}
            self.clear()
            self._executed.update(executed)
        self._newest = now
        if self.mode == 'request' or 0 <= now - self._last < self._gap:
            _put(self._sets, now, observation)
            return self._requested(now) if self.mode == 'request' else None
        self._last = now
        due = sorted(t for t in self._executed if t <= now)
        return Tick(observation, self._take(due), self._older(now))

    def add_executed(self, stamp: int, executed: Executed) -> Tick | None:
        """The inference that an executed-actions message makes due; repeats are ignored."""
        if stamp in self._done and self._newest - REWIND <= stamp <= self._newest:
            return None
        _put(self._executed, stamp, executed)
        return self._requested(stamp) if self.mode == 'request' else None

    def _requested(self, stamp: int) -> Tick | None:
        if stamp not in self._sets or stamp not in self._executed:
            return None
        observation = self._sets.pop(stamp)
        return Tick(observation, self._take([stamp]), self._older(stamp))

    def _older(self, stamp: int) -> tuple[MatchedSet, ...]:
        older = sorted(t for t in self._sets if t < stamp)
        return tuple(self._sets.pop(t) for t in older)[-MAX_BETWEEN:]

    def _take(self, due: list[int]) -> tuple[Executed, ...]:
        self._done.extend(due)
        return tuple(self._executed.pop(t) for t in due)


def _put(store: OrderedDict, key: int, value: object) -> None:
    store[key] = value
    if len(store) > DEPTH:
        store.popitem(last=False)
