# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the robot state is made of, and joints of a robot as a checkpoint has them.

The policy of a bimanual arm has grippers as 0 closed to 1 open, for the state by the limits of the
follower's fingers and for the action by those of the leader's joint (openvla-oft,
`experiments/robot/aloha`); a robot has them in its own units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vla_prune_ros.nodes.policy.parameters import PolicyConfig

STATES = {  # kind -> streams that it comes from, in the order of the numbers
    'pose_fingers': ('ee_pose', 'joint_states'),
    'joints': ('joint_states',),
    'none': (),
}
POSE_NUMBERS = 6  # position, axis-angle


@dataclass(frozen=True)
class Joints:
    """Joints by name, some of them grippers.

    Attributes:
        names: in the order of the numbers.
        grippers: those that the checkpoint has as 0 closed to 1 open.
        closed: position of a gripper of the robot when it is closed, `open`: when it is open.
    """

    names: tuple[str, ...]
    grippers: tuple[str, ...] = ()
    closed: float = 0.0
    open: float = 1.0

    def of_policy(self, positions: np.ndarray) -> np.ndarray:
        """Positions of the robot [..., n] as the checkpoint has them."""
        return self._grippers(positions, 1.0 / (self.open - self.closed), self.closed, 0.0)

    def of_robot(self, positions: np.ndarray) -> np.ndarray:
        """The inverse of `of_policy`."""
        return self._grippers(positions, self.open - self.closed, 0.0, self.closed)

    def _grippers(
        self, positions: np.ndarray, factor: float, before: float, after: float
    ) -> np.ndarray:
        if not self.grippers or (self.closed, self.open) == (0.0, 1.0):
            return positions
        mask = np.array([name in self.grippers for name in self.names])
        return np.where(mask, (positions - before) * factor + after, positions)


@dataclass(frozen=True)
class StateLayout:
    """Which messages the robot state comes from, and the joints in them."""

    kind: str = 'pose_fingers'
    joints: Joints = Joints(('finger_joint1', 'finger_joint2'))

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams."""
        return STATES[self.kind]

    @property
    def size(self) -> int:
        """How many numbers it is."""
        poses = POSE_NUMBERS * ('ee_pose' in self.streams)
        return poses + len(self.joints.names) * ('joint_states' in self.streams)


def joints_of(config: PolicyConfig, what: str, names: tuple[str, ...]) -> Joints:
    """Joints of the `state` or of the `action`, with the grippers that the parameters name."""
    closed, opened = (getattr(config, f'gripper_{what}_{end}') for end in ('closed', 'open'))
    return Joints(names, _named(config.gripper_joints), closed, opened)


def state_of(config: PolicyConfig) -> StateLayout:
    """What the robot state is made of."""
    names = config.finger_joints
    if config.state_kind == 'joints':
        names = _named(config.state_joints) or config.action.joints
    return StateLayout(config.state_kind, joints_of(config, 'state', names))


def check_names(config: PolicyConfig) -> None:
    """Whether the names of joints go together.

    Raises:
        ValueError: they do not; the text begins with the parameter.
    """
    if len(config.finger_joints) != 2:
        raise ValueError(f'finger_joints: {list(config.finger_joints)} are not two names')
    state, action = config.state, config.action_joint_positions
    names = state.joints.names
    if state.kind == 'joints' and (not names or len({*names}) != len(names)):
        raise ValueError(
            f'state.joints: {list(names)} are not different names; state.kind joints needs them, '
            'here or as action.joints'
        )
    known = {*action.names, *(names if state.kind == 'joints' else ())}
    if strange := [name for name in action.grippers if name not in known]:
        raise ValueError(f'gripper.joints: {strange[0]!r} is not in action.joints or state.joints')
    for what, joints in (('state', state.joints), ('action', action)):
        if abs(joints.open - joints.closed) < 1e-9:
            raise ValueError(f'gripper.{what}_open is gripper.{what}_closed')


def _named(value: tuple[str, ...]) -> tuple[str, ...]:
    """A list without empty names: ROS has no empty list of texts."""
    return tuple(name for name in value if name)
