# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tier T2 of a replay: the real policy node over DDS, one observation at a time.

The player publishes the messages of one observation, asks for its chunk with an executed-actions
message, waits for the chunk and the statistics with that stamp, and only then goes on: nothing is
dropped, nothing overtakes. Messages of one observation get its stamp, so that the node matches
exactly what was matched when the bag was read. Modes change by parameter, resets by service.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.bags.feed import values_of
from vla_prune_ros.bags.offline import Schedule, Setup, inputs_digest
from vla_prune_ros.bags.streams import STATES
from vla_prune_ros.bags.tracks import Track, output_of
from vla_prune_ros.nodes.policy.assembler import MatchedSet
from vla_prune_ros.nodes.policy.trigger import Tick
from vla_prune_ros.ros.children import Children, node_command, node_environment
from vla_prune_ros.ros.delivery import acknowledged
from vla_prune_ros.ros.messages import (
    LATCHED,
    PROMPT,
    RELIABLE,
    actions_from,
    executed_message,
    image_message,
    to_ns,
    to_time,
    values_from,
)

POLICY = 'vla_policy'
TICK = 0.01  # s, the longest wait for something to happen
PATIENCE = 60.0  # s of wall clock to wait for anything


def policy_command(setup: Setup) -> list[str]:
    """The policy node, made to answer whatever and whenever it is asked."""
    parameters = asdict(setup) | {
        'trigger': 'request',
        'queue': 'fifo',
        'sync.slop': 0.0,
        'sync.state_slop': 0.0,
        'max_observation_age': 0.0,
        'inference_timeout': 0.0,
        'stream_timeout': 3600.0,
        'input_reliability': 'reliable',
        'use_sim_time': 'false',
    }
    lists = {name: f'[{", ".join(v)}]' for name, v in parameters.items() if isinstance(v, tuple)}
    given = [f'{name}:={value}' for name, value in (parameters | lists).items() if value != '']
    return node_command('policy_node', given)


class GraphError(RuntimeError):
    """The node did not do what was asked of it; the text says what."""


