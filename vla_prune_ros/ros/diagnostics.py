# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`/diagnostics` in the conventions of diagnostic_updater, which has no wheel.

One DiagnosticArray per period of wall clock, one status per task, named `node: Task`, with the
hardware id of whatever the model runs on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile

from vla_prune_ros.ros.messages import NO_EVENTS

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@dataclass
class Report:
    """What a task has to say; the worst level wins, its texts are joined."""

    level: bytes = OK
    texts: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def raise_to(self, level: bytes, text: str) -> None:
        """Something is not as it should be."""
        self.level = max(self.level, level)
        self.texts.append(text)


class Diagnostics:
    """Publishes the reports of some tasks, by name."""

    def __init__(
        self,
        node: Node,
        period: float,
        hardware: Callable[[], str],
        tasks: Mapping[str, Callable[[Report], None]],
    ) -> None:
        self._node, self._hardware, self._tasks = node, hardware, tasks
        self._publisher = node.create_publisher(
            DiagnosticArray, '/diagnostics', QoSProfile(depth=1), event_callbacks=NO_EVENTS
        )
        # Two nodes of one name in two namespaces are two; diagnostic_updater calls it use_fqn.
        self._name = node.get_fully_qualified_name().lstrip('/')
        node.create_timer(period, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Ask every task and publish."""
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.status = [self._status(name, task) for name, task in self._tasks.items()]
        self._publisher.publish(message)

    def _status(self, name: str, task: Callable[[Report], None]) -> DiagnosticStatus:
        report = Report()
        task(report)
        return DiagnosticStatus(
            level=report.level,
            name=f'{self._name}: {name}',
            message='; '.join(report.texts) or 'OK',
            hardware_id=self._hardware(),
            values=[KeyValue(key=k, value=_text(v)) for k, v in report.values.items()],
        )


class Memory:
    """Memory and processor time of this process."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def __call__(self, report: Report) -> None:
        """The task."""
        cpu, wall = time.process_time(), time.monotonic()
        share = (cpu - self._cpu) / max(wall - self._wall, 1e-6)
        self._cpu, self._wall = cpu, wall
        report.values['resident memory (MB)'] = resident_bytes() / 1e6
        report.values['CPU (cores)'] = share


def resident_bytes(pid: int | str = 'self') -> int:
    """Resident memory of a process; 0 where the system does not tell."""
    try:
        with open(f'/proc/{pid}/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return 0


def _text(value: Any) -> str:
    if isinstance(value, float):
        return 'none yet' if math.isnan(value) else f'{value:.3f}'
    return str(value)
