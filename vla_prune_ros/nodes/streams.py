# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which input streams are alive, and how many of their messages could not be used.

Pure Python; times are seconds of a clock that never stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Streams:
    """Reports each stream once when it falls silent and once when it is back."""

    def __init__(self, names: Iterable[str], timeout: float) -> None:
        self.timeout = timeout
        self.broken_count: Counter[str] = Counter()
        self._last = dict.fromkeys(names, 0.0)
        self._silent: set[str] = set()

    def start(self, now: float) -> None:
        """Begin to expect messages."""
        self._last = dict.fromkeys(self._last, now)
        self._silent.clear()

    def received(self, name: str, now: float) -> None:
        """A usable message came."""
        self._last[name] = now

    def broken(self, name: str) -> None:
        """A message could not be used."""
        self.broken_count[name] += 1

    def changes(self, now: float) -> tuple[list[str], list[str]]:
        """Streams that fell silent, and streams that are back, since the last call."""
        silent = {name for name, last in self._last.items() if now - last > self.timeout}
        gone, back = sorted(silent - self._silent), sorted(self._silent - silent)
        self._silent = silent
        return gone, back
