# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one thread that runs the model, so that no ROS callback ever waits for it.

Everything that touches the policy runs here. The thread fetches its work when it has time, so
nothing piles up in front of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Worker(threading.Thread):
    """Runs posted jobs first, then `serve` until it returns False: nothing left to do.

    After that it sleeps until `wake`. `serve` must not raise.
    """

    def __init__(self, serve: Callable[[], bool]) -> None:
        super().__init__(name='inference', daemon=True)
        self._serve = serve
        self._jobs: deque[tuple[Callable[[], Any], Future]] = deque()
        self._changed = threading.Condition()
        self._awake = self._stopping = False

    def post(self, job: Callable[[], Any]) -> Future:
        """Run `job` before anything else; the future has its result or exception."""
        future: Future = Future()
        with self._changed:
            if self._stopping:
                future.cancel()
            else:
                self._jobs.append((job, future))
                self._changed.notify()
        return future

    @property
    def called(self) -> bool:
        """Whether a job waits, or the end."""
        return bool(self._jobs) or self._stopping

    def wake(self) -> None:
        """There may be something to do."""
        with self._changed:
            self._awake = True
            self._changed.notify()
        time.sleep(0)  # gives the interpreter to this thread at once; the caller is in no hurry

    def stop(self, timeout: float) -> bool:
        """End after the task at hand; True if the thread ended within `timeout` seconds."""
        with self._changed:
            self._stopping = True
            for _, future in self._jobs:
                future.cancel()
            self._jobs.clear()
            self._changed.notify()
        if self.is_alive():
            self.join(timeout)
        return not self.is_alive()

    def run(self) -> None:
        """Thread body."""
        while self.run_once():
            pass

    def run_once(self) -> bool:
        """Wait for something to do and do it; False once the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._jobs or self._awake)
            if self._stopping:
                return False
            job = self._jobs.popleft() if self._jobs else None
            self._awake = self._awake and job is not None
        if job is not None:
            _run(*job)
        elif self._serve():
            self._awake = True  # there may be more
        return True


def _run(job: Callable[[], Any], future: Future) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job())
    except BaseException as error:  # whatever it is, this thread has to live
        future.set_exception(error)
