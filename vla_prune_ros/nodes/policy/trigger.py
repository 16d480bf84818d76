# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which observations become inferences, and what is told to the history before them.

`observation`: every one, or not more of them than `max_rate` allows. `request`: a message of
executed actions with stamp T asks for the newest observation that is not older than T, or for the
first such one to come; the frames between two of them only feed the history. One request is
pending, a newer one takes its place. A robot that sends T with the observation of that very stamp,
and waits, gets exactly that one answered: a request and the actions that led to it are one
message, so nothing can come between them, and a replay or a direct call sees exactly the same
sequence.
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
        superseded: observations that were asked for, and that a newer one or a newer request
            overtook.
        wanted: by `request`, T of the one that is pending; None without one.
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
        self._asked: dict[int, None] = {}  # by `request` at most one
        self.wanted: int | None = None
        self._refused: set[int] = set()  # observations that will not do for it

    def add_observation(self, observation: MatchedSet) -> None:
        """A complete observation; by `observation` it is asked for, by `request` it may be."""
        now = observation.stamp
        if now < self._newest - REWIND:  # time started anew
            ahead = now + REWIND
            executed = {t: e for t, e in self._executed.items() if t <= ahead}
            wanted = self.wanted
            self.clear()
            self._executed = executed
            self.wanted = None if wanted is None or wanted > ahead else wanted
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
        elif self.wanted is not None and self.wanted <= now:
            self._asked = {now: None}

    def add_executed(self, stamp: int, executed: Executed) -> None:
        """Actions that led to an observation at `stamp`; by `request` they ask for one.

        What was taken already is not told again.
        """
        if stamp in self._told and self._newest - REWIND <= stamp <= self._newest:
            return
        _put(self._executed, stamp, executed)
        if self.mode == 'request':
            self.superseded += bool(self._asked) and self.wanted != stamp
            self._want(stamp)

    def _want(self, stamp: int) -> None:
        """The newest observation from `stamp` on is asked for, or the next one to come.

        A request from long before them is of a clock that has started anew: they do not count.
        """
        self.wanted, self._refused = stamp, set()
        self._fit()

    def _fit(self) -> None:
        """Find the observation for the request that is pending."""
        first = self.wanted
        if first is not None:
            fitting = [t for t in self._sets if first <= t <= first + REWIND]
            newest = max((t for t in fitting if t not in self._refused), default=None)
            self._asked = {} if newest is None else {newest: None}

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
        if self.wanted is not None and self.wanted <= stamp:
            self.wanted, self._asked = None, {}
        self._told.extend(due)
        executed = tuple(self._executed.pop(t) for t in due)
        between = tuple(self._sets.pop(t) for t in older)
        return Tick(observation, executed, between[-MAX_BETWEEN:], reports=tuple(due))

    def refuse(self, stamp: int, *, broken: bool = False) -> None:
        """No chunk for this one, unless it is asked for again; a broken one goes altogether.

        A request stays pending for another one.
        """
        self._asked.pop(stamp, None)
        if broken:
            self._sets.pop(stamp, None)
        if self.wanted is not None:
            self._refused = (self._refused | {stamp}) & self._sets.keys()
        self._fit()

    def ask_again(self, observation: MatchedSet, request: int | None = None) -> None:
        """An observation that was taken gets another try; what came before it was told.

        By `request` T the newest one does, unless there is another request by now.
        """
        _put(self._sets, observation.stamp, observation)
        if self.mode == 'observation':
            _put(self._asked, observation.stamp, None)
        elif self.wanted is None:
            self._want(observation.stamp if request is None else request)
        else:
            self._fit()

    def _drop(self, stamp: int) -> MatchedSet:
        self._asked.pop(stamp, None)
        return self._sets.pop(stamp)


def _put(store: dict, key: int, value: object) -> None:
    store.pop(key, None)
    store[key] = value
    if len(store) > DEPTH:
        del store[next(iter(store))]
