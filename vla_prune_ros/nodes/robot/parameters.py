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
from vla_prune_ros.execution.joints import JointLimits
from vla_prune_ros.execution.playing import EXECUTION_MODES, Execution
from vla_prune_ros.execution.semantics import UNITS
from vla_prune_ros.execution.supervisor import Rules
from vla_prune_ros.execution.targets import Pose, rotation_matrix
from vla_prune_ros.ros.parameters import ParameterError, Spec
from vla_prune_ros.sim.base import quaternion_to_axis_angle

OUTPUTS = ('pose', 'twist', 'joint_trajectory')
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
    Spec(
        'topics.command', '', "of the arm; '': arm/target_pose, arm/twist or arm/joint_trajectory"
    ),
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
    Spec('republish', True, 'publish the state as the policy reads it'),
    _idle('dry_run', True, 'do all but publish commands'),
    _idle('speed_scale', 0.1, 'factor of every motion, at any time', 0.01, 1.0),
    _idle(
        'anchor', 'auto',
        'output pose: from where a target counts; measured: soft controllers; command, the last '
        'one: stiff controllers; auto: measured', choices=('auto', 'measured', 'command'),
    ),
    _idle('gain.position', 0.0, 'part of a move that is commanded; 0: from the policy', 0.0, 1.0),
    _idle('gain.rotation', 0.0, 'part of a rotation; 0: from the policy', 0.0, 1.0),
    _idle(
        'limits.box', (0.0,) * 6,
        'output pose and twist, required: low and high x, y, z of the grip point (m)',
    ),
    _idle('limits.speed', 0.25, 'of the motion that is to be expected (m/s)', 0.001, 5.0),
    _idle('limits.turn', 1.0, 'of the rotation that is to be expected (rad/s)', 0.01, 10.0),
    _idle('limits.lead', 0.05, 'target ahead of the arm, anchor command (m)', 0.001, 1.0),
    _idle('limits.lead_turn', 0.3, 'target ahead of the arm, anchor command (rad)', 0.01, 3.0),
    Spec(
        'joints.names', ('',),
        'output joint_trajectory, required: joints of the robot as the policy calls them',
    ),
    Spec('joints.wire_names', ('',), "as the robot itself calls them; '': the same"),
    Spec(
        'joints.state_topics', ('',),
        "topic of the measured position of each joint, or one for all; '': topics.joint_states",
    ),
    Spec(
        'joints.topics', ('',),
        "topic of the controller of each joint, or one for all; '': topics.command",
    ),
    Spec(
        'joints.units', ('rad',),
        f'in which the policy must speak of each joint, of {", ".join(UNITS)}; or one for all',
    ),
    Spec('joints.scale', (1.0,), 'rad or m per unit of the policy, of each joint or of all'),
    Spec('joints.offset', (0.0,), "rad or m at the policy's 0, of each joint or of all"),
    _idle('joints.low', (0.0,), 'required: lowest position of each joint, or of all (rad or m)'),
    _idle('joints.high', (0.0,), 'required: highest position of each joint, or of all (rad or m)'),
    _idle('limits.joint_speed', (0.5,), 'of each joint, or of all (rad/s or m/s)'),
    _idle('limits.joint_lead', (0.2,), 'command ahead of the measured joint (rad or m)'),
    _idle(
        'limits.joint_jump', (0.3,),
        'refuse a plan that begins further from the measured joint (rad or m)',
    ),
    _idle('stop_time', 0.2, 'output joint_trajectory: time to come to rest (s)', 0.01, 5.0),
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
JOINT_LIMITS = (
    'joints.low', 'joints.high', 'limits.joint_speed', 'limits.joint_lead', 'limits.joint_jump'
)  # fmt: skip


@dataclass(frozen=True)
class RobotConfig:
    """All parameter values at one moment, checked together; a change makes a new one."""

    values: Mapping[str, Any]
    limits: Limits | JointLimits
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
        output, anchor = values['output'], values['anchor']
        if anchor == 'auto':
            anchor = 'velocity' if output == 'twist' else 'measured'
        elif output != 'pose':
            raise ParameterError(f'anchor: output {output} has none')
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
        by_joints = output == 'joint_trajectory'
        return cls(
            dict(values),
            _joint_limits(values) if by_joints else _limits(values),
            Rules(
                values['state_timeout'], values['hold_timeout'], values['release_time'],
                values['permit.timeout'], values['dry_run'], 'joints' if by_joints else 'pose',
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
    def joints(self) -> tuple[str, ...]:
        """Of output joint_trajectory; none of the others."""
        names = self['joints.names'] if self['output'] == 'joint_trajectory' else ()
        return tuple(name for name in names if name)

    @property
    def wire_names(self) -> tuple[str, ...]:
        """Of the joints on the robot's side."""
        given = self['joints.wire_names']
        return tuple(given) if any(given) else self.joints

    def per_joint(self, name: str) -> Any:
        """A parameter with one value for each joint, of which one may stand for all."""
        return per_joint(self.values, name, len(self.joints))

    @property
    def period(self) -> int:
        """Control period, ns."""
        return round(1e9 / self.values['control_rate'])


def _limits(values: Mapping[str, Any]) -> Limits:
    box = _numbers(values, 'limits.box', 6)
    return Limits(
        box[:3], box[3:], values['limits.speed'], values['limits.turn'],
        values['limits.lead'], values['limits.lead_turn'],
    )  # fmt: skip


def _joint_limits(values: Mapping[str, Any]) -> JointLimits:
    names = [name for name in values['joints.names'] if name]
    if not names or len(set(names)) != len(names):
        raise ParameterError(
            f'joints.names: {names}; the different names of the joints are needed'
        )
    for name, why in (
        ('gripper.type', 'none: grippers are joints'), ('servo', "'': it takes no trajectories")
    ):  # fmt: skip
        if values[name] not in ('none', ''):
            raise ParameterError(f'{name}: with output joint_trajectory only {why}')
    if unknown := set(per_joint(values, 'joints.units', len(names))) - set(UNITS):
        raise ParameterError(f'joints.units: {sorted(unknown)[0]!r} is not of {", ".join(UNITS)}')
    for name in ('joints.topics', 'joints.state_topics', 'joints.offset'):
        per_joint(values, name, len(names))
    if len(values['joints.wire_names']) != len(names) and values['joints.wire_names'] != ['']:
        raise ParameterError(f'joints.wire_names: {len(names)} names, one per joint, or none')
    if not np.all(per_joint(values, 'joints.scale', len(names))):
        raise ParameterError('joints.scale: 0 is no scale')
    return JointLimits(*(per_joint(values, name, len(names)) for name in JOINT_LIMITS))


def per_joint(values: Mapping[str, Any], name: str, count: int) -> Any:
    """Numbers [count], or texts; a single one stands for all."""
    given = values[name]
    if len(given) not in (1, count):
        raise ParameterError(
            f'{name}: {len(given)} values; one for each of {count} joints, or one'
        )
    given = list(given) * (count if len(given) == 1 else 1)
    if isinstance(given[0], str):
        return given
    numbers = np.array(given, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ParameterError(f'{name}: {given}; finite numbers are needed')
    return numbers


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
