# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which observations become inferences, and what is told to the history before them.

`observation`: every one, or not more of them than `max_rate` allows. `request`: those named by an
executed-actions message of the same stamp; the frames between two of them only feed the history. A
request and the actions that led to it are one message, so nothing can come between them, and a
replay or a direct call sees exactly the same sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import MAX_BYTES, REWIND, MatchedSet

TRIGGERS = ('observation', 'request')
DEPTH = 64
MAX_BETWEEN = 16  # frames between two inferences that are worth looking at


@dataclass(frozen=True)
class Tick:
    """An observation to infer from, and what happened before it; everything is reported once.

    `reports` are the stamps of the messages that told of `executed`.
    """

    observation: MatchedSet
    executed: tuple[Executed, ...] = ()
    between: tuple[MatchedSet, ...] = ()
    instruction: str = ''
    reports: tuple[int, ...] = ()

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
    """Holds observations and executed actions until an inference takes them.

    An observation that is asked for waits; taking it takes all older ones with it, as frames that
    came between. Pure Python, bounded by number and by bytes: the oldest goes first.

    Attributes:
        superseded: observations that were asked for, and that a newer one overtook.
    """

    def __init__(self, mode: str, gap: int = 0) -> None:
        """Prepare; by `observation` at least `gap` ns lie between two that are asked for."""
        self.mode, self._gap = mode, gap
        self.superseded = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything; the counter stays."""
        self._last_asked = -self._gap  # by `observation`
        self._newest = 0  # stamp of the newest observation
        self._told: deque[int] = deque(maxlen=DEPTH)  # executed actions that were taken
        self._sets: dict[int, MatchedSet] = {}
        self._executed: dict[int, Executed] = {}
        self._asked: dict[int, None] = {}

    def add_observation(self, observation: MatchedSet) -> None:
        """A complete observation; by `observation` it is asked for."""
        now = observation.stamp
        if now < self._newest - REWIND:  # time started anew
            ahead = now + REWIND
            executed = {t: e for t, e in self._executed.items() if t <= ahead}
            asked = {t: None for t in self._asked if t <= ahead and self.mode == 'request'}
            self.clear()
            self._executed, self._asked = executed, asked
        self._newest = now
        _put(self._sets, now, observation)
        spare = MAX_BYTES - sum(s.nbytes for s in self._sets.values())
        for stamp in tuple(self._sets)[:-1]:
            if spare >= 0:
                break
            spare += self._drop(stamp).nbytes
        if self.mode == 'observation' and not 0 <= now - self._last_asked < self._gap:
            self._last_asked = now
            _put(self._asked, now, None)

    def add_executed(self, stamp: int, executed: Executed) -> None:
        """Actions that led to the observation at `stamp`; by `request` they ask for it.

        What was taken already is not told again.
        """
        if stamp in self._told and self._newest - REWIND <= stamp <= self._newest:
            return
        _put(self._executed, stamp, executed)
        if self.mode == 'request':
            _put(self._asked, stamp, None)

    def asked(self) -> list[int]:
        """Stamps of the observations that wait for a chunk, ascending."""
        return sorted(t for t in self._asked if t in self._sets)

    def frames(self) -> list[MatchedSet]:
        """Observations that nobody asked for, oldest first: what the next one has before it."""
        waiting = sorted(t for t in self._sets if t not in self._asked)
        return [self._sets[t] for t in waiting[-MAX_BETWEEN:]]

    def get(self, stamp: int) -> MatchedSet | None:
        """The observation at `stamp`; None if it is not here."""
        return self._sets.get(stamp)

    def take(self, stamp: int) -> Tick:
        """The observation at `stamp` with everything that came before it.

        Raises:
            KeyError: it is not here.
        """
        observation = self._sets.pop(stamp)
        older = sorted(t for t in self._sets if t < stamp)
        due = sorted(t for t in self._executed if t <= stamp)
        self.superseded += sum(t in self._asked for t in older)
        self._asked = {t: None for t in self._asked if t > stamp}
        self._told.extend(due)
        executed = tuple(self._executed.pop(t) for t in due)
        between = tuple(self._sets.pop(t) for t in older)
        return Tick(observation, executed, between[-MAX_BETWEEN:], reports=tuple(due))

    def refuse(self, stamp: int, *, broken: bool = False) -> None:
        """No chunk for this one, unless it is asked for again; a broken one goes altogether."""
        self._asked.pop(stamp, None)
        if broken:
            self._sets.pop(stamp, None)

    def ask_again(self, observation: MatchedSet) -> None:
        """An observation that was taken gets another try; what came before it was told."""
        _put(self._sets, observation.stamp, observation)
        _put(self._asked, observation.stamp, None)

    def _drop(self, stamp: int) -> MatchedSet:
        self._asked.pop(stamp, None)
        return self._sets.pop(stamp)


def _put(store: dict, key: int, value: object) -> None:
    store.pop(key, None)
    store[key] = value
    if len(store) > DEPTH:
        del store[next(iter(store))]
