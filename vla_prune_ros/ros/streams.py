# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which input streams are alive: their age and rate, and how many messages came to nothing.

Pure Python; times are seconds of a clock that never stops, stamps are ns of the node's clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from itertools import pairwise
from statistics import median

RATE_WINDOW = 40  # messages that the rate looks back on


class Streams:
    """Reports each stream once when it falls silent and once when it is back.

    A stream is alive as long as usable messages with new stamps come: a driver that repeats its
    last frame is as silent as one that is switched off.
    """

    def __init__(self, names: Iterable[str], timeout: float) -> None:
        self.names = tuple(names)
        self.timeout = timeout
        self.broken_count: Counter[str] = Counter()
        self.received_count: Counter[str] = Counter()
        self._last = dict.fromkeys(self.names, 0.0)
        self._stamp: dict[str, int] = {}
        self._arrivals: dict[str, deque[float]] = {
            name: deque(maxlen=RATE_WINDOW) for name in self.names
        }
        self._silent: set[str] = set()

    def start(self, now: float) -> None:
        """Begin to expect messages."""
        self._last = dict.fromkeys(self._last, now)
        self._stamp.clear()
        for arrivals in self._arrivals.values():
            arrivals.clear()
        self._silent.clear()

    def excuse(self, now: float) -> None:
        """Nothing was to be expected until now, so silence does not count."""
        self._last |= dict.fromkeys(self._last.keys() - self._silent, now)

    def received(self, name: str, now: float, stamp: int) -> None:
        """A usable message came."""
        self.received_count[name] += 1
        if self._stamp.get(name) != stamp:
            self._stamp[name] = stamp
            self._last[name] = now
            self._arrivals[name].append(now)

    def broken(self, name: str) -> None:
        """A message could not be used."""
        self.broken_count[name] += 1

    def changes(self, now: float) -> tuple[list[str], list[str]]:
        """Streams that fell silent, and streams that are back, since the last call."""
        silent = {name for name, last in self._last.items() if now - last > self.timeout}
        gone, back = sorted(silent - self._silent), sorted(self._silent - silent)
        self._silent = silent
        return gone, back

    @property
    def silent(self) -> frozenset[str]:
        """Streams that are reported as silent."""
        return frozenset(self._silent)

    def rate(self, name: str, now: float) -> float:
        """New messages per second, lately; 0 for a silent stream."""
        arrivals = list(self._arrivals[name])
        if len(arrivals) < 2 or now - arrivals[-1] > self.timeout:
            return 0.0
        gap = median(b - a for a, b in pairwise(arrivals))
        return 1.0 / max(gap, (now - arrivals[-1]) / 4.0, 1e-6)

    def stamp(self, name: str) -> int | None:
        """The newest stamp; None before the first message."""
        return self._stamp.get(name)

    def age(self, name: str, node_now: int) -> float | None:
        """Seconds of node time since the newest stamp; None before the first message."""
        stamp = self._stamp.get(name)
        return None if stamp is None else (node_now - stamp) / 1e9
