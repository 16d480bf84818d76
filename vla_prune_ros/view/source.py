# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages of a policy and its robot for a `Scene`: which topics there are and how they are read.

One reader for a live system and for a bag, so that both look alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros.images import ImageError, decode_compressed_rgb, decode_rgb
from vla_prune_ros.ros.messages import (
    MessageError,
    actions_from,
    joints_from,
    pose_from,
    to_ns,
    values_from,
)
from vla_prune_ros.view.scene import Drawing, Scene

POLICY = 'vla_policy'
STATE = {'ee_pose': PoseStamped, 'joint_states': JointState}
TALK = {
    'instruction': String,
    'action_chunk': JointTrajectory,
    f'{POLICY}/inference_stats': DiagnosticArray,
    f'{POLICY}/policy_info': DiagnosticArray,
    'sim_bridge/episode': DiagnosticArray,
    'robot_bridge/state': DiagnosticArray,
}
LATCHED = ('instruction', f'{POLICY}/policy_info', 'sim_bridge/episode', 'robot_bridge/state')


def topics(cameras: tuple[str, ...]) -> dict[str, type]:
    """Relative names and types of all that can be shown."""
    pictures: dict[str, type] = {f'{camera}/image_raw': Image for camera in cameras}
    pictures |= {f'{camera}/image_raw/compressed': CompressedImage for camera in cameras}
    return pictures | STATE | TALK


class Reader:
    """Gives messages to a scene; what cannot be read is counted in `broken`."""

    def __init__(self, scene: Scene, fingers: tuple[str, ...]) -> None:
        self.scene, self._fingers = scene, fingers
        self.broken = 0

    def read(self, name: str, message: Any) -> Iterator[Drawing]:
        """Drawings of the message that came on the topic `name`."""
        try:
            yield from self._read(name, message)
        except (ImageError, MessageError, ValueError, KeyError):
            self.broken += 1

    def _read(self, name: str, message: Any) -> Iterator[Drawing]:
        scene = self.scene
        if name == 'instruction':
            return scene.instruction(message.data)
        stamp = to_ns(message.header.stamp)
        camera, image, kind = name.partition('/image_raw')
        if image:
            decode = decode_compressed_rgb if kind else decode_rgb
            return scene.picture(camera, stamp, decode(message))
        if name == 'ee_pose':
            return scene.pose(stamp, pose_from(message)[:3])
        if name == 'joint_states':
            return scene.fingers(stamp, joints_from(message, self._fingers))
        if name == 'action_chunk':
            return scene.chunk(stamp, actions_from(message, None))
        values = values_from(message)
        if name.endswith('inference_stats'):
            return scene.statistics(stamp, values)
        if name.endswith('policy_info'):
            return scene.information(stamp, values)
        return scene.episode(stamp, values)
