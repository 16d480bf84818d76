# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The axes by name, and how a shift is written: `AXIS:LEVEL[,AXIS:LEVEL]`."""

from __future__ import annotations

from vla_prune_ros.sim.shifts.base import MAX_LEVEL, Shift
from vla_prune_ros.sim.shifts.changes import Instruction, Jump, Plate, Push, Slide, Swap
from vla_prune_ros.sim.shifts.pictures import Blur, Delay, Freeze, Jpeg, Noise, Occlude
from vla_prune_ros.sim.shifts.scenery import (
    Bright,
    CameraPose,
    Dark,
    Distractors,
    Layout,
    Start,
    Texture,
)
from vla_prune_ros.sim.shifts.words import Language

# In the order in which they act, whatever the order in which they are named.
AXES: dict[str, type[Shift]] = {
    shift.axis: shift
    for shift in (
        Layout, Start, CameraPose, Dark, Bright, Texture, Distractors, Language,
        Jump, Slide, Push, Plate, Swap, Instruction,
        Delay, Freeze, Blur, Noise, Jpeg, Occlude,
    )
}  # fmt: skip
Plan = tuple[tuple[str, int], ...]


def parse_shift(text: str) -> Plan:
    """(axis, level) of every axis that is shifted, in the order in which they act.

    Args:
        text: `AXIS:LEVEL[,AXIS:LEVEL]`; '' and 'none' for no shift. Level 0 is no shift either.

    Raises:
        ValueError: not of this form, unknown axis or level, or an axis given twice.
    """
    levels: dict[str, int] = {}
    for part in text.split(',') if text not in ('', 'none') else ():
        axis, _, level = part.strip().partition(':')
        if axis not in AXES:
            raise ValueError(f'shift {text!r}: unknown axis {axis!r}; valid: {", ".join(AXES)}')
        if level not in map(str, range(MAX_LEVEL + 1)):
            raise ValueError(
                f'shift {text!r}: {axis} needs a level from 0 to {MAX_LEVEL}, such as {axis}:3'
            )
        if axis in levels:
            raise ValueError(f'shift {text!r}: {axis} is given twice')
        levels[axis] = int(level)
    return tuple((axis, levels[axis]) for axis in AXES if levels.get(axis))


def shift_text(plan: Plan) -> str:
    """How a shift is written; '' for none. Equal for equal shifts."""
    return ','.join(f'{axis}:{level}' for axis, level in plan)


def check_backend(plan: Plan, backend: str) -> None:
    """Refuse axes that a backend's robot cannot have.

    Raises:
        ValueError: names the axis and those that apply.
    """
    for axis, _ in plan:
        if backend not in AXES[axis].backends:
            valid = ', '.join(name for name, shift in AXES.items() if backend in shift.backends)
            raise ValueError(f'shift axis {axis!r} does not apply to {backend}; valid: {valid}')
