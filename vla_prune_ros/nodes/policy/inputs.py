# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy node's data subscriptions: messages in, complete observations out.

A message that cannot be used is counted and reported, and leaves no other trace.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import Assembler, MatchedSet
from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.nodes.policy.trigger import Tick, Trigger
from vla_prune_ros.ros.images import ImageError, decode_compressed_rgb, decode_rgb
from vla_prune_ros.ros.messages import (
    DEPTH,
    NANOSECONDS,
    RELIABLE,
    SENSOR,
    MessageError,
    executed_from,
    joints_from,
    pose_from,
    to_ns,
)
from vla_prune_ros.ros.streams import Streams
from vla_prune_ros.ros.throttle import Throttled

BURST = 8  # rounds over the streams before the executor looks at anything else
STATES = ('joint_states', 'ee_pose')


@dataclass(frozen=True)
class Arrival:
    """What it took to complete an observation.

    Attributes:
        completed: `time.perf_counter` when its last message was handed to us.
        convert_ms: time spent on its messages in the executor's thread.
    """

    completed: float
    convert_ms: float


class Inputs:
    """Subscribes on demand; calls `on_tick` for every observation that wants a chunk.

    `on_frame` gets those that want none, or not yet.
    """

    def __init__(
        self,
        node: Node,
        config: PolicyConfig,
        on_tick: Callable[[Tick, Arrival], None],
        on_executed: Callable[[int, Executed], None],
        on_frame: Callable[[MatchedSet], None],
    ) -> None:
        self._node = node
        self._config = config
        self._on_tick = on_tick
        self._on_executed = on_executed
        self._on_frame = on_frame
        self._assembler = Assembler(
            config.cameras,
            STATES,
            slop=round(config.sync_slop * NANOSECONDS),
            state_slop=round(config.sync_state_slop * NANOSECONDS),
        )
        self._trigger = Trigger(config.trigger)
        self.streams = Streams((*config.cameras, *STATES), config.stream_timeout)
        self._subscriptions: list = []
        self._streams: dict[str, tuple[Any, Callable[[Any], np.ndarray]]] = {}
        self._warn = Throttled(lambda text: node.get_logger().warning(text))
        self._matched = 0.0  # time.monotonic of the last complete observation
        self._convert_ms = 0.0  # since the last tick

    def subscribe(self) -> None:
        """Start to listen."""
        self._matched = time.monotonic()
        self.streams.start(self._matched)
        compressed = self._config.image_transport == 'compressed'
        kind, suffix = (CompressedImage, '/compressed') if compressed else (Image, '')
        decode = decode_compressed_rgb if compressed else decode_rgb
        fingers = self._config.finger_joints
        self._listen(JointState, 'joint_states', 'joint_states', partial(_fingers, fingers))
        self._listen(PoseStamped, 'ee_pose', 'ee_pose', pose_from)
        for camera in self._config.cameras:
            self._listen(kind, f'{camera}/image_raw{suffix}', camera, decode)
        self._subscriptions.append(
            self._node.create_subscription(
                JointTrajectory, 'executed_actions', self._executed, RELIABLE
            )
        )

    def unsubscribe(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._streams.clear()

    def clear(self) -> None:
        """Forget what waits for its counterpart."""
        self._assembler.clear()
        self._trigger.clear()

    def add_executed(self, stamp: int, executed: Executed) -> None:
        """What led to the observation at `stamp`; in request mode this asks for a chunk."""
        self._pass_on(self._trigger.add_executed(stamp, executed), time.perf_counter())

    def watch(self, *, waited_for: bool) -> None:
        """Report streams that fell silent or came back. Call it by a wall clock.

        Args:
            waited_for: nothing has to come, because whoever sends waits for our answer.
        """
        now = time.monotonic()
        if waited_for:
            self.streams.excuse(now)
            self._matched = now
        gone, back = self.streams.changes(now)
        for stream in gone:
            self._node.get_logger().warning(
                f'no new message on {stream} for {self.streams.timeout:g} s'
            )
        for stream in back:
            self._node.get_logger().info(f'{stream} is back')
        if text := self.mismatch():
            self._warn('matching', text)

    def mismatch(self) -> str:
        """Why no observation is complete although every stream is alive; '' if all is well."""
        now = time.monotonic()
        if self.streams.silent or now - self._matched <= 2 * self.streams.timeout:
            return ''
        newest = {name: self.streams.stamp(name) for name in self.streams.names}
        if None in newest.values():
            return ''
        first = newest[self._config.cameras[0]]
        apart = ', '.join(f'{name} {(s - first) / 1e9:+.3f} s' for name, s in newest.items())
        return (
            f'messages come, but their stamps do not match (sync.slop, sync.state_slop): {apart}'
        )

    def counts(self) -> dict[str, int]:
        """Messages that came to nothing, by stream. May be called from another thread."""
        dropped, broken = dict(self._assembler.dropped), dict(self.streams.broken_count)
        counts = {f'dropped.{name}': n for name, n in dropped.items() if n}
        return counts | {f'broken.{name}': n for name, n in broken.items()}

    def health(self, node_now: int) -> dict[str, str]:
        """Age, rate and losses of every stream, for people."""
        now, text = time.monotonic(), {}
        for name in self.streams.names:
            age = self.streams.age(name, node_now)
            text |= {
                f'{name}: age (s)': 'never seen' if age is None else f'{age:.3f}',
                f'{name}: rate (Hz)': f'{self.streams.rate(name, now):.1f}',
                f'{name}: received': str(self.streams.received_count[name]),
                f'{name}: dropped': str(self._assembler.dropped[name]),
                f'{name}: broken': str(self.streams.broken_count[name]),
            }
        others = self.streams.broken_count.keys() - {*self.streams.names}
        return text | {
            f'{name}: refused': str(self.streams.broken_count[name]) for name in sorted(others)
        }

    def _listen(
        self, kind: type, topic: str, stream: str, decode: Callable[[Any], np.ndarray]
    ) -> None:
        qos = copy.copy(SENSOR)  # an override writes into it
        if self._config.input_reliability == 'reliable':
            qos.reliability = ReliabilityPolicy.RELIABLE
            qos.depth = DEPTH
        subscription = self._node.create_subscription(
            kind,
            topic,
            partial(self._on_message, stream),
            qos,
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=lambda _: self._warn(
                    f'{stream} QoS', f'a publisher on {topic} has a QoS that gives us nothing'
                ),
                use_default_callbacks=False,
            ),
            # So that a replay can ask for reliable delivery.
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._subscriptions.append(subscription)
        self._streams[stream] = subscription, decode

    def _on_message(self, stream: str, message: Any) -> None:
        """Take a message, and what came on the other streams with it.

        An observation comes as a burst of messages, and the executor needs about half a
        millisecond to look around between two of them.
        """
        self._take(stream, self._streams[stream][1], message)
        for _ in range(BURST):
            came = False
            for other, (subscription, decode) in tuple(self._streams.items()):
                if (more := _waiting(subscription)) is not None:
                    self._take(other, decode, more)
                    came = True
            if not came:
                return

    def _take(self, stream: str, decode: Callable[[Any], np.ndarray], message: Any) -> None:
        started = time.perf_counter()
        try:
            sample = decode(message)
        except (ImageError, MessageError) as error:
            self._report(stream, error)
            return
        stamp = to_ns(message.header.stamp)
        self.streams.received(stream, time.monotonic(), stamp)
        observations = self._assembler.add(stream, stamp, sample)
        if observations:
            self._matched = time.monotonic()
        self._convert_ms += (time.perf_counter() - started) * 1e3
        for observation in observations:
            tick = self._trigger.add_observation(observation)
            if tick is None:
                self._on_frame(observation)
            self._pass_on(tick, started)

    def _executed(self, message: JointTrajectory) -> None:
        try:
            executed = executed_from(message)
        except MessageError as error:
            self._report('executed_actions', error)
            return
        self._on_executed(to_ns(message.header.stamp), executed)

    def _pass_on(self, tick: Tick | None, started: float) -> None:
        """Hand a tick on; `started` is when the message that completed it came."""
        if tick is not None:
            arrival, self._convert_ms = Arrival(started, self._convert_ms), 0.0
            self._on_tick(tick, arrival)

    def _report(self, stream: str, error: Exception) -> None:
        self.streams.broken(stream)
        self._warn(stream, f'{stream}: broken message: {error}')


def _waiting(subscription: Any) -> Any:
    """The next message of a subscription, None if there is none; as rclpy's executors take it."""
    with subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, False)
    return None if taken is None else taken[0]


def _fingers(names: tuple[str, ...], message: JointState) -> np.ndarray:
    return joints_from(message, names)
