# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the robot bridge says of itself: in short, in diagnostics, and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from geometry_msgs.msg import PoseArray

from vla_prune_ros.execution.supervisor import HOLDING, STOPPED
from vla_prune_ros.nodes.robot.pilot import Pilot
from vla_prune_ros.nodes.robot.pose_state import PoseState, pose_message_of
from vla_prune_ros.ros.diagnostics import ERROR, WARN, Report
from vla_prune_ros.ros.messages import to_time

if TYPE_CHECKING:
    from vla_prune_ros.nodes.robot.robot_bridge import RobotBridge


class Reports:
    """Reads the parts of a bridge and describes them."""

    def __init__(self, node: RobotBridge) -> None:
        self._node = node

    @property
    def tasks(self) -> Mapping[str, Callable[[Report], None]]:
        """Diagnostic tasks by name."""
        return {'Bridge': self._bridge, 'Chunks': self._chunks, 'Arm': self._arm}

    def brief(self) -> dict[str, Any]:
        """The values of `~/state` beside state and reason."""
        node, pilot = self._node, self._node.pilot
        now = node.get_clock().now().nanoseconds
        playing = pilot.player.stamp
        return {
            'dry_run': node.config['dry_run'],
            'speed_scale': node.config['speed_scale'],
            'output': node.config['output'],
            'starved': pilot.starved,
            'actions_left': pilot.player.remaining,
            'chunk_age': '' if playing is None else round((now - playing) / 1e9, 3),
            'chunk_arrival_p50': _share(pilot.chunk_ages, 50),
            'late': (node.control.late_steps if node.control else 0),
            'refused': sum(node.gate.refused.values()) + sum(pilot.refused.values()),
            'tracking_error_p50': _share(pilot.errors, 50),
            'tracking_error_p95': _share(pilot.errors, 95),
            'jerk_within_p95': _share(pilot.jerks['within'], 95),
            'jerk_seam_p95': _share(pilot.jerks['seam'], 95),
            **{f'limited.{name}': n for name, n in pilot.counts.items()},
        }

    def _bridge(self, report: Report) -> None:
        node, supervisor = self._node, self._node.pilot.supervisor
        around = node.control and node.control.around
        if supervisor.state == STOPPED:
            report.raise_to(ERROR, f'stopped: {supervisor.reason}')
        elif supervisor.state == HOLDING:
            report.raise_to(WARN, f'holding: {supervisor.reason}')
        report.values |= {
            'state': supervisor.state,
            'reason': supervisor.reason,
            'dry run': node.config['dry_run'],
            'control steps that came late': (node.control.late_steps if node.control else 0),
            'other publishers of commands': ', '.join(around.rivals) if around else '',
            'readers of commands': around.listeners if around else 0,
            **{f'events: {kind}': n for kind, n in supervisor.events.items()},
        }

    def _chunks(self, report: Report) -> None:
        node, pilot = self._node, self._node.pilot
        if node.gate.misfit:
            report.raise_to(WARN, node.gate.misfit)
        sources = node.control.around.sources if node.control else ()
        if len(sources) > 1:
            report.raise_to(WARN, f'chunks come from {", ".join(sources)}')
        report.values |= {
            'published by': ', '.join(sources),
            'meaning': node.gate.semantics.signature if node.gate.semantics else '',
            'age on arrival p50 (s)': _share(pilot.chunk_ages, 50),
            'age on arrival p95 (s)': _share(pilot.chunk_ages, 95),
            'steps starved': pilot.starved,
            **{f'refused: {k}': n for k, n in {**node.gate.refused, **pilot.refused}.items()},
        }

    def _arm(self, report: Report) -> None:
        node, pilot = self._node, self._node.pilot
        if node.control is None:
            report.raise_to(WARN, 'not configured')
            return
        state = node.control.state
        now = node.get_clock().now().nanoseconds
        for stream in state.streams:
            age = state.age(stream, now)
            report.values[f'{stream}: age (s)'] = age
            if age > node.config['state_timeout']:
                report.raise_to(WARN, f'no new {stream}')
        if state.fault:
            report.raise_to(WARN, state.fault)
        ahead = float('nan')
        if pilot.command is not None and state.pose is not None:
            ahead = float(np.linalg.norm(pilot.command.pose.position - state.pose.position))
        report.values |= {
            'target ahead of the arm (m)': ahead,
            'tracking error p95 (m)': _share(pilot.errors, 95),
            'jerk within chunks p95 (m/s3)': _share(pilot.jerks['within'], 95),
            'jerk at seams p95 (m/s3)': _share(pilot.jerks['seam'], 95),
            'gripper wished': {True: 'open', False: 'closed', None: ''}[pilot.gripper.open],
            'gripper measured (1 open)': state.openness,
            **{f'limited by {name}': n for name, n in pilot.counts.items()},
            **{f'{stream}: broken': n for stream, n in state.broken.items()},
        }


def preview(pilot: Pilot, state: PoseState, now: int) -> PoseArray:
    """Where the rest of the chunk should lead the arm from where it is."""
    message, pose = PoseArray(), state.pose
    message.header.stamp, message.header.frame_id = to_time(now), state.base
    if pilot.commander is None or pose is None:
        return message
    s = pilot.commander.semantics
    scale = np.concatenate([np.full(3, s.step_position), np.full(3, s.step_rotation)])
    for action in pilot.player.rest:
        pose = pose.moved(np.clip(action[:6], -1.0, 1.0) * scale, 1.0)
        message.poses.append(pose_message_of(pose, now, state.base).pose)
    return message


def _share(samples: Sequence[float], percent: float) -> float:
    return round(float(np.percentile(samples, percent)), 5) if len(samples) else float('nan')
