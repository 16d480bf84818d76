# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What messages say, as plain values. Works on anything with their fields: imports no ROS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.execution.semantics import DELTA_NAMES
from vla_prune_ros.sim.base import quaternion_to_axis_angle

ACTION_NAMES = DELTA_NAMES  # of the numbers of an action, unless a policy moves joints
NANOSECONDS = 1_000_000_000


class MessageError(ValueError):
    """A message whose content cannot be used; the text says why."""


def to_ns(stamp: Any) -> int:
    """Nanoseconds of a time or duration message."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def actions_from(message: Any, names: Sequence[str] | None = ACTION_NAMES) -> np.ndarray:
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


def executed_from(message: Any, names: Sequence[str] | None = ACTION_NAMES) -> Executed:
    """The inverse of `executed_message`; an action ends when the next begins.

    Raises:
        MessageError: as `actions_from`.
    """
    actions = actions_from(message, names)
    stamp = to_ns(message.header.stamp)
    starts = [stamp + to_ns(point.time_from_start) for point in message.points]
    return Executed(actions, (*starts[1:], stamp) if starts else ())


def pose_from(message: Any) -> np.ndarray:
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


def joints_from(message: Any, names: Sequence[str]) -> np.ndarray:
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


def values_from(message: Any) -> dict[str, str]:
    """Keys and values of the first status."""
    return {pair.key: pair.value for pair in message.status[0].values} if message.status else {}
