# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ROS side of the demo: parameters and services out, statistics and pictures in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from vla_prune_ros.ros.images import decode_rgb
from vla_prune_ros.ros.messages import (
    LATCHED,
    RELIABLE,
    to_ns,
    to_seconds,
    values_from,
)
from vla_prune_ros.trials.command import spin_until
from vla_prune_ros.trials.demo_report import DemoEpisode, Frame, Query

POLICY, BRIDGE = 'vla_policy', 'sim_bridge'
CAMERAS = ('agentview', 'wrist')
EVERY = 2  # of so many camera frames one is kept: 10 Hz look smooth enough
START_GRACE = 3.0  # s in which a policy that is not active must begin to change
TICK = 0.2  # s between two looks at the children while nothing arrives


@dataclass(frozen=True)
class Wanted:
    """An episode to run. `pictures`: collect camera frames; `checkpoint`: its name, to show."""

    mode: str
    task: str
    state: int
    max_steps: int = 0
    pictures: bool = False
    checkpoint: str = ''


class DemoClient:
    """A node that drives the other two. Use it as a context manager, from one thread."""

    def __init__(self, check: Callable[[], None], patience: float) -> None:
        """Join the ROS graph.

        Args:
            check: raises when a process that is needed has ended.
            patience: seconds to wait for anything before giving up.
        """
        self._check = check
        self._patience = patience
        self.policy_info: dict[str, str] = {}
        self._status: dict[str, str] = {}
        self._queries: list[Query] = []
        self._views: dict[str, dict[int, np.ndarray]] = {camera: {} for camera in CAMERAS}
        self._pictures = False

    def __enter__(self) -> DemoClient:
        # No handlers of rclpy's: Ctrl-C is to raise here, so that the children are stopped.
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = node = rclpy.create_node('vla_demo')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        many = QoSProfile(depth=50, reliability=RELIABLE.reliability)
        node.create_subscription(DiagnosticArray, f'/{POLICY}/policy_info', self._on_info, LATCHED)
        node.create_subscription(
            DiagnosticArray, f'/{POLICY}/inference_stats', self._on_stats, many
        )
        node.create_subscription(DiagnosticArray, f'/{BRIDGE}/episode', self._on_status, LATCHED)
        for camera in CAMERAS:
            node.create_subscription(
                Image, f'{camera}/image_raw', lambda m, c=camera: self._on_image(c, m), many
            )
        self._parameters = {name: AsyncParameterClient(node, name) for name in (POLICY, BRIDGE)}
        self._lifecycle = node.create_client(GetState, f'/{POLICY}/get_state')
        self._reset = node.create_client(Trigger, f'/{BRIDGE}/reset_episode')
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(timeout_sec=0)
        self._node.destroy_node()
        rclpy.try_shutdown()

    # -- driving -------------------------------------------------------------------------------
    def wait_for_nodes(self) -> None:
        """Until both nodes answer and the policy is active.

        Raises:
            RuntimeError: it took too long, or the policy could not be loaded.
        """
        for name, client in self._parameters.items():
            self._wait(client.services_are_ready, f'the parameter services of /{name}')
        self._wait(self._reset.service_is_ready, f'/{BRIDGE}/reset_episode')
        self._wait(self._lifecycle.service_is_ready, f'/{POLICY}/get_state')
        self._wait_until_active()
        self._wait(lambda: self.policy_info, f'/{POLICY}/policy_info')

    def _wait_until_active(self) -> None:
        """A state that is neither active nor on the way there for a while is a failed start."""
        still = time.monotonic()
        while True:
            state = self._call(self._lifecycle, GetState.Request()).current_state
            if state.id == State.PRIMARY_STATE_ACTIVE:
                return
            if state.id >= State.TRANSITION_STATE_CONFIGURING:
                still = time.monotonic()
            if time.monotonic() - still > START_GRACE:
                raise RuntimeError(f'/{POLICY} is {state.label} and not active')
            self._check()
            self._executor.spin_once(timeout_sec=TICK)

    def run_episode(self, wanted: Wanted) -> DemoEpisode:
        """Switch the mode, run one episode and collect what the topics tell about it.

        Raises:
            RuntimeError: a parameter was refused, the episode did not run to its end in time, or
                inferences were made in another mode.
        """
        self._set(POLICY, {'pruning.mode': wanted.mode})
        self._set(BRIDGE, {
            'task': wanted.task,
            'initial_state': wanted.state,
            'max_steps': wanted.max_steps,
            'publish_every_step': wanted.pictures,
        })  # fmt: skip
        self._queries.clear()
        self._pictures = wanted.pictures
        for views in self._views.values():
            views.clear()
        answer = self._call(self._reset, Trigger.Request())
        if not answer.success:
            raise RuntimeError(f'/{BRIDGE} starts no episode: {answer.message}')
        number = answer.message.split()[1]
        self._wait(lambda: self._is_done(number), f'the end of {wanted}')
        status = self._status
        n_queries = int(status['queries'])
        self._wait(lambda: len(self._queries) >= n_queries, f'{n_queries} inference statistics')
        self._confirm(wanted, status)
        self._wait(
            lambda: self.policy_info['mode'] == wanted.mode, f'policy_info of mode {wanted.mode}'
        )
        return DemoEpisode(
            mode=wanted.mode,
            task=status['task'],
            instruction=status['instruction'],
            state=int(status['initial_state']),
            success=status['success'] == 'true',
            steps=int(status['step']),
            queries=list(self._queries),
            frames=self._frames() if wanted.pictures else [],
            note=self.policy_info['note'],
            checkpoint=wanted.checkpoint,
        )

    def _is_done(self, number: str) -> bool:
        return self._status.get('episode') == number and self._status['state'] == 'done'

    def _confirm(self, wanted: Wanted, status: dict[str, str]) -> None:
        if status['result'] not in ('success', 'step_limit'):
            raise RuntimeError(f'{wanted} ended as {status["result"]!r}')
        others = sorted({query.mode for query in self._queries} - {wanted.mode})
        if others or not self._queries:
            raise RuntimeError(
                f'{wanted} was answered in mode {", ".join(others) or "none at all"}'
            )
        if wanted.pictures and not all(self._views.values()):
            raise RuntimeError(f'no camera pictures arrived in {wanted}')

    def _frames(self) -> list[Frame]:
        """Every second instant at which every camera has a picture."""
        first, *rest = (self._views[camera] for camera in CAMERAS)
        stamps = sorted(stamp for stamp in first if all(stamp in views for views in rest))
        return [
            Frame(to_seconds(stamp), tuple(self._views[camera][stamp] for camera in CAMERAS))
            for stamp in stamps[::EVERY]
        ]

    def _set(self, node: str, values: dict[str, Any]) -> None:
        parameters = [Parameter(name, value=value) for name, value in values.items()]
        client = self._parameters[node]
        answer = self._result(client.set_parameters_atomically(parameters), f'{node} parameters')
        if not answer.result.successful:
            raise RuntimeError(f'/{node} refused {values}: {answer.result.reason}')

    # -- waiting -------------------------------------------------------------------------------
    def _call(self, client: Any, request: Any) -> Any:
        return self._result(client.call_async(request), client.srv_name)

    def _result(self, future: Any, what: str) -> Any:
        self._wait(future.done, f'an answer of {what}')
        return future.result()

    def _wait(self, ready: Callable[[], Any], what: str) -> None:
        """Spin until `ready()`; look at the children all the time."""
        spin_until(self._executor, ready, what, self._patience, self._check, TICK)

    # -- topics --------------------------------------------------------------------------------
    def _on_info(self, message: DiagnosticArray) -> None:
        self.policy_info = values_from(message)

    def _on_status(self, message: DiagnosticArray) -> None:
        self._status = values_from(message)

    def _on_stats(self, message: DiagnosticArray) -> None:
        self._queries.append(query_from(message))

    def _on_image(self, camera: str, message: Image) -> None:
        views = self._views[camera]
        stamp = to_ns(message.header.stamp)
        if self._pictures and stamp not in views:
            views[stamp] = decode_rgb(message).copy()


def query_from(message: DiagnosticArray) -> Query:
    """What one statistics message says about its inference."""
    values = values_from(message)
    kept = [int(number) for number in values['kept'].split(',') if number]
    return Query(
        mode=values['mode'],
        stamp=to_seconds(to_ns(message.header.stamp)),
        kept=np.array(kept, dtype=np.int64),
        n_visual=int(values['tokens_total']),
        latency_ms=float(values['node_ms']),
    )
