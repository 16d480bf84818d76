# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Plain values to ROS messages and back. Float64 stays float64, stamps stay nanoseconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.execution.semantics import DELTA_NAMES
from vla_prune_ros.ros.images import fill_rgb
from vla_prune_ros.sim.base import Camera, quaternion_to_axis_angle

ACTION_NAMES = DELTA_NAMES  # of the numbers of an action, unless a policy moves joints
NANOSECONDS = 1_000_000_000

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


class MessageError(ValueError):
    """A message whose content cannot be used; the text says why."""


def to_ns(stamp: Time | Duration) -> int:
    """Nanoseconds of a time or duration message."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


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


def actions_from(
    message: JointTrajectory, names: Sequence[str] | None = ACTION_NAMES
) -> np.ndarray:
    """Actions float64 [n, k] of a chunk or of an executed-actions message.

    `names` of the k numbers are those of the policy; None takes a message of any.

    Raises:
        MessageError: other joint names, rows of another width, values that are not finite, or
            times that do not increase.
    """
    found = list(message.joint_names)
    if not found or (names is not None and found != list(names)):
        raise MessageError(f'joint_names {found}; expected {list(names or ["a name"])}')
    if any(len(point.positions) != len(found) for point in message.points):
        raise MessageError(f'every point needs {len(found)} positions')
    times = [to_ns(point.time_from_start) for point in message.points]
    if any(b <= a for a, b in pairwise(times)):
        raise MessageError('time_from_start does not increase')
    rows = [point.positions for point in message.points]
    actions = np.array(rows, np.float64).reshape(-1, len(found))
    if not np.isfinite(actions).all():
        raise MessageError('an action is not finite')
    return actions


def executed_from(
    message: JointTrajectory, names: Sequence[str] | None = ACTION_NAMES
) -> Executed:
    """The inverse of `executed_message`; an action ends when the next begins.

    Raises:
        MessageError: as `actions_from`.
    """
    actions = actions_from(message, names)
    stamp = to_ns(message.header.stamp)
    starts = [stamp + to_ns(point.time_from_start) for point in message.points]
    return Executed(actions, (*starts[1:], stamp) if starts else ())


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


def pose_from(message: PoseStamped) -> np.ndarray:
    """End-effector position (m) and axis-angle (rad), float64 [6], as robosuite has them.

    Raises:
        MessageError: a value is not finite or the quaternion is not of unit length.
    """
    p, q = message.pose.position, message.pose.orientation
    quaternion = np.array([q.x, q.y, q.z, q.w])
    position = np.array([p.x, p.y, p.z])
    if not (np.isfinite(quaternion).all() and np.isfinite(position).all()):
        raise MessageError('a value of the pose is not finite')
    if abs(math.sqrt(float(quaternion @ quaternion)) - 1.0) > 1e-3:
        raise MessageError(f'orientation {quaternion.tolist()} is not a unit quaternion')
    return np.concatenate([position, quaternion_to_axis_angle(quaternion)])


def joint_message(names: Sequence[str], positions: Iterable[float], stamp: int) -> JointState:
    """Joint positions (rad, m) by name."""
    message = JointState(name=list(names), position=[float(v) for v in positions])
    message.header.stamp = to_time(stamp)
    return message


def joints_from(message: JointState, names: Sequence[str]) -> np.ndarray:
    """Positions float64 of the joints called `names`, in that order.

    Raises:
        MessageError: a joint is missing, names and positions differ in length, or a position is
            not finite.
    """
    if len(message.name) != len(message.position):
        raise MessageError(f'{len(message.name)} names, {len(message.position)} positions')
    index = {name: i for i, name in enumerate(message.name)}
    missing = [name for name in names if name not in index]
    if missing:
        raise MessageError(f'no joint {", ".join(missing)}; there are {list(message.name)}')
    positions = np.array([message.position[index[name]] for name in names], np.float64)
    if not np.isfinite(positions).all():
        raise MessageError('a joint position is not finite')
    return positions


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


def values_from(message: DiagnosticArray) -> dict[str, str]:
    """Keys and values of the first status."""
    return {pair.key: pair.value for pair in message.status[0].values} if message.status else {}


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
