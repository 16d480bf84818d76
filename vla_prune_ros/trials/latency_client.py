# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Drives one pair of nodes of the latency sweep, on a ROS domain of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from std_srvs.srv import Trigger

from vla_prune_ros.ros.messages import EPISODES, RELIABLE, values_from
from vla_prune_ros.trials.command import spin_until
from vla_prune_ros.trials.latency_report import Cell, LatencyEpisode

PATIENCE = 120.0  # s for a node to start or an episode to end
TICK = 0.1  # s between two looks at the children
RETRIES = 2  # of an episode that the simulation, not the policy, broke


class PairClient:
    """Runs episodes on the pair of one domain. A context manager; use it in one thread."""

    def __init__(
        self,
        domain: int,
        check: Callable[[], None],
        stop: threading.Event,
        max_steps: int = 0,
    ) -> None:
        """Prepare.

        Args:
            domain: ROS domain of the pair.
            check: raises when one of its processes has ended.
            stop: set when there is nothing more to wait for.
            max_steps: step limit of an episode; 0: the task's own.
        """
        self._domain, self._check, self._stop = domain, check, stop
        self._max_steps = max_steps
        self._status: dict[str, str] = {}
        self._policy_ms: list[float] = []

    def __enter__(self) -> PairClient:
        self._context = Context()
        self._context.init(domain_id=self._domain)
        self._node = node = Node('vla_latency', context=self._context, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(node)
        node.create_subscription(
            DiagnosticArray, '/vla_policy/inference_stats', self._on_stats, RELIABLE
        )
        node.create_subscription(DiagnosticArray, '/sim_bridge/episode', self._on_status, EPISODES)
        self._parameters = AsyncParameterClient(node, 'sim_bridge')
        self._reset = node.create_client(Trigger, '/sim_bridge/reset_episode')
        self._lifecycle = node.create_client(GetState, '/vla_policy/get_state')
        self._wait_until_ready()
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(timeout_sec=0)
        self._node.destroy_node()
        self._context.try_shutdown()

    def run_episode(self, cell: Cell) -> LatencyEpisode:
        """Run one episode.

        Raises:
            RuntimeError: it did not end, or not as an episode should.
        """
        self._set(
            {
                'task': cell.task,
                'initial_state': cell.state,
                'max_steps': self._max_steps,
                'execution.mode': cell.execution,
                'latency': cell.latency_ms / 1e3,
            }
        )
        for _ in range(1 + RETRIES):
            self._policy_ms.clear()
            number = self._call(self._reset, Trigger.Request()).message.split()[1]
            self._wait(lambda n=number: self._is_done(n), 'the end of an episode')
            status = self._status
            if status['result'] != 'error':
                break
        if status['result'] not in ('success', 'step_limit'):
            raise RuntimeError(f'{cell} ended as {status["result"]}: {status["error"]}')
        counts = {k: int(status[k]) for k in ('queries', 'starved', 'late')}
        return LatencyEpisode(
            execution=cell.execution,
            latency_ms=cell.latency_ms,
            task=status['task'],
            state=cell.state,
            success=status['success'] == 'true',
            steps=int(status['step']),
            policy_ms=tuple(round(ms, 2) for ms in self._policy_ms),
            **counts,
        )

    def _wait_until_ready(self) -> None:
        self._wait(self._parameters.services_are_ready, 'the parameters of /sim_bridge')
        self._wait(self._lifecycle.service_is_ready, 'the state of /vla_policy')
        deadline = time.monotonic() + PATIENCE
        while True:
            state = self._call(self._lifecycle, GetState.Request()).current_state
            if state.id == State.PRIMARY_STATE_ACTIVE:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f'/vla_policy is {state.label} and not active')
            self._executor.spin_once(timeout_sec=TICK)

    def _set(self, values: dict[str, Any]) -> None:
        parameters = [Parameter(name, value=value) for name, value in values.items()]
        future = self._parameters.set_parameters_atomically(parameters)
        self._wait(future.done, 'the parameters of /sim_bridge')
        result = future.result().result
        if not result.successful:
            raise RuntimeError(f'/sim_bridge refused {values}: {result.reason}')

    def _call(self, client: Any, request: Any) -> Any:
        self._wait(client.service_is_ready, client.srv_name)
        future = client.call_async(request)
        self._wait(future.done, f'an answer of {client.srv_name}')
        return future.result()

    def _wait(self, ready: Callable[[], Any], what: str) -> None:
        spin_until(self._executor, ready, what, PATIENCE, self._check_both, TICK)

    def _check_both(self) -> None:
        if self._stop.is_set():
            raise RuntimeError('stopped')
        self._check()

    def _is_done(self, number: str) -> bool:
        return self._status.get('episode') == number and self._status['state'] == 'done'

    def _on_status(self, message: DiagnosticArray) -> None:
        self._status = values_from(message)

    def _on_stats(self, message: DiagnosticArray) -> None:
        values = values_from(message)
        if 'node_ms' in values:
            self._policy_ms.append(float(values['node_ms']))
