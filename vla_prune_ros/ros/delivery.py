# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Whether what was published has arrived at all who asked for reliable delivery.

A message that is sent while its predecessors are still on their way may push them out of the
queue. Who waits in between loses nothing, however busy the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from rclpy.duration import Duration
from rclpy.publisher import Publisher

NOW = Duration()
POLL = 0.001  # s; rclpy waits with the interpreter's lock held, so it is asked again and again


def acknowledged(publishers: Iterable[Publisher]) -> bool:
    """Whether every reliable reader of these publishers has all that they published.

    A middleware that cannot say so (rmw_zenoh) is taken at its best.
    """
    try:
        return all(publisher.wait_for_all_acked(NOW) for publisher in publishers)
    except RuntimeError:
        return True


def wait_acknowledged(publishers: Iterable[Publisher], timeout: float) -> bool:
    """Wait for that, `timeout` seconds at most; False if somebody has not got everything."""
    publishers, deadline = tuple(publishers), time.monotonic() + timeout
    while not acknowledged(publishers):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True
