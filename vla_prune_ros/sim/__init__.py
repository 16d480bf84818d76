# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Robots to test on. A backend is imported only when it is asked for."""

from __future__ import annotations

from typing import Any

from vla_prune_ros.sim.base import (
    Camera,
    SimObservation,
    SimulatedRobot,
    SimulationError,
    Task,
    quaternion_from_matrix,
    quaternion_to_axis_angle,
    to_env_action,
    to_policy_gripper,
)

BACKENDS = ('tabletop', 'libero')

__all__ = [
    'BACKENDS',
    'Camera',
    'SimObservation',
    'SimulatedRobot',
    'SimulationError',
    'Task',
    'backend_of',
    'make_robot',
    'quaternion_from_matrix',
    'quaternion_to_axis_angle',
    'to_env_action',
    'to_policy_gripper',
]


def make_robot(backend: str = 'tabletop', **options: Any) -> SimulatedRobot:
    """A simulated robot.

    Args:
        backend: one of `BACKENDS`.
        options: arguments of the backend's robot; `suite` is one of all.

    Raises:
        ValueError: unknown backend or suite; the message lists the valid ones.
        RuntimeError: the backend is not installed; the message says how to.
    """
    if backend == 'tabletop':
        suite = options.pop('suite', 'tabletop')
        if suite != 'tabletop':
            raise ValueError(f"unknown suite {suite!r}; backend 'tabletop' has 'tabletop'")
        from vla_prune_ros.sim.tabletop import TabletopRobot

        return TabletopRobot(**options)
    if backend == 'libero':
        from vla_prune_ros.sim.libero import LiberoRobot

        return LiberoRobot(**options)
    raise ValueError(f'unknown simulation backend {backend!r}; valid: {", ".join(BACKENDS)}')


def backend_of(suite: str) -> str:
    """The backend that has a suite.

    Raises:
        ValueError: no backend has it; the message lists the suites.
    """
    from vla_prune_ros.sim.libero.suites import SUITES

    backends = {'tabletop': 'tabletop', **dict.fromkeys(SUITES, 'libero')}
    if suite not in backends:
        raise ValueError(f'unknown suite {suite!r}; valid: {", ".join(backends)}')
    return backends[suite]
