# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the numbers of an action mean. Declared by the policy, checked by whoever plays it.

A checkpoint does not say it, so it is a parameter of the policy node, described in `policy_info`
and, in short, in the frame_id of every chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import numpy as np

from vla_prune_ros.execution.checks import ACTION_HIGH, ACTION_LOW

# Names of the deltas on the wire. None is a joint of any robot, so that a joint trajectory
# controller which gets a chunk by a wrong remapping refuses it.
DELTA_NAMES = ('delta_x', 'delta_y', 'delta_z', 'delta_rx', 'delta_ry', 'delta_rz', 'gripper')
KINDS = ('ee_delta', 'joint_absolute')
ROTATIONS = ('axis_angle', 'rpy')
FRAMES = ('base', 'tool')
ANCHORS = ('measured', 'command')
UNITS = ('rad', 'deg', 'm', 'mm', 'percent', 'unit')
PREFIX = 'action.'


@dataclass(frozen=True)
class Semantics:
    """Meaning of one action. The defaults are those of LIBERO and of robosuite's OSC_POSE.

    Attributes:
        kind: ee_delta, six deltas of the end effector and the gripper; or joint_absolute, a
            position for each of `joints`, of which the rest up to the rotation means nothing.
        scale_position: m per unit, `scale_rotation`: rad per unit of a delta.
        rotation: axis_angle or rpy (turns about the fixed x, then y, then z axis).
        frame: base, the frame of the robot in which the pose is given; or tool.
        anchor: measured, a delta counts from where the arm is; command, from the last goal.
        step_position: m that the arm of the training data really covered per unit and step,
            `step_rotation`: rad. A soft arm covers a part of its offset.
        gripper_open, gripper_closed: values of the last number of an ee_delta.
        joints: of a joint_absolute, their names in the order of the numbers; `units`: of each.
    """

    kind: str = 'ee_delta'
    scale_position: float = 0.05
    scale_rotation: float = 0.5
    rotation: str = 'axis_angle'
    frame: str = 'base'
    anchor: str = 'measured'
    step_position: float = 0.0125
    step_rotation: float = 0.1
    gripper_open: float = 1.0
    gripper_closed: float = 0.0
    joints: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Semantics:
        """From keys `action.NAME`, as numbers or as text.

        Raises:
            ValueError: a key is missing or its value cannot be; the text names it.
        """
        found: dict[str, Any] = {}
        for field in fields(cls):
            key = PREFIX + field.name
            if key not in values:
                if field.default == ():
                    continue
                raise ValueError(f'{key} is not declared')
            value = values[key]
            if field.default == ():
                value = value.split(',') if isinstance(value, str) else value
                value = tuple(name.strip() for name in value if name.strip())
            elif field.type == 'float':
                try:
                    value = float(value)
                except (TypeError, ValueError):
                    raise ValueError(f'{key}: {value!r} is not a number') from None
            found[field.name] = value
        return cls(**found)

    def __post_init__(self) -> None:
        """ValueError for values that mean nothing."""
        choices = {
            'kind': KINDS, 'rotation': ROTATIONS, 'frame': FRAMES, 'anchor': ANCHORS
        }  # fmt: skip
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise ValueError(
                    f'{PREFIX}{name}: {getattr(self, name)!r} is not one of {", ".join(valid)}'
                )
        for name in ('scale_position', 'scale_rotation', 'step_position', 'step_rotation'):
            if not 0.0 < getattr(self, name) < 10.0:
                raise ValueError(f'{PREFIX}{name}: {getattr(self, name)!r} is not within 0..10')
        if not abs(self.gripper_open - self.gripper_closed) > 1e-6:
            raise ValueError(f'{PREFIX}gripper_open and gripper_closed are the same')
        joints = self.joints
        if (self.kind == 'joint_absolute') != bool(joints):
            raise ValueError(f'{PREFIX}joints: {list(joints)} does not go with kind {self.kind}')
        if len(set(joints)) != len(joints) or len(self.units) != len(joints):
            raise ValueError(
                f'{PREFIX}joints, {PREFIX}units: {len(joints)} different names with a unit each '
                f'are needed, not {list(joints)} and {list(self.units)}'
            )
        if unknown := [unit for unit in self.units if unit not in UNITS]:
            raise ValueError(f'{PREFIX}units: {unknown[0]!r} is not one of {", ".join(UNITS)}')

    def values(self) -> dict[str, Any]:
        """Keys `action.NAME`, for `policy_info`."""
        found = {PREFIX + f.name: getattr(self, f.name) for f in fields(self)}
        return {k: ','.join(v) if isinstance(v, tuple) else v for k, v in found.items()}

    @property
    def signature(self) -> str:
        """All of it in one word without spaces, for the frame_id of a chunk."""
        if self.joints:
            runs = [(unit, len(list(same))) for unit, same in groupby(self.units)]
            return f'{self.kind}/' + '+'.join(f'{n}{unit}' for unit, n in runs)
        return (
            f'{self.frame}/{self.kind}/{self.scale_position:g}m/{self.scale_rotation:g}rad/'
            f'{self.rotation}/{self.anchor}/grip{self.gripper_closed:g}..{self.gripper_open:g}'
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers of an action, on the wire."""
        return self.joints or DELTA_NAMES

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest action; joints have the limits of the robot, not of the policy."""
        if self.joints:
            return np.full(len(self.joints), -np.inf), np.full(len(self.joints), np.inf)
        return ACTION_LOW, ACTION_HIGH

    def openness(self, gripper: float) -> float:
        """The last number of an action as 1 for open and 0 for closed."""
        return (gripper - self.gripper_closed) / (self.gripper_open - self.gripper_closed)
