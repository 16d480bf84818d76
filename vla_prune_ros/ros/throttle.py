# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Log lines that may come with every message, but by cause.

rclpy throttles by the line of code: of two causes that one line reports the second is not heard.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PERIOD = 5.0  # s of wall clock between two lines of one cause


class Throttled:
    """Passes the first text of each cause on, and then at most one in `period` seconds.

    `write` must be a function of its own per severity, as rclpy allows one per line of code.
    """

    def __init__(self, write: Callable[[str], object], period: float = PERIOD) -> None:
        self._write, self._period = write, period
        self._last: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def __call__(self, cause: str, text: str) -> None:
        """Something happened; how often it was not told comes with the next line."""
        now = time.monotonic()
        if now - self._last.get(cause, -self._period) < self._period:
            self._held[cause] = self._held.get(cause, 0) + 1
            return
        self._last[cause] = now
        held = self._held.pop(cause, 0)
        self._write(f'{text} (and {held} more like it)' if held else text)
