# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy node's data subscriptions: messages in, complete observations out.

A message that cannot be used is counted and reported, and leaves no other trace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.nodes.assembler import Assembler
from vla_prune_ros.nodes.images import ImageError, decode_compressed_rgb, decode_rgb
from vla_prune_ros.nodes.messages import (
    NANOSECONDS,
    RELIABLE,
    SENSOR,
    MessageError,
    executed_from,
    joints_from,
    pose_from,
    to_ns,
)
from vla_prune_ros.nodes.streams import Streams
from vla_prune_ros.nodes.trigger import Executed, Tick, Trigger

STATES = ('joint_states', 'ee_pose')


class Inputs:
    """Subscribes on demand; calls `on_tick` for every observation that wants a chunk."""

    def __init__(
        self,
        node: Node,
        settings: Mapping[str, Any],
        on_tick: Callable[[Tick], None],
        on_executed: Callable[[int, Executed], None],
    ) -> None:
        self._node = node
        self._settings = settings
        self._on_tick = on_tick
        self._on_executed = on_executed
        self._cameras = tuple(settings['cameras'])
        self._assembler = Assembler(
            self._cameras,
            STATES,
            slop=round(settings['sync.slop'] * NANOSECONDS),
            state_slop=round(settings['sync.state_slop'] * NANOSECONDS),
        )
        self._trigger = Trigger(settings['trigger'])
        self.streams = Streams((*self._cameras, *STATES), settings['stream_timeout'])
        self._subscriptions: list = []

    def subscribe(self) -> None:
        """Start to listen."""
        self.streams.start(time.monotonic())
        compressed = self._settings['image_transport'] == 'compressed'
        kind, suffix = (CompressedImage, '/compressed') if compressed else (Image, '')
        decode = decode_compressed_rgb if compressed else decode_rgb
        for camera in self._cameras:
            self._listen(kind, f'{camera}/image_raw{suffix}', camera, decode)
        fingers = self._settings['finger_joints']
        self._listen(JointState, 'joint_states', 'joint_states', partial(_fingers, fingers))
        self._listen(PoseStamped, 'ee_pose', 'ee_pose', pose_from)
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

    def clear(self) -> None:
        """Forget what waits for its counterpart."""
        self._assembler.clear()
        self._trigger.clear()

    def add_executed(self, stamp: int, executed: Executed) -> None:
        """What led to the observation at `stamp`; in request mode this asks for a chunk."""
        self._pass_on(self._trigger.add_executed(stamp, executed))

    def watch(self) -> None:
        """Report streams that fell silent or came back. Call it by a wall clock."""
        gone, back = self.streams.changes(time.monotonic())
        for stream in gone:
            self._node.get_logger().warning(f'no message on {stream}')
        for stream in back:
            self._node.get_logger().info(f'{stream} is back')

    def counts(self) -> dict[str, int]:
        """Messages that came to nothing, by stream. May be called from another thread."""
        dropped, broken = dict(self._assembler.dropped), dict(self.streams.broken_count)
        counts = {f'dropped.{name}': n for name, n in dropped.items() if n}
        return counts | {f'broken.{name}': n for name, n in broken.items()}

    def _listen(
        self, kind: type, topic: str, stream: str, decode: Callable[[Any], np.ndarray]
    ) -> None:
        self._subscriptions.append(
            self._node.create_subscription(
                kind,
                topic,
                partial(self._take, stream, decode),
                SENSOR,
                # So that a replay can ask for reliable delivery.
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
        )

    def _take(self, stream: str, decode: Callable[[Any], np.ndarray], message: Any) -> None:
        try:
            sample = decode(message)
        except (ImageError, MessageError) as error:
            self._report(stream, error)
            return
        self.streams.received(stream, time.monotonic())
        for observation in self._assembler.add(stream, to_ns(message.header.stamp), sample):
            self._pass_on(self._trigger.add_observation(observation))

    def _executed(self, message: JointTrajectory) -> None:
        try:
            executed = executed_from(message)
        except MessageError as error:
            self._report('executed_actions', error)
            return
        self._on_executed(to_ns(message.header.stamp), executed)

    def _pass_on(self, tick: Tick | None) -> None:
        if tick is not None:
            self._on_tick(tick)

    def _report(self, stream: str, error: Exception) -> None:
        self.streams.broken(stream)
        self._node.get_logger().warning(
            f'{stream}: broken message: {error}', throttle_duration_sec=5.0
        )


def _fingers(names: list[str], message: JointState) -> np.ndarray:
    return joints_from(message, names)
