# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy node's data subscriptions: messages in, samples and reports out.

A message that cannot be used is counted and reported, and leaves no other trace. Pictures are
only looked over when they come, and unpacked when the model wants to see them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, ReliabilityPolicy, qos_check_compatible
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.nodes.policy.answering import Picture
from vla_prune_ros.nodes.policy.conversation import Conversation
from vla_prune_ros.nodes.policy.joints import Joints
from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.ros.images import (
    ImageError,
    check_compressed,
    check_rgb,
    decode_compressed_rgb,
    decode_rgb,
)
from vla_prune_ros.ros.messages import (
    DEPTH,
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
# An event of a subscription that is gone ends rclpy's executors: it may come between two lines of
# theirs. So there are none; what an event would say is asked for when a stream is silent.
NO_EVENTS = SubscriptionEventCallbacks(use_default_callbacks=False)


class Inputs:
    """Subscribes on demand and tells the conversation what comes.

    An executor may hold messages of a subscription that was destroyed; `_life` tells them apart.
    """

    def __init__(self, node: Node, config: PolicyConfig, conversation: Conversation) -> None:
        self._node = node
        self._config = config
        self._conversation = conversation
        self.streams = Streams((*config.cameras, *config.state.streams), config.stream_timeout)
        self._life = 0  # counts the times that we stopped listening
        self._subscriptions: list = []
        self._streams: dict[str, tuple[Any, Callable[[Any], Any]]] = {}
        self._warn = Throttled(lambda text: node.get_logger().warning(text))
        self._matched = 0.0  # time.monotonic of the last complete observation

    def subscribe(self) -> None:
        """Start to listen."""
        self._matched = time.monotonic()
        self.streams.start(self._matched)
        compressed = self._config.image_transport == 'compressed'
        kind, suffix = (CompressedImage, '/compressed') if compressed else (Image, '')
        ways = (check_compressed, decode_compressed_rgb) if compressed else (check_rgb, decode_rgb)
        state = self._config.state
        if 'joint_states' in state.streams:
            positions = partial(joint_positions, state.joints)
            self._listen(JointState, 'joint_states', 'joint_states', positions)
        if 'ee_pose' in state.streams:
            self._listen(PoseStamped, 'ee_pose', 'ee_pose', pose_from)
        for camera in self._config.cameras:
            look = partial(self._picture, camera, *ways)
            self._listen(kind, f'{camera}/image_raw{suffix}', camera, look)
        self._subscriptions.append(
            self._node.create_subscription(
                JointTrajectory,
                'executed_actions',
                partial(self._on_executed, self._life),
                RELIABLE,
                event_callbacks=NO_EVENTS,
            )
        )

    def unsubscribe(self) -> None:
        """Stop listening. Call it in the executor's thread."""
        self._life += 1
        self._streams.clear()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

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
            self._check_qos(stream)
        for stream in back:
            self._node.get_logger().info(f'{stream} is back')
        if text := self.mismatch():
            self._warn('matching', text)

    def mismatch(self) -> str:
        """Why no observation is complete although every stream is alive; '' if all is well."""
        now = time.monotonic()
        if self.streams.silent or now - self._matched <= 2 * self.streams.timeout:
            return ''
        stamps = {name: self.streams.stamp(name) for name in self.streams.names}
        newest = {name: stamp for name, stamp in stamps.items() if stamp is not None}
        if len(newest) < len(stamps):
            return ''
        first = newest[self._config.cameras[0]]
        apart = ', '.join(f'{name} {(s - first) / 1e9:+.3f} s' for name, s in newest.items())
        return (
            f'messages come, but their stamps do not match (sync.slop, sync.state_slop): {apart}'
        )

    def counts(self) -> dict[str, int]:
        """Messages that came to nothing, by stream. May be called from another thread."""
        causes = self._conversation.losses() | {'broken': dict(self.streams.broken_count)}
        return {f'{c}.{name}': n for c, by in causes.items() for name, n in by.items() if n}

    def health(self, node_now: int) -> dict[str, str]:
        """Age, rate and losses of every stream, for people."""
        now, losses = time.monotonic(), self._conversation.losses()
        text: dict[str, str] = {}
        for name in self.streams.names:
            age = self.streams.age(name, node_now)
            text |= {
                f'{name}: age (s)': 'never seen' if age is None else f'{age:.3f}',
                f'{name}: rate (Hz)': f'{self.streams.rate(name, now):.1f}',
                f'{name}: received': str(self.streams.received_count[name]),
                **{f'{name}: {c}': str(by.get(name, 0)) for c, by in losses.items()},
                f'{name}: broken': str(self.streams.broken_count[name]),
            }
        others = self.streams.broken_count.keys() - {*self.streams.names}
        return text | {
            f'{name}: refused': str(self.streams.broken_count[name]) for name in sorted(others)
        }

    def _listen(self, kind: type, topic: str, stream: str, read: Callable[[Any], Any]) -> None:
        qos = copy.copy(SENSOR)  # an override writes into it
        if self._config.input_reliability == 'reliable':
            qos.reliability = ReliabilityPolicy.RELIABLE
            qos.depth = DEPTH
        subscription = self._node.create_subscription(
            kind,
            topic,
            partial(self._on_message, self._life, stream),
            qos,
            event_callbacks=NO_EVENTS,
            # So that a replay can ask for reliable delivery.
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._subscriptions.append(subscription)
        self._streams[stream] = subscription, read

    def _check_qos(self, stream: str) -> None:
        """Say so if somebody publishes on a silent stream, but not to us."""
        subscription, _ = self._streams[stream]
        topic = subscription.topic_name
        for publisher in self._node.get_publishers_info_by_topic(topic):
            verdict, why = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
            if verdict == QoSCompatibility.ERROR:
                text = f'a publisher on {topic} has a QoS that gives us nothing: {why}'
                self._warn(f'{stream} QoS', text)

    def _on_message(self, life: int, stream: str, message: Any) -> None:
        """Take a message, and what came on the other streams with it.

        An observation comes as a burst of messages, and the executor needs about half a
        millisecond to look around between two of them.
        """
        if life != self._life:
            return
        self._take(stream, self._streams[stream][1], message)
        for _ in range(BURST):
            came = False
            for other, (subscription, read) in self._streams.items():
                if (more := _waiting(subscription)) is not None:
                    self._take(other, read, more)
                    came = True
            if not came:
                return

    def _take(self, stream: str, read: Callable[[Any], Any], message: Any) -> None:
        began = time.perf_counter()
        try:
            sample = read(message)
        except (ImageError, MessageError) as error:
            self._report(stream, error)
            return
        stamp = to_ns(message.header.stamp)
        self.streams.received(stream, time.monotonic(), stamp)
        if self._conversation.add(stream, stamp, sample, began):
            self._matched = time.monotonic()

    def _picture(
        self,
        camera: str,
        check: Callable[[Any], object],
        unpack: Callable[[Any], np.ndarray],
        message: Any,
    ) -> Picture:
        check(message)
        return Picture(message, unpack, partial(self._report, camera))

    def _on_executed(self, life: int, message: JointTrajectory) -> None:
        if life != self._life:
            return
        try:
            executed = executed_from(message, self._config.action.names)
        except MessageError as error:
            self._report('executed_actions', error)
            return
        self._conversation.add_executed(to_ns(message.header.stamp), executed)

    def _report(self, stream: str, error: Exception) -> None:
        """A message cannot be used. May be called from another thread."""
        self.streams.broken(stream)
        self._warn(stream, f'{stream}: broken message: {error}')


def _waiting(subscription: Any) -> Any:
    """The next message of a subscription, None if there is none; as rclpy's executors take it."""
    with subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, False)
    return None if taken is None else taken[0]


def joint_positions(joints: Joints, message: JointState) -> np.ndarray:
    """Positions float64 of the joints as the checkpoint has them.

    Raises:
        MessageError: see `joints_from`.
    """
    return joints.of_policy(joints_from(message, joints.names))