class Player:
    """The lockstep player, with a policy node of its own. Use it as a context manager."""

    def __init__(self, setup: Setup, logs: Path) -> None:
        """Describe the node: `setup` of its policy, and the folder for its output."""
        self._setup = setup
        self._children = Children(logs, node_environment())
        self._chunks: dict[int, list[np.ndarray]] = {}
        self._stats: dict[int, list[dict[str, str]]] = {}
        self.info: dict[str, str] = {}
        self.exit_code: int | None = None

    def __enter__(self) -> Player:
        self._children.start('policy_node', policy_command(self._setup))
        self._own_context = not rclpy.ok()
        if self._own_context:
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = node = rclpy.create_node('replay')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        node.create_subscription(JointTrajectory, 'action_chunk', self._on_chunk, RELIABLE)
        node.create_subscription(
            DiagnosticArray, f'{POLICY}/inference_stats', self._on_stats, RELIABLE
        )
        node.create_subscription(DiagnosticArray, f'{POLICY}/policy_info', self._on_info, LATCHED)
        publish = node.create_publisher
        self._publishers = {
            camera: publish(Image, f'{camera}/image_raw', PROMPT) for camera in self._setup.cameras
        } | {
            'joint_states': publish(JointState, 'joint_states', PROMPT),
            'ee_pose': publish(PoseStamped, 'ee_pose', PROMPT),
            'executed_actions': publish(JointTrajectory, 'executed_actions', PROMPT),
            'instruction': publish(String, 'instruction', LATCHED),
        }
        self._parameters = AsyncParameterClient(node, POLICY)
        self._reset = node.create_client(Trigger, f'{POLICY}/reset')
        try:
            self._wait(self._connected, 'the policy node to be active')
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self.exit_code = self._children.stop().get('policy_node')
        self._executor.shutdown(timeout_sec=0)
        self._node.destroy_node()
        if self._own_context:
            rclpy.try_shutdown()

    def _connected(self) -> bool:
        return (
            bool(self.info)
            and all(p.get_subscription_count() for p in self._publishers.values())
            and self._node.count_publishers('action_chunk') > 0
            and self._parameters.services_are_ready()
            and self._reset.service_is_ready()
        )

    # -- playing -------------------------------------------------------------------------------
    def play(
        self,
        ticks: Any,
        schedule: Schedule,
        name: str,
        progress: Callable[[], None] = lambda: None,
    ) -> Track:
        """Play ticks from a clean reset.

        Raises:
            GraphError: no chunk came, or the node refused something.
        """
        self._set('none', {})
        self._call_reset()
        self._instruction = None
        outputs, moments = [], []
        for index, tick in enumerate(ticks):
            moment = schedule.at(index, tick.observation.stamp)
            if moment.reset:
                self._call_reset()
            self._set(moment.mode, moment.options)
            outputs.append(self._ask(tick))
            moments.append(moment)
            progress()
        return Track(name, tuple(outputs), tuple(moments), dict(self.info))

    def _ask(self, tick: Tick) -> Any:
        stamp = tick.observation.stamp
        self._chunks.clear()
        self._stats.clear()
        if tick.instruction != self._instruction:
            self._instruct(tick.instruction)
        for frame in (*tick.between, tick.observation):
            self._publish(frame)
            self._wait(self._delivered, 'the policy node to take a frame')
        self._publishers['executed_actions'].publish(request(values_of(tick), self._setup.period))
        self._wait(
            lambda: stamp in self._chunks and stamp in self._stats,
            f'the chunk with the stamp {stamp / 1e9:.9f} s',
        )
        others = sorted({*self._chunks, *self._stats} - {stamp})
        if others or len(self._chunks[stamp]) > 1 or len(self._stats[stamp]) > 1:
            raise GraphError(f'more than one chunk for one observation; stamps {others or stamp}')
        output = output_of(stamp, self._chunks[stamp][0], self._stats[stamp][0])
        return replace(output, inputs=inputs_digest(values_of(tick)))

    def _delivered(self) -> bool:
        return acknowledged(self._publishers.values())

    def _instruct(self, text: str) -> None:
        """The node says on policy_info which instruction is in force."""
        self._publishers['instruction'].publish(String(data=text))
        self._wait(lambda: self.info.get('instruction') == text, f'the instruction {text!r}')
        self._instruction = text

    def _publish(self, frame: MatchedSet) -> None:
        for name, sample in frame.samples.items():
            if name in STATES:
                message = sample.message
                message.header.stamp = to_time(frame.stamp)
            else:
                message = image_message(sample.value, frame.stamp, name)
            self._publishers[name].publish(message)

    def _set(self, mode: str, options: dict[str, Any]) -> None:
        values = {'pruning.mode': mode}
        values |= {f'pruning.{mode}.{key}': value for key, value in options.items()}
        parameters = [Parameter(key, value=value) for key, value in values.items()]
        future = self._parameters.set_parameters_atomically(parameters)
        self._wait(future.done, 'an answer to new parameters')
        if not future.result().result.successful:
            raise GraphError(f'mode {mode}: {future.result().result.reason}')
        self._wait(lambda: self.info.get('mode') == mode, f'policy_info of mode {mode}')

    def _call_reset(self) -> None:
        future = self._reset.call_async(Trigger.Request())
        self._wait(future.done, 'an answer of ~/reset')
        if not future.result().success:
            raise GraphError(f'reset: {future.result().message}')

    def _wait(self, ready: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        look = 0.0
        while not ready():
            now = time.monotonic()
            if now > look:
                self._children.check()
                look = now + 1.0
            if now > deadline:
                tail = self._children.tail('policy_node', 5)
                raise GraphError(f'waited {PATIENCE:.0f} s in vain for {what}\n{tail}')
            self._executor.spin_once(timeout_sec=TICK)

    # -- topics --------------------------------------------------------------------------------
    def _on_chunk(self, message: JointTrajectory) -> None:
        stamp = to_ns(message.header.stamp)
        self._chunks.setdefault(stamp, []).append(actions_from(message))

    def _on_stats(self, message: DiagnosticArray) -> None:
        stamp = to_ns(message.header.stamp)
        self._stats.setdefault(stamp, []).append(values_from(message))

    def _on_info(self, message: DiagnosticArray) -> None:
        self.info = values_from(message)


def request(tick: Tick, period: int) -> JointTrajectory:
    """An executed-actions message with all that was executed before a tick."""
    done = sorted(
        (end, k, action)
        for k, e in enumerate(tick.executed)
        for end, action in zip(e.ends, e.actions.tolist(), strict=True)
    )
    stamp = tick.observation.stamp
    message = executed_message(np.reshape([a for *_, a in done], (-1, 7)), stamp, period)
    ends = [end for end, *_ in done]
    if ends and all(b > a for a, b in pairwise(ends)):
        starts = [min(ends[0], stamp) - period, *ends[:-1]]
        for point, start in zip(message.points, starts, strict=True):
            seconds, rest = divmod(start - stamp, 1_000_000_000)
            point.time_from_start.sec, point.time_from_start.nanosec = seconds, rest
    return message
