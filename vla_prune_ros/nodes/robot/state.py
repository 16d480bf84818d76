# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a robot as its drivers publish it, and as a policy wants it: joints."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState

from vla_prune_ros.execution.joints import Joints
from vla_prune_ros.execution.supervisor import JUMP_FACTOR, JUMP_SLACK
from vla_prune_ros.ros.messages import (
    NO_EVENTS,
    RELIABLE,
    SENSOR,
    MessageError,
    joint_message,
    to_ns,
)

KEEP = 5_000_000_000  # ns, how old a part of the joints may be beside a new one


class NewestJoints:
    """The newest position of every joint, whatever message it came in."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, float]] = {}

    def add(self, message: JointState, prefix: str = '') -> None:
        """Take what a message has, its names behind a prefix; MessageError if it is broken."""
        if len(message.name) != len(message.position):
            raise MessageError(f'{len(message.name)} names, {len(message.position)} positions')
        if not np.isfinite(message.position).all():
            raise MessageError('a joint position is not finite')
        stamp = to_ns(message.header.stamp)
        for name, position in zip(message.name, message.position, strict=True):
            self._newest[prefix + name] = stamp, float(position)

    def get(self, names: tuple[str, ...]) -> tuple[int, np.ndarray] | None:
        """Stamp of the oldest part and the positions; None if one is missing."""
        parts = [self._newest[name] for name in names if name in self._newest]
        if len(parts) < len(names):
            return None
        stamps = [stamp for stamp, _ in parts]
        if max(stamps) - min(stamps) > KEEP:
            return None
        return min(stamps), np.array([position for _, position in parts])


class Measured:
    """Subscribes to the state of a robot, keeps the newest, passes it on to the policy.

    Attributes:
        pose: where the arm is, in the form that its commands have; None before that is known.
        base: frame of pose and commands.
        fault: what was wrong with it, until `forgive`.
        broken: messages that could not be used, by stream.
    """

    streams: tuple[str, ...] = ()  # that must not fall silent

    def __init__(self, node: Node, config: Any, warn: Callable[[str, str], None]) -> None:
        self._node, self._config, self._warn = node, config, warn
        self.joints = NewestJoints()
        self.pose: Any = None
        self.base: str = config['frames.base']
        self.fault = ''
        self.broken: dict[str, int] = {}
        self._stamps: dict[str, int] = {}
        self._arrivals: dict[str, float] = {}
        self._passed_on = 0
        for topic in dict.fromkeys(self._joint_topics):
            self._listen(JointState, topic, partial(self._on_joints, topic))
        self._joints_out = None
        if config['republish']:
            self._joints_out = self._speak(JointState, 'joint_states')

    @property
    def openness(self) -> float:
        """Of the gripper as measured; NaN if it is not known."""
        return float('nan')

    def look(self) -> None:
        """Ask those sources that do not call us."""

    def age(self, stream: str, now: int) -> float:
        """Seconds since the newest pose or joints: by their stamps, and by their arrival.

        A driver that repeats its last message is as silent as one that is switched off. A stream
        that is not needed is never old.
        """
        if stream not in self.streams:
            return 0.0
        if stream not in self._arrivals:
            return inf
        by_arrival = time.monotonic() - self._arrivals[stream]
        if stream not in self._stamps:
            return by_arrival
        return max(by_arrival, abs(now - self._stamps[stream]) / 1e9)  # the future is no better

    def follow(self, config: Any) -> None:
        """Other parameters."""
        self._config = config

    def forgive(self) -> None:
        """Forget a fault, and where the arm was."""
        self.fault = ''
        self._forget_path()

    def restart(self) -> None:
        """The clock was set: stamps of before say nothing."""
        self._stamps.clear()
        self._passed_on = 0
        self._forget_path()

    def _forget_path(self) -> None:
        """Wherever the arm is next is no jump."""

    def _listen(self, kind: type, topic: str, take: Callable[[Any], None]) -> None:
        self._node.create_subscription(kind, topic, take, SENSOR)

    def _speak(self, kind: type, name: str) -> Any:
        """A publisher for the policy; RuntimeError if we would listen to it ourselves."""
        ours, drivers = self._config[f'topics.policy_{name}'], self._config[f'topics.{name}']
        resolve = self._node.resolve_topic_name
        if resolve(ours) == resolve(drivers):
            raise RuntimeError(
                f'topics.policy_{name} is {resolve(ours)}, where the driver publishes: choose '
                'another, or set republish to false'
            )
        return self._node.create_publisher(kind, ours, RELIABLE, event_callbacks=NO_EVENTS)

    def _on_joints(self, topic: str, message: JointState) -> None:
        try:
            self.joints.add(message, self._prefix(topic))
        except MessageError as error:
            self._refuse('joints', str(error))
            return
        found = self.joints.get(self._needed)
        if found is None or self._passed_on - KEEP < found[0] <= self._passed_on:
            return
        stamp, positions = found
        self._passed_on = stamp
        self._stamps['joints'], self._arrivals['joints'] = stamp, time.monotonic()
        self._take(stamp, positions)

    @property
    def _joint_topics(self) -> tuple[str, ...]:
        """Where joints come from."""
        return self._config['topics.joint_states'], self._config['topics.gripper_joint_states']

    def _prefix(self, topic: str) -> str:
        """Before the names of joints of a topic."""
        return ''

    @property
    def _needed(self) -> tuple[str, ...]:
        """Names of the joints that are listened to."""
        raise NotImplementedError

    def _take(self, stamp: int, positions: np.ndarray) -> None:
        """New positions of them."""
        raise NotImplementedError

    def _refuse(self, stream: str, text: str) -> None:
        self.broken[stream] = self.broken.get(stream, 0) + 1
        self._warn(stream, f'{stream}: message refused: {text}')


class JointsState(Measured):
    """Of arms that are commanded by the positions of their joints, grippers among them."""

    streams = ('joints',)

    def __init__(self, node: Node, config: Any, warn: Callable[[str, str], None]) -> None:
        self._topics = tuple(
            topic or config['topics.joint_states']
            for topic in config.per_joint('joints.state_topics')
        )
        super().__init__(node, config, warn)
        self._scale, self._offset = (
            config.per_joint(f'joints.{name}') for name in ('scale', 'offset')
        )
        self._before: tuple[int, np.ndarray] | None = None

    def _forget_path(self) -> None:
        self._before = None

    @property
    def _joint_topics(self) -> tuple[str, ...]:
        return self._topics

    def _prefix(self, topic: str) -> str:
        return f'{topic} '  # two arms may call their joints alike

    @property
    def _needed(self) -> tuple[str, ...]:
        pairs = zip(self._topics, self._config.wire_names, strict=True)
        return tuple(self._prefix(topic) + name for topic, name in pairs)

    def _take(self, stamp: int, positions: np.ndarray) -> None:
        if self._before is not None and 0 < (passed := stamp - self._before[0]) < KEEP:
            most = JUMP_FACTOR * self._config.limits.speed * passed / 1e9 + JUMP_SLACK
            moved = np.abs(positions - self._before[1])
            worst = int(np.argmax(moved / most))
            if moved[worst] > most[worst]:
                self.fault = self.fault or (
                    f'measured {self._config.joints[worst]} jumped by {moved[worst]:.3f} in '
                    f'{passed / 1e6:.0f} ms'
                )
        self._before, self.pose = (stamp, positions), Joints(positions)
        if self._joints_out is not None:
            wire = (positions - self._offset) / self._scale
            self._joints_out.publish(joint_message(self._config.joints, wire, stamp))
