# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces of MJCF that the placeholder assets are put together from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Vector = tuple[float, float, float]
Colour = tuple[float, float, float]
WOOD, STEEL = (0.55, 0.35, 0.2), (0.3, 0.3, 0.32)


def _numbers(values: Iterable[float]) -> str:
    return ' '.join(f'{v:.6g}' for v in values)


def geom(kind: str, size: Sequence[float], pos: Vector, rgb: Colour, yaw: float = 0.0) -> str:
    """One solid: a collision geom (group 0) and its visible twin (group 1)."""
    turn = f' quat="{_numbers((math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)))}"' if yaw else ''
    place = f'type="{kind}" size="{_numbers(size)}" pos="{_numbers(pos)}"{turn}'
    return (
        f'<geom {place} group="0" rgba="0.8 0.8 0.8 0" density="100" friction="1 0.02 0.001"'
        ' condim="4" solref="0.01 1"/>'
        f'<geom {place} group="1" rgba="{_numbers((*rgb, 1.0))}" contype="0" conaffinity="0"'
        ' mass="0"/>'
    )


def site(name: str, size: Sequence[float], pos: Vector) -> str:
    """A region of LIBERO: an invisible box."""
    return (
        f'<site name="{name}" type="box" size="{_numbers(size)}" pos="{_numbers(pos)}"'
        ' quat="1 0 0 0" rgba="0 0 0 0" group="0"/>'
    )


def ring(radius: float, low: float, high: float, wall: float, rgb: Colour, n: int = 16) -> str:
    """An upright tube of boxes between two heights; `radius` is the outer one."""
    middle = radius - wall / 2
    half = math.pi * radius / n
    height = (high - low) / 2
    return ''.join(
        geom(
            'box',
            (wall / 2, half, height),
            (middle * math.cos(a), middle * math.sin(a), low + height),
            rgb,
            yaw=a,
        )
        for a in (2 * math.pi * (k + 0.5) / n for k in range(n))
    )


def dish(radius: float, half_height: float, wall: float, rgb: Colour) -> str:
    """A round vessel, open above, centred at its middle."""
    floor = min(0.004, half_height)
    bottom = geom('cylinder', (radius - wall, floor / 2), (0, 0, -half_height + floor / 2), rgb)
    return bottom + ring(radius, -half_height, half_height, wall, rgb)


def tray(half: Vector, wall: float, rgb: Colour, centre: Vector = (0, 0, 0)) -> str:
    """A box open above; `half` are its outer half sizes."""
    (a, b, c), (x, y, z) = half, centre
    t = wall / 2
    return (
        geom('box', (a, b, t), (x, y, z - c + t), rgb)
        + geom('box', (t, b, c), (x - a + t, y, z), rgb)
        + geom('box', (t, b, c), (x + a - t, y, z), rgb)
        + geom('box', (a, t, c), (x, y - b + t, z), rgb)
        + geom('box', (a, t, c), (x, y + b - t, z), rgb)
    )


def body(name: str, content: str) -> str:
    """A body without joint."""
    return f'<body name="{name}">{content}</body>'


def joint(name: str, kind: str, axis: str, low: float, high: float, damping: float) -> str:
    """A limited joint."""
    return (
        f'<joint name="{name}" type="{kind}" axis="{axis}" limited="true"'
        f' range="{low} {high}" damping="{damping}"/>'
    )


def model(name: str, content: str, bottom: float, top: float, radius: float) -> str:
    """One object as LIBERO reads it; the three sites are for placing it at random."""
    marks = ''.join(
        f'<site name="{key}" pos="{_numbers(pos)}" size="0.001" rgba="0 0 0 0"/>'
        for key, pos in (
            ('bottom_site', (0, 0, bottom)),
            ('top_site', (0, 0, top)),
            ('horizontal_radius_site', (radius, radius, 0)),
        )
    )
    return (
        f'<mujoco model="{name}"><compiler angle="radian"/><worldbody><body>'
        f'<body name="object">{content}</body>{marks}</body></worldbody></mujoco>\n'
    )
