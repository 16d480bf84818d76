# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Robots to test on. A backend is imported only when it is asked for."""

from __future__ import annotations

from vla_prune_ros.sim.base import (
    Camera,
    SimObservation,
    SimulatedRobot,
    Task,
    quaternion_to_axis_angle,
    to_env_action,
    to_policy_gripper,
)

BACKENDS = ('tabletop',)

__all__ = [
    'BACKENDS',
    'Camera',
    'SimObservation',
    'SimulatedRobot',
    'Task',
    'make_robot',
    'quaternion_to_axis_angle',
    'to_env_action',
    'to_policy_gripper',
]


def make_robot(backend: str = 'tabletop', **options) -> SimulatedRobot:
    """A simulated robot by backend name; ValueError lists the valid names."""
    if backend == 'tabletop':
        from vla_prune_ros.sim.tabletop import TabletopRobot

        return TabletopRobot(**options)
    raise ValueError(f'unknown simulation backend {backend!r}; valid: {", ".join(BACKENDS)}')
