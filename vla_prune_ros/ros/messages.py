# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Plain values to ROS messages and back. Float64 stays float64, stamps stay nanoseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_prune_ros.ros.images import fill_rgb
from vla_prune_ros.ros.reading import ACTION_NAMES, NANOSECONDS, values_from
from vla_prune_ros.ros.reading import MessageError as MessageError
from vla_prune_ros.ros.reading import actions_from as actions_from
from vla_prune_ros.ros.reading import executed_from as executed_from
from vla_prune_ros.ros.reading import joints_from as joints_from
from vla_prune_ros.ros.reading import pose_from as pose_from
from vla_prune_ros.ros.reading import to_ns as to_ns
from vla_prune_ros.sim.base import Camera

DEPTH = 100  # messages that may wait for a busy reader; a queue holds no more than have come
# What a sensor says is soon old, and a hundred large pictures would fill the memory.
SENSOR = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE)
# For writers that wait until readers have what was sent (`delivery.py`): Fast DDS asks them for it
# with every message only while the queue is full, else every three seconds.
PROMPT = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
# For readers of episodes that may be busy for a while. The writer latches one message.
EPISODES = QoSProfile(
    depth=DEPTH,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


# Every event that an executor watches costs it time between two messages. Publishers whose QoS
# suits every reader have none.
NO_EVENTS = PublisherEventCallbacks(use_default_callbacks=False)


def to_time(nanoseconds: int) -> Time:
    """Time message of non-negative nanoseconds."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return Time(sec=seconds, nanosec=rest)


def to_duration(nanoseconds: int) -> Duration:
    """Duration message of nanoseconds."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return Duration(sec=seconds, nanosec=rest)


def to_seconds(nanoseconds: int) -> float:
    """Seconds as the policy gets them."""
    return nanoseconds / NANOSECONDS


# -- actions -----------------------------------------------------------------------------------
def chunk_message(
    actions: np.ndarray,
    stamp: int,
    period: int,
    meaning: str = '',
    names: Sequence[str] = ACTION_NAMES,
) -> JointTrajectory:
    """A chunk on the wire.

    Args:
        actions: float64 [n, k] in robot units.
        stamp: of the observation that the chunk answers, ns.
        period: control period, ns; action k belongs to stamp + k * period.
        meaning: `Semantics.signature` of the actions, for the frame_id.
        names: of the k numbers, `Semantics.names`.
    """
    message = _trajectory(actions, stamp, period, names, first=0)
    message.header.frame_id = meaning
    return message


def executed_message(
    actions: np.ndarray, stamp: int, period: int, names: Sequence[str] = ACTION_NAMES
) -> JointTrajectory:
    """What the robot did up to `stamp`: the last action began one period before it.

    Args:
        actions: float64 [n, k], in the order of execution; n may be 0.
        stamp: of the observation that follows the actions, ns.
        period: control period, ns.
        names: of the k numbers.
    """
    return _trajectory(actions, stamp, period, names, first=-len(actions))


def _trajectory(
    actions: np.ndarray, stamp: int, period: int, names: Sequence[str], first: int
) -> JointTrajectory:
    message = JointTrajectory(joint_names=list(names))
    message.header.stamp = to_time(stamp)
    for k, action in enumerate(actions, start=first):
        message.points.append(
            JointTrajectoryPoint(
                positions=[float(v) for v in action], time_from_start=to_duration(k * period)
            )
        )
    return message


# -- state -------------------------------------------------------------------------------------
def pose_message(
    position: np.ndarray, quaternion: np.ndarray, stamp: int, frame: str
) -> PoseStamped:
    """Pose of position [3] (m) and quaternion xyzw [4] in `frame`."""
    message = PoseStamped()
    message.header.stamp = to_time(stamp)
    message.header.frame_id = frame
    point, orientation = message.pose.position, message.pose.orientation
    point.x, point.y, point.z = (float(v) for v in position)
    orientation.x, orientation.y, orientation.z, orientation.w = (float(v) for v in quaternion)
    return message


def joint_message(names: Sequence[str], positions: Iterable[float], stamp: int) -> JointState:
    """Joint positions (rad, m) by name."""
    message = JointState(name=list(names), position=[float(v) for v in positions])
    message.header.stamp = to_time(stamp)
    return message


# -- cameras -----------------------------------------------------------------------------------
def image_message(pixels: np.ndarray, stamp: int, frame: str) -> Image:
    """An rgb8 image of uint8 [H, W, 3]."""
    message = Image()
    message.header.stamp = to_time(stamp)
    message.header.frame_id = frame
    fill_rgb(message, pixels)
    return message


def camera_info_message(camera: Camera, stamp: int, frame: str) -> CameraInfo:
    """Intrinsics of an ideal pinhole camera; fx is negative for a mirrored one."""
    f, cx, cy = camera.focal_length, (camera.width - 1) / 2.0, (camera.height - 1) / 2.0
    fx = -f if camera.mirrored else f
    message = CameraInfo(height=camera.height, width=camera.width)
    message.header.stamp = to_time(stamp)
    message.header.frame_id = frame
    message.distortion_model = 'plumb_bob'
    message.d = [0.0] * 5
    message.k = [fx, 0.0, cx, 0.0, f, cy, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [fx, 0.0, cx, 0.0, 0.0, f, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message


# -- key and value -----------------------------------------------------------------------------
def values_message(
    name: str,
    values: Mapping[str, Any],
    stamp: int,
    *,
    summary: str = '',
    hardware_id: str = '',
    level: bytes = DiagnosticStatus.OK,
) -> DiagnosticArray:
    """One diagnostic status with `values` as text.

    Sequences become comma-separated; with "; " if a comma is in one of their texts.
    """
    status = DiagnosticStatus(level=level, name=name, message=summary, hardware_id=hardware_id)
    status.values = [KeyValue(key=str(k), value=_text(v)) for k, v in values.items()]
    message = DiagnosticArray(status=[status])
    message.header.stamp = to_time(stamp)
    return message


def requery_from(message: DiagnosticArray) -> int | None:
    """How many actions of its chunk an inference wants to be played before the next one; 0: all.

    Key `requery` of the statistics: a number, or true for "ask again at once". None without it.
    """
    value = values_from(message).get('requery', '').strip().lower()
    if value == 'true':
        return 1  # actions that were executed before this arrived stay
    return int(value) if value.isdigit() else None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return 'true' if value else 'false'
    if isinstance(value, float | np.floating):
        return repr(float(value))
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        texts = [_text(v) for v in value]
        return ('; ' if any(',' in text for text in texts) else ',').join(texts)
    return str(value)
