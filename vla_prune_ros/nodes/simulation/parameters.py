# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of the simulated robot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_prune_ros.execution.playing import EXECUTION_MODES
from vla_prune_ros.ros.parameters import MAX_INT, ParameterError, Spec
from vla_prune_ros.sim import BACKENDS

BRIDGE = (
    Spec('backend', 'tabletop', 'simulated robot', choices=BACKENDS),
    Spec('suite', '', 'task suite, for backends that have several; empty: their first'),
    Spec(
        'assets', '',
        "libero: directory of its assets, or 'placeholder'; empty: where LIBERO looks for them",
    ),
    Spec(
        'interface', 'chunk',
        'what the robot takes; chunk: chunks of a policy; pose: targets on arm/target_pose; '
        'twist: velocities on arm/twist; these two as the driver of a real arm, see doc/robot.md',
        choices=('chunk', 'pose', 'twist'),
    ),
    Spec(
        'interface.stiffness', 150.0,
        'interface pose and twist: how hard the arm follows (1/s2); 150: as OSC_POSE, 3000: as a '
        'position controller', 10.0, 5000.0,
    ),
    Spec(
        'mode', 'lockstep',
        'lockstep: time stands still during inference; realtime: it runs with the wall clock. '
        'From the next episode',
        choices=('lockstep', 'realtime'), read_only=False,
    ),
    Spec(
        'task', '', 'task name or number; empty: the first. From the next reset',
        read_only=False, or_number=True,
    ),
    Spec(
        'initial_state', 0, 'fixed initial state. From the next reset', 0, MAX_INT,
        read_only=False,
    ),
    Spec('episodes', -1, 'episodes to run at start-up; -1: without end, 0: wait', -1, MAX_INT),
    Spec(
        'schedule', 'sweep',
        'after an episode; sweep: next task, after the last the next initial state; fixed: again',
        choices=('sweep', 'fixed'), read_only=False,
    ),
    Spec(
        'shift', '',
        'how the world differs from the suite, AXIS:LEVEL[,AXIS:LEVEL]; see doc/shifts.md; empty '
        'or none: not at all. From the next episode', read_only=False,
    ),
    Spec(
        'shift.seed', 0, 'what a shift draws from. From the next episode', 0, MAX_INT,
        read_only=False,
    ),
    Spec(
        'max_steps', 0, 'step limit of an episode; 0: the limit of the task', 0, MAX_INT,
        read_only=False,
    ),
    Spec(
        'chunk_timeout', 2.0,
        'without an answer the observation is sent again (s, wall clock). From the next episode',
        0.05, read_only=False,
    ),
    Spec(
        'execution.mode', 'open_loop',
        'how chunks are played; open_loop: whole; receding: the first actions; blend: fade from '
        'the old chunk into the new one; ensemble: average of all predictions. '
        'From the next episode',
        choices=EXECUTION_MODES, read_only=False,
    ),
    Spec(
        'execution.horizon', 0,
        'receding and blend: actions of a chunk to play before the next one; 0: half of it. '
        'From the next episode',
        0, 1000, read_only=False,
    ),
    Spec(
        'execution.prefetch', 0,
        'realtime: ask for a chunk when so many actions are left; 0: by the measured delay. '
        'From the next episode',
        0, 1000, read_only=False,
    ),
    Spec(
        'latency', 0.0,
        'artificial latency of every chunk, for experiments (s, wall clock). '
        'From the next episode',
        0.0, 10.0, read_only=False,
    ),
    Spec(
        'publish_every_step', False,
        'lockstep: publish also the observations at which no chunk is wanted', read_only=False,
    ),
    Spec(
        'episode_gap', 10.0, 'jump of the clock between episodes (s). From the next episode',
        0.0, 3600.0, read_only=False,
    ),
    Spec(
        'publish_objects', False,
        'publish the true poses of things on objects (sensor_msgs/MultiDOFJointState), for '
        'scripted experts',
    ),
    Spec(
        'recorder', '',
        'interface chunk: name of a node that must hear cameras with their camera_info, state, '
        'executed_actions and action_chunk before the first episode begins; empty: none',
    ),
    Spec('base_frame', 'world', 'frame of ee_pose and of the cameras'),
)  # fmt: skip


def check_shift(shift: str, settings: Mapping[str, Any]) -> None:
    """Refuse a shift that this bridge cannot play.

    Raises:
        ParameterError: not a shift, or not for this backend or interface.
    """
    from vla_prune_ros.sim.shifts import check_backend, parse_shift

    try:
        plan = parse_shift(shift)
        check_backend(plan, settings['backend'])
    except ValueError as error:
        raise ParameterError(f'parameter shift: {error}') from error
    if plan and settings['interface'] != 'chunk':
        raise ParameterError(f'parameter shift: {shift!r} needs interface chunk')
