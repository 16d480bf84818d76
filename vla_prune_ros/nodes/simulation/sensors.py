# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the drivers of a real robot would publish, for a simulated one."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Transform, TransformStamped
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, JointState, MultiDOFJointState

from vla_prune_ros.ros.messages import (
    PROMPT,
    camera_info_message,
    image_message,
    joint_message,
    pose_message,
    to_time,
)
from vla_prune_ros.sim import SimObservation, SimulatedRobot


class Sensors:
    """Publishers of joint_states, ee_pose, CAMERA/image_raw, CAMERA/camera_info and /tf.

    Those of the cameras are made when the robot is known: see `prepare`. There is no tf where its
    message package is not installed, as with ROS 2 from wheels. With `objects` also what no robot
    knows, the true poses of things, for scripted experts.
    """

    def __init__(self, node: Node, base_frame: str, objects: bool = False) -> None:
        self._node, self._base = node, base_frame
        self._joints = node.create_publisher(JointState, 'joint_states', PROMPT)
        self._pose = node.create_publisher(PoseStamped, 'ee_pose', PROMPT)
        self._images: dict[str, Any] = {}
        self._infos: dict[str, Any] = {}
        self._objects = None
        if objects:
            self._objects = node.create_publisher(MultiDOFJointState, 'objects', PROMPT)
        self._tf = None
        if importlib.util.find_spec('tf2_msgs') is None:
            node.get_logger().info('tf2_msgs is not installed: no tf')
        else:
            from tf2_msgs.msg import TFMessage

            self._tf = node.create_publisher(TFMessage, '/tf', QoSProfile(depth=100))

    def prepare(self, robot: SimulatedRobot) -> None:
        """Make the publishers of the robot's cameras."""
        for camera in robot.cameras:
            if camera.name not in self._images:
                create = self._node.create_publisher
                self._images[camera.name] = create(Image, f'{camera.name}/image_raw', PROMPT)
                self._infos[camera.name] = create(CameraInfo, f'{camera.name}/camera_info', PROMPT)

    @property
    def state(self) -> tuple[Publisher, ...]:
        """Publishers of what a policy cannot do without."""
        return self._joints, self._pose

    @property
    def recorded(self) -> tuple[Publisher, ...]:
        """Publishers of all that belongs into a recording."""
        return *self.state, *self._images.values(), *self._infos.values()

    @property
    def all(self) -> tuple[Publisher, ...]:
        """All publishers but that of /tf."""
        return self.recorded if self._objects is None else (*self.recorded, self._objects)

    def publish(self, robot: SimulatedRobot, observation: SimObservation, stamp: int) -> None:
        """Publish everything for one instant."""
        self.publish_state(robot, observation, stamp)
        self.publish_images(robot, observation, stamp)

    def publish_state(
        self, robot: SimulatedRobot, observation: SimObservation, stamp: int
    ) -> None:
        """Publish joints and pose, and the objects if they are wanted."""
        positions = [*observation.joint_positions, *observation.finger_positions]
        self._joints.publish(joint_message(robot.joint_names, positions, stamp))
        self._pose.publish(
            pose_message(observation.ee_position, observation.ee_quaternion, stamp, self._base)
        )
        if self._objects is not None:
            self._objects.publish(objects_message(robot.objects(), stamp, self._base))

    def publish_images(
        self, robot: SimulatedRobot, observation: SimObservation, stamp: int
    ) -> None:
        """Publish the pictures and where they were taken."""
        for camera in robot.cameras:
            frame = _frame(camera.name)
            self._infos[camera.name].publish(camera_info_message(camera, stamp, frame))
            self._images[camera.name].publish(
                image_message(observation.images[camera.name], stamp, frame)
            )
        if self._tf is not None:
            from tf2_msgs.msg import TFMessage

            transforms = [
                _transform(robot.camera_pose(c.name), stamp, self._base, _frame(c.name))
                for c in robot.cameras
            ]
            self._tf.publish(TFMessage(transforms=transforms))


def objects_message(poses: dict[str, np.ndarray], stamp: int, frame: str) -> MultiDOFJointState:
    """Named poses [7] (position, quaternion xyzw) of one instant."""
    message = MultiDOFJointState(joint_names=list(poses))
    message.header.stamp = to_time(stamp)
    message.header.frame_id = frame
    message.transforms = [_fill(Transform(), pose[:3], pose[3:]) for pose in poses.values()]
    return message


def _frame(camera: str) -> str:
    return f'{camera}_optical_frame'


def _transform(
    pose: tuple[np.ndarray, np.ndarray], stamp: int, parent: str, child: str
) -> TransformStamped:
    position, quaternion = pose
    message = TransformStamped(child_frame_id=child)
    message.header.stamp = to_time(stamp)
    message.header.frame_id = parent
    _fill(message.transform, position, quaternion)
    return message


def _fill(transform: Transform, position: np.ndarray, quaternion: np.ndarray) -> Transform:
    shift, turn = transform.translation, transform.rotation
    shift.x, shift.y, shift.z = (float(v) for v in position)
    turn.x, turn.y, turn.z, turn.w = (float(v) for v in quaternion)
    return transform
