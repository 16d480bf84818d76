# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of the nodes: one table per node, from which everything else follows.

The tables need no ROS, so documentation and tests can read them; `declare` turns them into
descriptors with ranges, choices and units. The options of the pruning modes come from their
registry, as `pruning.<mode>.<option>`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_INT = 2**31 - 1


@dataclass(frozen=True)
class Spec:
    """One parameter. Its type is that of the default; a limit of None is no limit."""

    name: str
    default: bool | int | float | str | tuple[str, ...]
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = True

    def check(self, value: Any) -> None:
        """What a ROS range cannot say.

        Raises:
            ValueError: not one of the choices, or not a number; the text lists the choices.
        """
        if self.choices and value not in self.choices:
            raise ValueError(f'{self.name}: {value!r} is not one of {", ".join(self.choices)}')
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f'{self.name}: not a number')


POLICY = (
    Spec('checkpoint', '', 'checkpoint directory; empty: the embedded tabletop policy'),
    Spec('device', 'auto', 'torch device, such as cpu or cuda:0; auto: a GPU if there is one'),
    Spec(
        'dtype', 'auto', 'weights; auto: bfloat16 on a GPU, float32 on a CPU',
        choices=('auto', 'float32', 'bfloat16', 'float16'),
    ),
    Spec('unnorm_key', '', 'normalisation statistics to use; empty: the only set there is'),
    Spec(
        'readout_start', 0,
        'first state given to the head, from the end; 0: as trained; LightVLA release: -56',
        -10_000, 0,
    ),
    Spec('torch_threads', 0, 'CPU threads of the model; 0: as torch chooses', 0, 1024),
    Spec('autostart', True, 'configure and activate at start-up'),
    Spec('default_instruction', '', 'instruction in force until one arrives'),
    Spec('cameras', ('agentview', 'wrist'), 'topics CAMERA/image_raw, third-person view first'),
    Spec(
        'image_transport', 'raw', 'raw: image_raw; compressed: image_raw/compressed',
        choices=('raw', 'compressed'),
    ),
    Spec(
        'finger_joints', ('finger_joint1', 'finger_joint2'),
        'names in joint_states of the two gripper fingers',
    ),
    Spec('sync.slop', 0.02, 'stamps of the cameras may differ by this (s); 0: not at all', 0.0),
    Spec('sync.state_slop', 0.02, 'state may be this far from the image (s); 0: same stamp', 0.0),
    Spec(
        'trigger', 'observation',
        'what starts an inference; request: an executed_actions message of the same stamp',
        choices=('observation', 'request'),
    ),
    Spec(
        'queue', 'latest', 'while busy keep the latest observation, or all in order',
        choices=('latest', 'fifo'),
    ),
    Spec('control_rate', 20.0, 'rate at which the chunk is to be played (Hz)', 0.1, 1000.0),
    Spec(
        'max_observation_age', 0.5,
        'older observations are dropped (s in node time); 0: no limit', 0.0, read_only=False,
    ),
    Spec('max_gap', 5.0, 'a longer pause between observations resets the history (s)', 0.0),
    Spec('stream_timeout', 2.0, 'a stream silent for longer is reported (s, wall clock)', 0.1),
    Spec(
        'max_failures', 3, 'failed inferences in a row that deactivate the node; 0: never',
        0, 1000,
    ),
)  # fmt: skip

BRIDGE = (
    Spec('backend', 'tabletop', 'simulated robot'),
    Spec(
        'mode', 'lockstep',
        'lockstep: time stands still during inference; realtime: it runs with the wall clock',
        choices=('lockstep', 'realtime'),
    ),
    Spec('task', '', 'task name; empty: the first. From the next reset', read_only=False),
    Spec(
        'initial_state', 0, 'fixed initial state. From the next reset', 0, MAX_INT,
        read_only=False,
    ),
    Spec('episodes', -1, 'episodes to run at start-up; -1: without end, 0: wait', -1, MAX_INT),
    Spec(
        'schedule', 'sweep',
        'after an episode; sweep: next task, after the last the next initial state; fixed: again',
        choices=('sweep', 'fixed'),
    ),
    Spec(
        'max_steps', 0, 'step limit of an episode; 0: the limit of the task', 0, MAX_INT,
        read_only=False,
    ),
    Spec(
        'chunk_timeout', 2.0, 'without an answer the observation is sent again (s, wall clock)',
        0.05,
    ),
    Spec('execution.horizon', 0, 'actions of a chunk to play; 0: all', 0, 1000),
    Spec(
        'execution.prefetch', 0,
        'realtime: ask for a chunk when so many actions are left; 0: by the measured delay',
        0, 1000,
    ),
    Spec(
        'publish_every_step', False,
        'lockstep: publish also the observations at which no chunk is wanted', read_only=False,
    ),
    Spec('episode_gap', 10.0, 'jump of the clock between episodes (s)', 0.0, 3600.0),
    Spec('base_frame', 'world', 'frame of ee_pose and of the cameras'),
)  # fmt: skip


def pruning_specs() -> tuple[Spec, ...]:
    """The mode and the options of every registered pruning mode. Imports torch."""
    from vla_prune_ros.pruning import MODES

    specs = [
        Spec('pruning.mode', 'none', 'visual-token pruning', choices=tuple(MODES), read_only=False)
    ]
    for mode, method in MODES.items():
        specs += [
            Spec(
                f'pruning.{mode}.{option.name}', option.default, option.description,
                option.min, option.max, option.choices, read_only=False,
            )
            for option in method.options
        ]  # fmt: skip
    return tuple(specs)


def pruning_choice(values: Mapping[str, Any], mode: str | None = None) -> tuple[str, dict]:
    """A pruning mode, by default the one chosen, and its options, from parameter values."""
    mode = mode or values['pruning.mode']
    prefix = f'pruning.{mode}.'
    options = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    return mode, options


def declare(node: Any, specs: Iterable[Spec]) -> dict[str, Any]:
    """Declare parameters on a node; returns their values.

    Raises:
        ValueError: a value from the command line, a launch or a parameter file is not allowed.
    """
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    values = {}
    for spec in specs:
        default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
        try:
            parameter = node.declare_parameter(spec.name, default, _descriptor(spec))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise ValueError(f'parameter {spec.name}: {error}') from error
        spec.check(parameter.value)
        values[spec.name] = parameter.value
    return values


def undeclared(node: Any) -> list[str]:
    """Names given on the command line or in a file that the node does not know: misspelt ones."""
    given = getattr(node, '_parameter_overrides', {})  # rclpy has no public access to them
    return sorted(
        name
        for name in given
        if not node.has_parameter(name) and not name.startswith('qos_overrides.')
    )


def _descriptor(spec: Spec) -> Any:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(description=spec.description, read_only=spec.read_only)
    if spec.choices:
        descriptor.additional_constraints = f'one of {", ".join(spec.choices)}'
    limited = spec.minimum is not None or spec.maximum is not None
    if limited and isinstance(spec.default, float):
        low = -math.inf if spec.minimum is None else spec.minimum
        high = math.inf if spec.maximum is None else spec.maximum
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif limited:
        low = -MAX_INT if spec.minimum is None else int(spec.minimum)
        high = MAX_INT if spec.maximum is None else int(spec.maximum)
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return descriptor
