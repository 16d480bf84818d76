# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the verbs of this room share: how they end, and how they wait for nodes."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vla_prune_ros.ros.children import ChildDiedError

if TYPE_CHECKING:
    from rclpy.executors import Executor


def interrupt_on(*numbers: int) -> None:
    """Let signals act as Ctrl-C does, so that the nodes are stopped in order."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)


def exit_code_of(verb: str, run: Callable[[], int], stopped: str = '') -> int:
    """Run a verb; what ends it early is said on stderr.

    Args:
        verb: its name.
        run: returns the exit code.
        stopped: what was stopped when it is interrupted.
    """
    try:
        return run()
    except KeyboardInterrupt:
        ending = f'; {stopped} stopped' if stopped else ''
        print(f'\n{verb}: interrupted{ending}', file=sys.stderr)
        return 130
    except (ChildDiedError, OSError, RuntimeError, ValueError) as error:
        print(f'\n{verb}: {error}', file=sys.stderr)
        return 1


def spin_until(
    executor: Executor,
    ready: Callable[[], Any],
    what: str,
    patience: float,
    check: Callable[[], None],
    tick: float = 0.2,
) -> None:
    """Spin until `ready()`; look every `tick` seconds whether it can still come.

    Args:
        executor: to spin.
        ready: what is waited for.
        what: its name in the error.
        patience: seconds to wait.
        check: raises when waiting has become pointless.
        tick: seconds between two looks while nothing arrives.

    Raises:
        RuntimeError: it took too long.
    """
    deadline, look = time.monotonic() + patience, 0.0
    while not ready():
        now = time.monotonic()
        if now > look:
            check()
            look = now + tick
        if now > deadline:
            raise RuntimeError(f'waited {patience:.0f} s in vain for {what}')
        executor.spin_once(timeout_sec=tick)
