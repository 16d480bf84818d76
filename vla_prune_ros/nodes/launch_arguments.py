# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of the launch files that set parameters: name of the argument -> parameter.

Text, type and choices are those of the parameter. An argument that is not given leaves the
parameter as the file of parameters, or else the node, has it. `ros2 launch` runs in ROS's Python,
so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vla_prune_ros.nodes.policy.parameters import POLICY, PRUNING
from vla_prune_ros.nodes.robot.parameters import ROBOT as ROBOT_BRIDGE
from vla_prune_ros.nodes.simulation.parameters import BRIDGE
from vla_prune_ros.ros.parameters import Spec

if TYPE_CHECKING:
    from launch.actions import DeclareLaunchArgument

    from launch import LaunchContext


def _choose(specs: Iterable[Spec], *names: str, **renamed: str) -> dict[str, Spec]:
    by_name = {spec.name: spec for spec in specs}
    wanted = dict(zip(names, names, strict=True)) | renamed
    return {argument: by_name[name] for argument, name in wanted.items()}


MODEL = _choose((*POLICY, PRUNING), 'checkpoint', 'variant', 'device', pruning='pruning.mode')
ROBOT = _choose(
    (*POLICY, Spec('use_sim_time', False, 'take the time from /clock')),
    'image_transport',
    'enabled',
    'use_sim_time',
    instruction_text='default_instruction',
)
ARM_POLICY = _choose((*POLICY, PRUNING), instruction_text='default_instruction')
ARM = _choose(ROBOT_BRIDGE, 'dry_run', 'speed_scale')
SIMULATION = _choose(
    BRIDGE,
    'backend',
    'suite',
    'assets',
    'task',
    'initial_state',
    'episodes',
    'mode',
    'latency',
    'shift',
    execution='execution.mode',
)


def declarations(table: Mapping[str, Spec]) -> list[DeclareLaunchArgument]:
    """The arguments of a table, for a launch description."""
    from launch.actions import DeclareLaunchArgument

    result = []
    for argument, spec in table.items():
        choices = ('true', 'false') if isinstance(spec.default, bool) else spec.choices
        result.append(
            DeclareLaunchArgument(
                argument,
                default_value='',
                description=f'{spec.description}. Not given: as in params_file',
                choices=['', *choices] if choices else None,
            )
        )
    return result


def given(context: LaunchContext, table: Mapping[str, Spec]) -> dict[str, Any]:
    """Parameters by the arguments of a table that were given.

    Raises:
        RuntimeError: a text is not a value of the parameter's type.
    """
    parameters = {}
    for argument, spec in table.items():
        text = context.launch_configurations[argument]
        if not text:
            continue
        kind = type(spec.default)
        try:
            parameters[spec.name] = text == 'true' if kind is bool else kind(text)
        except ValueError:
            raise RuntimeError(f'argument {argument}: {text!r} is not {kind.__name__}') from None
    return parameters
