# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of the robot bridge, and the frozen object that they become.

What moves the arm changes only in state idle, but for `speed_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_prune_ros.execution.commands import Limits, Tool
from vla_prune_ros.execution.playing import EXECUTION_MODES, Execution
from vla_prune_ros.execution.supervisor import Rules
from vla_prune_ros.execution.targets import Pose, rotation_matrix
from vla_prune_ros.ros.parameters import ParameterError, Spec
from vla_prune_ros.sim.base import quaternion_to_axis_angle

OUTPUTS = ('pose', 'twist')
GRIPPERS = (
    'none', 'float_array', 'joint_state', 'joint_trajectory', 'gripper_command', 'parallel_gripper'
)  # fmt: skip
STATES = ('topic', 'tf')


def _idle(
    name: str,
    default: Any,
    description: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Spec:
    """A parameter that may change while the bridge is idle."""
    return Spec(name, default, description, minimum, maximum, choices, read_only=False)


ROBOT = (
    Spec('output', 'pose', 'what the arm is commanded by', choices=OUTPUTS),
    Spec('topics.pose', 'arm/pose', 'measured pose, geometry_msgs/PoseStamped'),
    Spec('topics.joint_states', 'arm/joint_states', 'of the arm, perhaps with the gripper'),
    Spec('topics.gripper_joint_states', 'gripper/joint_states', 'of the gripper'),
    Spec('topics.policy_pose', 'ee_pose', 'where the policy reads the pose'),
    Spec('topics.policy_joint_states', 'joint_states', 'where the policy reads the fingers'),
    Spec('topics.command', '', "of the arm; '': arm/target_pose or arm/twist"),
    Spec('topics.gripper', 'gripper/command', 'commands, for a gripper that has no action'),
    Spec('topics.gripper_action', 'gripper/gripper_cmd', 'of a gripper that has one'),
    Spec('topics.permit', 'permit', 'std_msgs/Bool'),
    Spec('pose_source', 'topic', 'where the measured pose comes from', choices=STATES),
    Spec('autostart', True, 'configure and activate at start-up; never enables'),
    Spec('control_rate', 20.0, 'rate of the actions, as in training (Hz)', 0.1, 1000.0),
    Spec('command_rate', 100.0, 'rate of the commands (Hz)', 1.0, 1000.0),
    Spec('frames.base', '', "frame of commands and measured pose; '': as it comes"),
    Spec('frames.ee', '', "pose_source tf: frame of the policy's grip point"),
    Spec(
        'frames.tool', (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        "controller's moving point seen from the grip point: x, y, z (m), quaternion xyzw",
    ),
    Spec(
        'frames.pose_offset', (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        'grip point of the policy seen from the measured pose: x, y, z (m), quaternion xyzw',
    ),
    Spec('republish', True, 'publish pose and fingers as the policy reads them'),
    _idle('dry_run', True, 'do all but publish commands'),
    _idle('speed_scale', 0.1, 'factor of every motion, at any time', 0.01, 1.0),
    _idle(
        'anchor', 'auto',
        'output pose: from where a target counts; measured: soft controllers; command, the last '
        'one: stiff controllers; auto: measured', choices=('auto', 'measured', 'command'),
    ),
    _idle('gain.position', 0.0, 'part of a move that is commanded; 0: from the policy', 0.0, 1.0),
    _idle('gain.rotation', 0.0, 'part of a rotation; 0: from the policy', 0.0, 1.0),
    _idle('limits.box', (0.0,) * 6, 'required: low and high x, y, z of the grip point (m)'),
    _idle('limits.speed', 0.25, 'of the motion that is to be expected (m/s)', 0.001, 5.0),
    _idle('limits.turn', 1.0, 'of the rotation that is to be expected (rad/s)', 0.01, 10.0),
    _idle('limits.lead', 0.05, 'target ahead of the arm, anchor command (m)', 0.001, 1.0),
    _idle('limits.lead_turn', 0.3, 'target ahead of the arm, anchor command (rad)', 0.01, 3.0),
    _idle('execution.mode', 'open_loop', 'how chunks are played', choices=EXECUTION_MODES),
    _idle('execution.horizon', 0, 'actions of a chunk to play; 0: half of it', 0, 1000),
    _idle('execution.prefetch', 0, 'ask so many actions early; 0: as measured', 0, 1000),
    _idle('request.freshness', 0.05, 'age of a picture that will do for a request (s)', 0.0, 10.0),
    _idle('chunk_timeout', 1.0, 'without an answer ask again (s)', 0.05, 60.0),
    _idle('latency', 0.0, 'artificial delay of every chunk, for experiments (s)', 0.0, 10.0),
    _idle('state_timeout', 0.1, 'hold without newer pose or joint states (s)', 0.01, 10.0),
    _idle('hold_timeout', 10.0, 'stop after holding still for so long (s)', 0.1, 3600.0),
    _idle('release_time', 0.3, 'hold for so long before commands end (s)', 0.0, 10.0),
    _idle('stall_time', 2.0, 'stop if the arm does not follow (s); 0: never', 0.0, 60.0),
    Spec('permit.required', False, 'move only while permit (std_msgs/Bool) is true'),
    _idle('permit.timeout', 0.0, 'a permit that is older does not count (s); 0: any', 0.0, 60.0),
    Spec('follow_episodes', '', "topic of a simulated robot's episodes, between which to hold"),
    Spec('servo', '', 'name of a MoveIt Servo node to switch on and to watch; needs moveit_msgs'),
    Spec('action.scale_position', 0.0, "refuse a policy of another scale (m); 0: take its own",
         0.0, 10.0),
    Spec('action.scale_rotation', 0.0, "refuse a policy of another scale (rad); 0: take its own",
         0.0, 10.0),
    Spec('action.rotation', '', "refuse a policy of another convention; '': take its own",
         choices=('', 'axis_angle', 'rpy')),
    Spec('gripper.type', 'none', 'how the gripper is commanded', choices=GRIPPERS),
    Spec('gripper.joint', 'gripper_joint', 'name in a joint_trajectory or joint_state'),
    Spec('gripper.open', 0.04, 'position of the joint that is open (m or rad)', -10.0, 10.0),
    Spec('gripper.closed', 0.0, 'position of the joint that is closed (m or rad)', -10.0, 10.0),
    Spec('gripper.max_effort', 20.0, 'of the actions (N or N m)', 0.0, 1000.0),
    Spec('fingers.joints', ('finger_joint1', 'finger_joint2'), 'one or two joints of the gripper'),
    Spec('fingers.open', (0.04, -0.04), 'their open positions (m or rad)'),
    Spec('fingers.closed', (0.0, 0.0), 'their closed positions (m or rad)'),
    Spec('fingers.trained_joints', ('finger_joint1', 'finger_joint2'), 'names for the policy'),
    Spec('fingers.trained_open', (0.04, -0.04), 'open positions in training (m)'),
    Spec('fingers.trained_closed', (0.0, 0.0), 'closed positions in training (m)'),
    Spec('diagnostic_updater.period', 1.0, 'time between two messages on /diagnostics (s)',
         0.05, 60.0),
)  # fmt: skip
ANY_TIME = ('speed_scale',)


@dataclass(frozen=True)
class RobotConfig:
    """All parameter values at one moment, checked together; a change makes a new one."""

    values: Mapping[str, Any]
    limits: Limits
    rules: Rules
    execution: Execution
    tool: Tool
    pose_offset: Tool
    anchor: str

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> RobotConfig:
        """From parameter values by name.

        Raises:
            ParameterError: values that do not go together; the text names the parameter.
        """
        box = _numbers(values, 'limits.box', 6)
        anchor = values['anchor']
        if anchor == 'auto':
            anchor = 'velocity' if values['output'] == 'twist' else 'measured'
        elif values['output'] == 'twist':
            raise ParameterError('anchor: output twist has none')
        if values['command_rate'] < values['control_rate']:
            raise ParameterError('command_rate: less than control_rate')
        n = len(values['fingers.joints'])
        if n not in (1, 2):
            raise ParameterError(f'fingers.joints: {n} names; one or two')
        for name, count in (('fingers.open', n), ('fingers.closed', n)):
            _numbers(values, name, count)
        for name in ('fingers.trained_open', 'fingers.trained_closed'):
            _numbers(values, name, len(values['fingers.trained_joints']))
        if not np.all(_numbers(values, 'fingers.open', n) != values['fingers.closed']):
            raise ParameterError('fingers.open: the same as fingers.closed')
        if values['pose_source'] == 'tf' and not (values['frames.base'] and values['frames.ee']):
            raise ParameterError('frames.base, frames.ee: pose_source tf needs both')
        return cls(
            dict(values),
            Limits(
                box[:3], box[3:], values['limits.speed'], values['limits.turn'],
                values['limits.lead'], values['limits.lead_turn'],
            ),
            Rules(
                values['state_timeout'], values['hold_timeout'], values['release_time'],
                values['permit.timeout'], values['dry_run'],
            ),
            Execution(
                values['execution.mode'], values['execution.horizon'],
                values['execution.prefetch'],
            ),
            _offset(values, 'frames.tool'),
            _offset(values, 'frames.pose_offset'),
            anchor,
        )  # fmt: skip

    def __getitem__(self, name: str) -> Any:
        """A parameter's value."""
        return self.values[name]

    @property
    def period(self) -> int:
        """Control period, ns."""
        return round(1e9 / self.values['control_rate'])


def _offset(values: Mapping[str, Any], name: str) -> Tool:
    numbers = _numbers(values, name, 7)
    if abs(np.linalg.norm(numbers[3:]) - 1.0) > 1e-3:
        raise ParameterError(f'{name}: its quaternion is not of unit length')
    turn = rotation_matrix(quaternion_to_axis_angle(numbers[3:]))
    return Tool(Pose(numbers[:3], turn))


def _numbers(values: Mapping[str, Any], name: str, count: int) -> np.ndarray:
    numbers = np.array(values[name], dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ParameterError(f'{name}: {list(values[name])}; {count} finite numbers are needed')
    return numbers
