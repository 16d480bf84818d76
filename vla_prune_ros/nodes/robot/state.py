# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an arm and a gripper say of themselves, in the form that the policy was trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import JointState

from vla_prune_ros.execution.supervisor import PoseWatch
from vla_prune_ros.execution.targets import Pose, rotation_matrix
from vla_prune_ros.nodes.robot.optional import needed
from vla_prune_ros.ros.messages import (
    NO_EVENTS,
    RELIABLE,
    SENSOR,
    MessageError,
    joint_message,
    pose_from,
    pose_message,
    to_ns,
)
from vla_prune_ros.sim.base import quaternion_from_matrix

KEEP = 5_000_000_000  # ns, how old a part of the joints may be beside a new one


class FingerMap:
    """Positions of one or two driven fingers to those of the training data."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.joints = tuple(values['fingers.joints'])
        self.names = tuple(values['fingers.trained_joints'])
        self._open, self._closed = (
            np.array(values[f'fingers.{end}'], dtype=np.float64) for end in ('open', 'closed')
        )
        self._to_open, self._to_closed = (
            np.array(values[f'fingers.trained_{end}'], dtype=np.float64)
            for end in ('open', 'closed')
        )

    def openness(self, positions: np.ndarray) -> np.ndarray:
        """1 for open, 0 for closed, per finger."""
        return (positions - self._closed) / (self._open - self._closed)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Trained positions of driven ones; a single finger stands for all."""
        return self._to_closed + self.openness(positions) * (self._to_open - self._to_closed)


