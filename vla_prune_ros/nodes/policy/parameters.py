# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of the policy node: fields of the frozen object that they become.

The options of the pruning modes come from their registry, as `pruning.<mode>.<option>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from vla_prune_ros.execution.semantics import (
    ANCHORS,
    FRAMES,
    KINDS,
    PREFIX,
    ROTATIONS,
    UNITS,
    Semantics,
)
from vla_prune_ros.nodes.policy.instructions import clean_instruction
from vla_prune_ros.nodes.policy.joints import (
    STATES,
    Joints,
    StateLayout,
    check_names,
    joints_of,
    state_of,
)
from vla_prune_ros.nodes.policy.trigger import DEPTH, TRIGGERS
from vla_prune_ros.ros.parameters import ParameterError, Spec, parameter, specs_of

FIFO_DEPTH = DEPTH
PRUNING = Spec(
    'pruning.mode', 'none', 'visual-token pruning', read_only=False,
    choices=(  # the names of pruning.MODES, which needs torch
        'none', 'specprune', 'lightvla', 'vla_cache', 'efficient_vla', 'vla_pruner', 'scout',
        'fastv', 'random', 'grid',
    ),
)  # fmt: skip


@dataclass(frozen=True)
class PolicyConfig:
    """All parameter values at one moment; a change makes a new one.

    A parameter `a.b` is the attribute `a_b`. The options of the pruning mode in force are
    `pruning_options`.
    """

    pruning_mode: str
    pruning_options: Mapping[str, Any]
    # fmt: off
    checkpoint: str = parameter('', 'checkpoint directory; empty: the embedded tabletop policy')
    variant: str = parameter(
        '', 'what the files of the checkpoint do not say, such as libero_tokens or '
        'aloha,chunk_len=50; see doc/variants.md'
    )
    device: str = parameter(
        'auto', 'torch device, such as cpu or cuda:0; auto: a GPU if there is one'
    )
    dtype: str = parameter(
        'auto', 'weights; auto: bfloat16 on a GPU, float32 on a CPU',
        choices=('auto', 'float32', 'bfloat16', 'float16'),
    )
    quantization: str = parameter(
        'none', 'decoder weights in 8 or 4 bits; fp8 needs a recent GPU',
        choices=('none', 'int8', 'fp8', 'int4'),
    )
    runtime: str = parameter(
        'auto',
        'how the network is run; auto: CUDA graphs on a GPU, else plain; see doc/runtime.md',
        choices=('auto', 'plain', 'graphs', 'compile'),
    )
    image_pipeline: str = parameter(
        'exact', 'resize and crop of the images; exact: on the host; device: where the model is',
        choices=('exact', 'device'),
    )
    jpeg: bool = parameter(
        True, 'whether frames go through JPEG, as those of the published training data did'
    )
    unnorm_key: str = parameter(
        '', 'normalisation statistics to use; empty: the only set there is'
    )
    readout_start: int = parameter(
        0, 'first state given to the head, from the end; 0: as trained; LightVLA release: -56',
        -10_000, 0,
    )
    torch_threads: int = parameter(
        0, 'CPU threads of the model; 0: as OMP_NUM_THREADS says, or half of the cores', 0, 1024
    )
    autostart: bool = parameter(True, 'configure and activate at start-up')
    enabled: bool = parameter(
        True, 'whether chunks are published from the start; later: ~/set_enabled'
    )
    default_instruction: str = parameter('', 'instruction in force until one arrives')
    cameras: tuple[str, ...] = parameter(
        ('agentview', 'wrist'), 'topics CAMERA/image_raw, in the order of the training'
    )
    image_transport: str = parameter(
        'raw', 'raw: image_raw; compressed: image_raw/compressed',
        choices=('raw', 'compressed'),
    )
    finger_joints: tuple[str, ...] = parameter(
        ('finger_joint1', 'finger_joint2'), 'names in joint_states of the two gripper fingers (m)'
    )
    state_kind: str = parameter(
        'pose_fingers', 'robot state of the checkpoint: ee_pose and finger_joints, state.joints, '
        'or none', choices=tuple(STATES), name='state.kind',
    )
    state_joints: tuple[str, ...] = parameter(
        ('',), 'state.kind joints: names in joint_states; empty: action.joints',
        name='state.joints',
    )
    gripper_joints: tuple[str, ...] = parameter(
        ('',), 'joints that the checkpoint has as 0 closed to 1 open', name='gripper.joints'
    )
    gripper_state_closed: float = parameter(
        0.0, 'closed gripper.joints in joint_states (rad or m)', -1e3, 1e3,
        name='gripper.state_closed',
    )
    gripper_state_open: float = parameter(
        1.0, 'open gripper.joints in joint_states (rad or m)', -1e3, 1e3,
        name='gripper.state_open',
    )
    gripper_action_closed: float = parameter(
        0.0, 'closed gripper.joints in a chunk (rad or m)', -1e3, 1e3,
        name='gripper.action_closed',
    )
    gripper_action_open: float = parameter(
        1.0, 'open gripper.joints in a chunk (rad or m)', -1e3, 1e3,
        name='gripper.action_open',
    )
    input_reliability: str = parameter(
        'best_effort', 'QoS of the cameras and the state; reliable where no frame may be lost',
        choices=('best_effort', 'reliable'),
    )
    sync_slop: float = parameter(
        0.02, 'stamps of the cameras may differ by this (s); 0: not at all',
        0.0, 10.0, name='sync.slop',
    )
    sync_state_slop: float = parameter(
        0.02, 'state may be this far from the image (s); 0: same stamp',
        0.0, 10.0, name='sync.state_slop',
    )
    trigger: str = parameter(
        'observation',
        'what starts an inference; request: an executed_actions message, which asks for an '
        'observation not older than itself',
        choices=TRIGGERS,
    )
    queue: str = parameter(
        'latest', f'while busy keep the latest observation, or {FIFO_DEPTH} in order',
        choices=('latest', 'fifo'),
    )
    max_rate: float = parameter(
        0.0,
        'trigger observation: observations sooner than this allows after the last one that was '
        'inferred from only feed the history (Hz); 0: no limit', 0.0, 1000.0,
    )
    action_kind: str = parameter(
        'ee_delta', 'what the checkpoint commands', choices=KINDS, name='action.kind'
    )
    action_scale_position: float = parameter(
        0.05, 'size of a unit of a position delta (m)', 1e-4, 10.0, name='action.scale_position'
    )
    action_scale_rotation: float = parameter(
        0.5, 'size of a unit of a rotation delta (rad)', 1e-4, 10.0, name='action.scale_rotation'
    )
    action_rotation: str = parameter(
        'axis_angle', 'what the three rotation deltas are', choices=ROTATIONS,
        name='action.rotation',
    )
    action_frame: str = parameter(
        'base', 'frame of the deltas', choices=FRAMES, name='action.frame'
    )
    action_anchor: str = parameter(
        'measured', 'from where the deltas count', choices=ANCHORS, name='action.anchor'
    )
    action_step_position: float = parameter(
        0.0125, 'what the arm of the training data covered per unit and step (m)',
        1e-4, 10.0, name='action.step_position',
    )
    action_step_rotation: float = parameter(
        0.1, 'what the arm of the training data covered per unit and step (rad)',
        1e-4, 10.0, name='action.step_rotation',
    )
    action_gripper_open: float = parameter(
        1.0, 'last number that means open (raw)', -100.0, 100.0, name='action.gripper_open'
    )
    action_gripper_closed: float = parameter(
        0.0, 'last number that means closed (raw)', -100.0, 100.0, name='action.gripper_closed'
    )
    action_joints: tuple[str, ...] = parameter(
        ('',), 'kind joint_absolute: joint that each number is for', name='action.joints'
    )
    action_units: tuple[str, ...] = parameter(
        ('',), f'kind joint_absolute: unit of each number, of {", ".join(UNITS)}',
        name='action.units',
    )
    control_rate: float = parameter(
        20.0, 'rate at which the chunk is to be played (Hz)', 0.1, 1000.0
    )
    max_observation_age: float = parameter(
        0.5, 'older observations are dropped (s in node time); 0: no limit',
        0.0, 3600.0, read_only=False,
    )
    max_gap: float = parameter(
        5.0, 'a longer pause between observations resets the history (s)', 0.0, 3600.0
    )
    stream_timeout: float = parameter(
        2.0, 'a stream silent for longer is reported (s, wall clock)', 0.1, 3600.0,
        read_only=False,
    )
    inference_timeout: float = parameter(
        60.0, 'an inference that takes longer is reported and its chunk dropped (s, wall clock); '
        '0: no limit',
        0.0, 3600.0, read_only=False,
    )
    max_failures: int = parameter(
        3, 'failed inferences in a row that deactivate the node; 0: never',
        0, 1000, read_only=False,
    )
    governor_deadline: float = parameter(
        0.0, 'time that a chunk may take, from the complete observation to the chunk (s); the '
        'budget of the mode follows; 0: no fixed deadline',
        0.0, 60.0, name='governor.deadline', read_only=False,
    )
    governor_auto: bool = parameter(
        False, 'also hold the deadline that the actions left to play set, as the robot reports '
        'them', name='governor.auto', read_only=False,
    )
    governor_reserve: float = parameter(
        0.01, 'governor.auto: time kept for the way of observation and chunk (s)',
        0.0, 10.0, name='governor.reserve', read_only=False,
    )
    governor_floor: float = parameter(
        0.1875, 'smallest share of the visual tokens, whatever the deadline',
        0.0, 1.0, name='governor.floor', read_only=False,
    )
    governor_floor_fine: float = parameter(
        0.25, 'smallest share in fine motion: deltas that are slow, and not upwards',
        0.0, 1.0, name='governor.floor_fine', read_only=False,
    )
    audit_enabled: bool = parameter(
        False, 'run observations dense, too, in idle time, and publish what pruning changed',
        name='audit.enabled', read_only=False,
    )
    audit_threshold: float = parameter(
        0.0, 'smoothed deviation (of normalised actions) above which more tokens are computed; '
        '0: it is only published',
        0.0, 2.0, name='audit.threshold', read_only=False,
    )
    audit_response: str = parameter(
        'class', 'above the threshold; class: one class of the budget more with every chunk; '
        'dense: all tokens until the deviation is below half of it',
        choices=('class', 'dense'), name='audit.response', read_only=False,
    )
    overlay_rate: float = parameter(
        5.0, 'at most so many pictures on ~/pruning_overlay (Hz)',
        0.1, 60.0, name='overlay.rate',
    )
    overlay_scale: int = parameter(
        1, 'magnification of the pictures on ~/pruning_overlay',
        1, 8, name='overlay.scale',
    )
    diagnostic_updater_period: float = parameter(
        1.0, 'time between two messages on /diagnostics (s)',
        0.05, 60.0, name='diagnostic_updater.period',
    )
    # fmt: on

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> PolicyConfig:
        """From parameter values by name, options of other modes included.

        Raises:
            ParameterError: values that do not go together.
        """
        _, options = pruning_choice(values)
        named = {name.replace('.', '_'): value for name, value in values.items()}
        named['pruning_options'] = MappingProxyType(options)
        config = cls(**{f.name: _frozen(named[f.name]) for f in fields(cls)})
        if not config.cameras or len(set(config.cameras)) != len(config.cameras):
            names = list(config.cameras)
            raise ParameterError(f'parameter cameras: {names} are not different names')
        try:
            check_names(config)
        except ValueError as error:
            raise ParameterError(f'parameter {error}') from error
        try:
            clean_instruction(config.default_instruction)
        except ValueError as error:
            raise ParameterError(f'parameter default_instruction: {error}') from error
        return config

    @property
    def action(self) -> Semantics:
        """What an action means."""
        names = [f.name for f in fields(Semantics)]
        return Semantics.from_values({PREFIX + n: getattr(self, f'action_{n}') for n in names})

    @property
    def state(self) -> StateLayout:
        """What the robot state is made of."""
        return state_of(self)

    @property
    def action_joint_positions(self) -> Joints:
        """The numbers of an action, for `Joints.of_robot`."""
        return joints_of(self, 'action', self.action.joints)

    @property
    def governed(self) -> bool:
        """Whether the budget follows a deadline."""
        return bool(self.governor_deadline) or self.governor_auto

    @property
    def watched(self) -> bool:
        """Whether the budget follows the audit."""
        return self.audit_enabled and bool(self.audit_threshold)

    @property
    def budgeting(self) -> tuple[Any, ...]:
        """All that decides about the budget, but for the mode."""
        own = (f.name for f in fields(self) if f.name.startswith(('governor_', 'audit_')))
        return tuple(getattr(self, name) for name in own)

    @property
    def pruning(self) -> tuple[str, dict[str, Any]]:
        """Mode and its options."""
        return self.pruning_mode, dict(self.pruning_options)


POLICY = specs_of(PolicyConfig)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def pruning_choice(values: Mapping[str, Any], mode: str | None = None) -> tuple[str, dict]:
    """A pruning mode, by default the one chosen, and its options, from parameter values."""
    mode = mode or values['pruning.mode']
    prefix = f'pruning.{mode}.'
    options = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    return mode, options
