# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot bridge and a simulated arm as the client of the graph sees them, with the arm's path."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from std_srvs.srv import SetBool, Trigger

from vla_prune_ros.ros.client import Client
from vla_prune_ros.ros.messages import LATCHED, SENSOR, values_from
from vla_prune_ros.ros.peers import Bridge
from vla_prune_ros.trials.robot_path import jerk_rms, thinned


class RobotBridge:
    """A `robot_bridge`.

    Attributes:
        states: inbox of its state.
    """

    def __init__(self, client: Client, name: str = 'robot_bridge') -> None:
        self._client, self._name = client, name
        self._latency: float | None = None
        self.states = client.listen(DiagnosticArray, f'{name}/state', values_from, LATCHED)

    @property
    def state(self) -> dict[str, str]:
        """What it said last; empty before."""
        return self.states.latest or {}

    def set_latency(self, seconds: float) -> None:
        """Delay of every chunk; it changes in state idle only."""
        if self._latency == seconds:
            return
        self.disable()
        self._client.call(Trigger, f'{self._name}/reset')
        self._client.set_parameters(self._name, {'latency': seconds})
        self._latency = seconds

    def enable(self) -> None:
        """Enable it; again while it has reasons not to be.

        Raises:
            GraphError: it has them all the time.
        """
        deadline = time.monotonic() + self._client.patience
        while self.state.get('state') not in ('holding', 'running'):
            if self.state.get('state') == 'stopped':
                self._client.call(Trigger, f'{self._name}/reset')
            answer = self._set_enabled(True)
            if answer.success:
                return
            if time.monotonic() > deadline:
                raise self._client.error(f'/{self._name} cannot be enabled: {answer.message}')
            self._client.spin(0.2)

    def disable(self) -> None:
        """Hold still, then be silent."""
        self._set_enabled(False)

    def _set_enabled(self, value: bool) -> Any:
        request = SetBool.Request(data=value)
        return self._client.call(SetBool, f'{self._name}/set_enabled', request)


class WatchedArm:
    """Runs episodes of a simulated arm and watches its path."""

    def __init__(self, client: Client) -> None:
        self._simulation, self.robot = Bridge(client), RobotBridge(client)
        self._path = client.listen(PoseStamped, 'ee_pose', _position, SENSOR)

    def wait_until_there(self) -> None:
        """Until it can be asked for episodes."""
        self._simulation.wait_until_there()

    def run_episode(self, **parameters: Any) -> dict[str, Any]:
        """Run one; its status, the root mean square of the path's jerk (m/s3), the bridge's."""
        self._path.clear()
        before = self.robot.state
        status: dict[str, Any] = dict(self._simulation.run_episode(**parameters).status)
        after = self.robot.state
        status['jerk_rms'] = jerk_rms(thinned([(p.stamp / 1e9, p.value) for p in self._path]))
        status['bridge'] = after
        for key in ('starved', 'late'):
            status[f'bridge_{key}'] = int(after.get(key, 0)) - int(before.get(key, 0))
        return status


def _position(message: PoseStamped) -> np.ndarray:
    p = message.pose.position
    return np.array([p.x, p.y, p.z])