class Joints:
    """The newest position of every joint, whatever message it came in."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, float]] = {}

    def add(self, message: JointState) -> None:
        """Take what a message has; MessageError if it cannot be read."""
        if len(message.name) != len(message.position):
            raise MessageError(f'{len(message.name)} names, {len(message.position)} positions')
        if not np.isfinite(message.position).all():
            raise MessageError('a joint position is not finite')
        stamp = to_ns(message.header.stamp)
        for name, position in zip(message.name, message.position, strict=True):
            self._newest[name] = stamp, float(position)

    def get(self, names: tuple[str, ...]) -> tuple[int, np.ndarray] | None:
        """Stamp of the oldest part and the positions; None if one is missing."""
        parts = [self._newest[name] for name in names if name in self._newest]
        if len(parts) < len(names):
            return None
        stamps = [stamp for stamp, _ in parts]
        if max(stamps) - min(stamps) > KEEP:
            return None
        return min(stamps), np.array([position for _, position in parts])


class RobotState:
    """Subscribes to pose and joints, keeps the newest, passes them on to the policy.

    Attributes:
        pose: the measured one of the policy's grip point; None before the first.
        fault: what was wrong with a pose, until `forgive`.
        broken: messages that could not be used, by stream.
    """

    def __init__(self, node: Node, config: Any, warn: Callable[[str, str], None]) -> None:
        self._node, self._config, self._warn = node, config, warn
        self._base = config['frames.base']
        self.fingers, self.joints = FingerMap(config.values), Joints()
        self._watch = PoseWatch(config.limits.speed)
        self._tf = TfPose(node, self._base, config['frames.ee']) if self._by_tf else None
        self.pose: Pose | None = None
        self.fault = ''
        self.broken: dict[str, int] = {}
        self._stamps: dict[str, int] = {}
        self._arrivals: dict[str, float] = {}
        self._passed_on = 0
        self._pose_out = self._joints_out = None
        if not self._by_tf:
            self._listen(PoseStamped, config['topics.pose'], self._on_pose)
        for topic in {config['topics.joint_states'], config['topics.gripper_joint_states']}:
            self._listen(JointState, topic, self._on_joints)
        if config['republish']:
            self._pose_out = self._speak(PoseStamped, 'pose')
            self._joints_out = self._speak(JointState, 'joint_states')

    @property
    def _by_tf(self) -> bool:
        return self._config['pose_source'] == 'tf'

    @property
    def base(self) -> str:
        """Frame of pose and commands."""
        return self._base

    @property
    def openness(self) -> float:
        """Of the gripper as measured; NaN if it is not known."""
        found = self.joints.get(self.fingers.joints)
        return float(np.mean(self.fingers.openness(found[1]))) if found else float('nan')

    def look(self) -> None:
        """Ask those sources that do not call us."""
        if self._tf is not None and (message := self._tf.newest()) is not None:
            self._on_pose(message)

    def age(self, stream: str, now: int) -> float:
        """Seconds since the newest pose or joints: by their stamps, and by their arrival.

        A driver that repeats its last message is as silent as one that is switched off.
        """
        if stream not in self._arrivals:
            return inf
        by_arrival = time.monotonic() - self._arrivals[stream]
        if stream not in self._stamps:
            return by_arrival
        return max(by_arrival, abs(now - self._stamps[stream]) / 1e9)  # the future is no better

    def follow(self, config: Any) -> None:
        """Another limit of the speed."""
        self._watch = PoseWatch(config.limits.speed)

    def forgive(self) -> None:
        """Forget a fault, and where the arm was."""
        self.fault = ''
        self._watch.forget()

    def restart(self) -> None:
        """The clock was set: stamps of before say nothing."""
        self._stamps.clear()
        self._passed_on = 0
        self._watch.forget()

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

    def _on_pose(self, message: PoseStamped) -> None:
        frame = message.header.frame_id
        if self._base and frame != self._base:
            self._refuse('pose', f'frame {frame!r} is not {self._base!r}')
            return
        try:
            vector = pose_from(message)
        except MessageError as error:
            self._refuse('pose', str(error))
            self.fault = self.fault or f'pose: {error}'
            return
        if not self._is_new('pose', message):
            return
        if not self._base:
            self._base = frame
        pose = self._config.pose_offset.pose(Pose(vector[:3], rotation_matrix(vector[3:])))
        fault = self._watch.check(self._stamps['pose'] / 1e9, pose.position)
        self.fault, self.pose = self.fault or fault, pose
        if self._pose_out is not None:
            if self._config.pose_offset.moves:
                message = pose_message_of(pose, self._stamps['pose'], frame)
            self._pose_out.publish(message)

    def _on_joints(self, message: JointState) -> None:
        try:
            self.joints.add(message)
        except MessageError as error:
            self._refuse('joints', str(error))
            return
        found = self.joints.get(self.fingers.joints)
        if found is None or self._passed_on - KEEP < found[0] <= self._passed_on:
            return
        stamp, positions = found
        self._passed_on = stamp
        self._stamps['joints'], self._arrivals['joints'] = stamp, time.monotonic()
        if self._joints_out is not None:
            self._joints_out.publish(
                joint_message(self.fingers.names, self.fingers(positions), stamp)
            )

    def _is_new(self, stream: str, message: Any) -> bool:
        stamp = to_ns(message.header.stamp)
        last = self._stamps.get(stream, -1)
        if last - KEEP < stamp <= last:  # repeated or overtaken; long before: the clock was set
            return False
        self._stamps[stream], self._arrivals[stream] = stamp, time.monotonic()
        return True

    def _refuse(self, stream: str, text: str) -> None:
        self.broken[stream] = self.broken.get(stream, 0) + 1
        self._warn(stream, f'{stream}: message refused: {text}')


def pose_message_of(pose: Pose, stamp: int, frame: str) -> PoseStamped:
    """A pose on the wire."""
    return pose_message(pose.position, quaternion_from_matrix(pose.rotation), stamp, frame)


class TfPose:
    """The pose between two frames of tf. Needs tf2_ros, which has no wheel."""

    def __init__(self, node: Node, base: str, ee: str) -> None:
        tf2_ros = needed('tf2_ros', 'pose_source: tf')
        self._base, self._ee, self._error = base, ee, tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def newest(self) -> PoseStamped | None:
        """The newest pose; None if there is none."""
        try:
            found = self._buffer.lookup_transform(self._base, self._ee, Time())
        except self._error:
            return None
        shift, turn = found.transform.translation, found.transform.rotation
        return pose_message(
            np.array([shift.x, shift.y, shift.z]),
            np.array([turn.x, turn.y, turn.z, turn.w]),
            to_ns(found.header.stamp),
            self._base,
        )
