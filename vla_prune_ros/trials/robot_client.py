# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Drives policy, robot bridge and simulated arm from outside, and watches the arm's path."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from std_srvs.srv import SetBool, Trigger

from vla_prune_ros.ros.messages import LATCHED, SENSOR, to_ns, values_from
from vla_prune_ros.trials.bridge_client import BridgeClient

SAMPLE = 0.05  # s between two points of the path


class RobotClient(BridgeClient):
    """As `BridgeClient`; enables the bridge where there is one. One thread, a context manager."""

    def __enter__(self) -> RobotClient:
        super().__enter__()
        self.state: dict[str, str] = {}
        self.path: list[tuple[float, np.ndarray]] = []
        self.info: dict[str, str] = {}
        node = self._node
        node.create_subscription(DiagnosticArray, 'robot_bridge/state', self._on_state, LATCHED)
        node.create_subscription(DiagnosticArray, 'vla_policy/policy_info', self._on_info, LATCHED)
        node.create_subscription(PoseStamped, 'ee_pose', self._on_pose, SENSOR)
        self._bridge_parameters = AsyncParameterClient(node, 'robot_bridge')
        self._enabler = node.create_client(SetBool, 'robot_bridge/set_enabled')
        self._resetter = node.create_client(Trigger, 'robot_bridge/reset')
        return self

    def wait_for_policy(self) -> None:
        """Until a model is loaded."""
        self._wait(lambda: self.info, 'a policy')

    def set_latency(self, seconds: float) -> None:
        """Of the bridge; it changes in state idle only."""
        if getattr(self, '_latency', None) == seconds:
            return
        self._wait(self._enabler.service_is_ready, 'the robot bridge')
        self._wait(self._bridge_parameters.services_are_ready, 'its parameters')
        self._result(self._enabler.call_async(SetBool.Request(data=False)), 'disable')
        self._result(self._resetter.call_async(Trigger.Request()), 'reset')
        values = [Parameter('latency', value=seconds)]
        answer = self._result(self._bridge_parameters.set_parameters(values), 'latency')
        if not answer.results[0].successful:
            raise RuntimeError(f'latency {seconds} refused: {answer.results[0].reason}')
        self._latency = seconds

    def enable(self) -> None:
        """Enable the bridge; again while it has reasons not to be.

        Raises:
            RuntimeError: it has them all the time.
        """
        self._wait(self._enabler.service_is_ready, 'the robot bridge')
        deadline = time.monotonic() + self._patience
        while self.state.get('state') not in ('holding', 'running'):
            if self.state.get('state') == 'stopped':
                self._result(self._resetter.call_async(Trigger.Request()), 'reset')
            answer = self._result(self._enabler.call_async(SetBool.Request(data=True)), 'enable')
            if answer.success:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f'the robot bridge cannot be enabled: {answer.message}')
            self.spin(0.2)

    def spin(self, seconds: float) -> None:
        """Let time pass."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._executor.spin_once(timeout_sec=0.05)

    def run_watched(self, **parameters: Any) -> dict[str, Any]:
        """Run an episode; its status, and the root mean square of the path's jerk (m/s3)."""
        self.path.clear()
        before = dict(self.state)
        status: dict[str, Any] = dict(self.run_episode(**parameters))
        status['jerk_rms'] = jerk_rms(self.path)
        status['bridge'] = dict(self.state)
        status['bridge_starved'] = _difference(before, self.state, 'starved')
        status['bridge_late'] = _difference(before, self.state, 'late')
        return status

    def _on_state(self, message: DiagnosticArray) -> None:
        self.state = values_from(message)

    def _on_info(self, message: DiagnosticArray) -> None:
        self.info = values_from(message)

    def _on_pose(self, message: PoseStamped) -> None:
        at, p = to_ns(message.header.stamp) / 1e9, message.pose.position
        if not self.path or not 0 <= at - self.path[-1][0] < 0.9 * SAMPLE:
            self.path.append((at, np.array([p.x, p.y, p.z])))


def jerk_rms(path: list[tuple[float, np.ndarray]]) -> float:
    """Of a path sampled every 50 ms, where the samples are regular and nothing was put away."""
    squares = []
    for k in range(3, len(path)):
        times = np.array([t for t, _ in path[k - 3 : k + 1]])
        a, b, c, d = (p for _, p in path[k - 3 : k + 1])
        if np.all(np.abs(np.diff(times) - SAMPLE) < 0.3 * SAMPLE) and np.linalg.norm(d - a) < 0.2:
            squares.append(float(np.sum((d - 3 * c + 3 * b - a) ** 2)) / SAMPLE**6)
    return float(np.sqrt(np.mean(squares))) if squares else float('nan')


def _difference(before: dict[str, str], after: dict[str, str], key: str) -> int:
    return int(after.get(key, 0)) - int(before.get(key, 0))
