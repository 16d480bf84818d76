# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one thread that runs the model, so that no ROS callback ever waits for it.

Everything that touches the policy runs here: loading it, changing it, inference. Changes go
before waiting observations, so a change that was acknowledged holds from the next inference.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Worker(threading.Thread):
    """Runs posted jobs first, then offered observations in order.

    At most `depth` observations wait, so a depth of 1 is "the latest wins". The oldest of too many
    is superseded, which is counted; `merge(old, next)` makes the next one carry what may not be
    lost of it. `on_error(observation, error)` must not raise.
    """

    def __init__(
        self,
        handle: Callable[[Any], None],
        on_error: Callable[[Any, BaseException], None],
        merge: Callable[[Any, Any], Any],
        depth: int,
    ) -> None:
        super().__init__(name='inference', daemon=True)
        self._handle = handle
        self._on_error = on_error
        self._merge = merge
        self._depth = depth
        self._jobs: deque[tuple[Callable[[], Any], Future]] = deque()
        self._waiting: deque[Any] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.superseded = 0

    def post(self, job: Callable[[], Any]) -> Future:
        """Run `job` before any waiting observation; the future has its result or exception."""
        future: Future = Future()
        with self._changed:
            if self._stopping:
                future.cancel()
            else:
                self._jobs.append((job, future))
                self._changed.notify()
        return future

    def offer(self, observation: Any) -> None:
        """Queue an observation."""
        with self._changed:
            self._waiting.append(observation)
            if len(self._waiting) > self._depth:
                oldest = self._waiting.popleft()
                self._waiting[0] = self._merge(oldest, self._waiting[0])
                self.superseded += 1
            self._changed.notify()
        time.sleep(0)  # gives the interpreter to this thread at once; the caller is in no hurry

    def clear(self) -> None:
        """Forget the waiting observations."""
        with self._changed:
            self._waiting.clear()

    def stop(self, timeout: float) -> bool:
        """End after the task at hand; True if the thread ended within `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            for _, future in self._jobs:
                future.cancel()
            self._jobs.clear()
            self._changed.notify()
        if self.is_alive():
            self.join(timeout)
        return not self.is_alive()

    def run(self) -> None:
        """Thread body."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._jobs or self._waiting)
                if self._stopping:
                    return
                job = self._jobs.popleft() if self._jobs else None
                item = None if job else self._waiting.popleft()
            if job is not None:
                self._run_job(*job)
            else:
                self._run_item(item)

    def _run_item(self, item: Any) -> None:
        try:
            self._handle(item)
        except BaseException as error:  # whatever it is, this thread has to live
            self._on_error(item, error)

    @staticmethod
    def _run_job(job: Callable[[], Any], future: Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)
