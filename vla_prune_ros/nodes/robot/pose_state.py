# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The pose of an arm, from a topic or from tf, and its fingers as in the training data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.time import Time

from vla_prune_ros.execution.supervisor import PoseWatch
from vla_prune_ros.execution.targets import Pose, rotation_matrix
from vla_prune_ros.nodes.robot.optional import needed
from vla_prune_ros.nodes.robot.state import KEEP, Measured
from vla_prune_ros.ros.messages import MessageError, joint_message, pose_from, pose_message, to_ns
from vla_prune_ros.sim.base import quaternion_from_matrix


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


class PoseState(Measured):
    """Of an arm that is commanded by poses or velocities: its grip point, and its fingers."""

    streams = ('pose', 'joints')

    def __init__(self, node: Node, config: Any, warn: Callable[[str, str], None]) -> None:
        self.fingers = FingerMap(config.values)
        super().__init__(node, config, warn)
        self._watch = PoseWatch(config.limits.speed)
        by_tf = config['pose_source'] == 'tf'
        self._tf = TfPose(node, self.base, config['frames.ee']) if by_tf else None
        self._pose_out = self._speak(PoseStamped, 'pose') if config['republish'] else None
        if not by_tf:
            self._listen(PoseStamped, config['topics.pose'], self._on_pose)

    @property
    def openness(self) -> float:
        """Of the gripper as measured; NaN if it is not known."""
        found = self.joints.get(self.fingers.joints)
        return float(np.mean(self.fingers.openness(found[1]))) if found else float('nan')

    def look(self) -> None:
        """Ask those sources that do not call us."""
        if self._tf is not None and (message := self._tf.newest()) is not None:
            self._on_pose(message)

    def follow(self, config: Any) -> None:
        """Another limit of the speed."""
        super().follow(config)
        self._watch = PoseWatch(config.limits.speed)

    def _forget_path(self) -> None:
        self._watch.forget()

    def _on_pose(self, message: PoseStamped) -> None:
        frame = message.header.frame_id
        if self.base and frame != self.base:
            self._refuse('pose', f'frame {frame!r} is not {self.base!r}')
            return
        try:
            vector = pose_from(message)
        except MessageError as error:
            self._refuse('pose', str(error))
            self.fault = self.fault or f'pose: {error}'
            return
        if not self._is_new('pose', message):
            return
        self.base = self.base or frame
        pose = self._config.pose_offset.pose(Pose(vector[:3], rotation_matrix(vector[3:])))
        fault = self._watch.check(self._stamps['pose'] / 1e9, pose.position)
        self.fault, self.pose = self.fault or fault, pose
        if self._pose_out is not None:
            if self._config.pose_offset.moves:
                message = pose_message_of(pose, self._stamps['pose'], frame)
            self._pose_out.publish(message)

    @property
    def _needed(self) -> tuple[str, ...]:
        return self.fingers.joints

    def _take(self, stamp: int, positions: np.ndarray) -> None:
        if self._joints_out is not None:
            fingers = self.fingers(positions)
            self._joints_out.publish(joint_message(self.fingers.names, fingers, stamp))

    def _is_new(self, stream: str, message: Any) -> bool:
        stamp = to_ns(message.header.stamp)
        last = self._stamps.get(stream, -1)
        if last - KEEP < stamp <= last:  # repeated or overtaken; long before: the clock was set
            return False
        self._stamps[stream], self._arrivals[stream] = stamp, time.monotonic()
        return True


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
