# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ROS side of `realtime`: episodes with their pace."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray

from vla_prune_ros.ros.messages import NANOSECONDS, to_ns
from vla_prune_ros.trials.demo_client import DemoClient, Wanted


class RealtimeClient(DemoClient):
    """A demo client that looks at the clock whenever the bridge reports."""

    def __init__(self, check: Callable[[], None], patience: float) -> None:
        super().__init__(check, patience)
        self._reports: list[tuple[float, int, int]] = []  # wall s, stamp ns, step

    def run_realtime(self, wanted: Wanted) -> dict[str, Any]:
        """Run one episode.

        The pace is taken between two reports of the bridge, the first one after the first step
        (before it the policy may still have been loading) and the last one.

        Raises:
            RuntimeError: see `run_episode`; or the episode was too short to have a pace.
        """
        self._reports.clear()
        episode = self.run_episode(wanted)
        status = self._status
        moving = [report for report in self._reports if report[2] > 0]
        if len(moving) < 2 or moving[-1][2] == moving[0][2]:
            raise RuntimeError(f'{wanted} had too few steps to measure a pace')
        (begin, first_ns, first), (end, last_ns, last) = moving[0], moving[-1]
        return {
            'task': episode.task,
            'state': episode.state,
            'success': episode.success,
            'steps': episode.steps,
            'control_hz': (last - first) * NANOSECONDS / (last_ns - first_ns),
            'timed_steps': last - first,
            'timed_s': end - begin,
            'late': int(status['late']),
            'starved': int(status['starved']),
            'queries': int(status['queries']),
            'latency_ms': [query.latency_ms for query in episode.queries],
        }

    def _on_status(self, message: DiagnosticArray) -> None:
        super()._on_status(message)
        stamp = to_ns(message.header.stamp)
        self._reports.append((time.monotonic(), stamp, int(self._status['step'])))
