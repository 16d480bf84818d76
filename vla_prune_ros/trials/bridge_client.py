# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Drives a `sim_bridge` from outside: one episode after the other, and how each ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from vla_prune_ros.ros.messages import EPISODES, values_from
from vla_prune_ros.trials.command import spin_until


class BridgeClient:
    """A node that asks a bridge for episodes. Use it as a context manager, from one thread."""

    def __init__(self, check: Callable[[], None], patience: float, bridge: str = 'sim_bridge'):
        """Join the ROS graph on entry.

        Args:
            check: raises when a process that is needed has ended.
            patience: seconds to wait for anything before giving up.
            bridge: name of the node.
        """
        self._check, self._patience, self._bridge = check, patience, bridge
        self._ended: dict[str, dict[str, str]] = {}

    def __enter__(self) -> BridgeClient:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('bridge_client')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._node.create_subscription(
            DiagnosticArray, f'{self._bridge}/episode', self._on_episode, EPISODES
        )
        self._parameters = AsyncParameterClient(self._node, self._bridge)
        self._reset = self._node.create_client(Trigger, f'{self._bridge}/reset_episode')
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(timeout_sec=0)
        self._node.destroy_node()
        rclpy.try_shutdown()

    def wait_for_bridge(self) -> None:
        """Until the bridge answers.

        Raises:
            RuntimeError: it took too long.
        """
        self._wait(self._parameters.services_are_ready, f'the parameters of {self._bridge}')
        self._wait(self._reset.service_is_ready, f'{self._bridge}/reset_episode')

    def run_episode(self, **parameters: Any) -> dict[str, str]:
        """Set parameters of the bridge, run one episode; the status with which it ended.

        Raises:
            RuntimeError: a parameter was refused, or the episode did not end in time.
        """
        values = [Parameter(name, value=value) for name, value in parameters.items()]
        answer = self._result(self._parameters.set_parameters_atomically(values), 'parameters')
        if not answer.result.successful:
            raise RuntimeError(f'{self._bridge} refused {parameters}: {answer.result.reason}')
        started = self._result(self._reset.call_async(Trigger.Request()), 'reset_episode')
        if not started.success:
            raise RuntimeError(f'{self._bridge} starts no episode: {started.message}')
        number = started.message.split()[1]
        self._wait(lambda: number in self._ended, f'the end of {parameters}')
        return self._ended[number]

    def _on_episode(self, message: DiagnosticArray) -> None:
        status = values_from(message)
        if status['state'] == 'done':
            self._ended[status['episode']] = status

    def _result(self, future: Any, what: str) -> Any:
        self._wait(future.done, f'an answer of {self._bridge}: {what}')
        return future.result()

    def _wait(self, ready: Callable[[], Any], what: str) -> None:
        """Spin until `ready()`; look at the children all the time."""
        spin_until(self._executor, ready, what, self._patience, self._check)
