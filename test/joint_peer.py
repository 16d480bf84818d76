# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two arms of another writer behind joint trajectory controllers, and a policy of joint positions.

The controllers take and refuse what ros2_control's JointTrajectoryController does: unknown joints,
no points and times that do not increase are refused; a trajectory with stamp 0 begins now, from
where the last one has led to by now; positions are joined by straight lines; at the end it stays.
"""

from __future__ import annotations

import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from robot_peer import LATCHED, Peer, _stamp
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

ARM = ('waist', 'shoulder', 'gripper')
JOINTS = [f'{side}_{name}' for side in ('left', 'right') for name in ARM]
UNITS = ['rad', 'deg', 'unit'] * 2
SCALE = np.array([1.0, np.pi / 180, 0.014] * 2)
OFFSET = np.array([0.0, 0.0, 0.044] * 2)
RATE, CHUNK = 25.0, 25
MEANING = 'joint_absolute/1rad+1deg+1unit+1rad+1deg+1unit'


class Controller:
    """One JointTrajectoryController."""

    def __init__(self, node, topic: str, joints: tuple[str, ...], start: np.ndarray) -> None:
        self.joints, self.refused = joints, []
        self.taken: list[tuple[float, JointTrajectory]] = []
        self.times, self.rows = np.array([0.0]), start[None]
        node.create_subscription(JointTrajectory, topic, self._on_trajectory, 10)

    def position(self, now: float) -> np.ndarray:
        """Where it wants its joints to be."""
        return np.array([np.interp(now, self.times, column) for column in self.rows.T])

    def _on_trajectory(self, message: JointTrajectory) -> None:
        now = time.monotonic()
        times = [p.time_from_start.sec + 1e-9 * p.time_from_start.nanosec for p in message.points]
        if set(message.joint_names) != set(self.joints):
            self.refused.append(f'joints {message.joint_names}')
        elif not times or times[0] <= 0.0 or np.any(np.diff(times) <= 0.0):
            self.refused.append(f'times {times}')
        elif message.header.stamp.sec or message.header.stamp.nanosec:
            self.refused.append('a stamp')
        else:
            order = [list(message.joint_names).index(name) for name in self.joints]
            rows = np.array([[p.positions[k] for k in order] for p in message.points])
            start = self.position(now)
            self.times = now + np.array([0.0, *times])
            self.rows = np.vstack([start, rows])
            self.taken.append((now, message))


class JointRobot(Peer):
    """Two arms of three joints each, which call their joints alike, and a policy for both.

    Attributes:
        wave: rad/s, how fast the policy turns the waists; None: no chunks.
        ahead: added to what the policy wants, in its units, [6].
    """

    def __init__(self, namespace: str, name: str = 'joint_robot') -> None:
        super().__init__(namespace, name)
        start = np.array([0.1, 0.2, 0.05])
        self.controllers, self._out = {}, {}
        for side in ('left', 'right'):
            for kind, joints, first in (
                ('arm', ('waist', 'shoulder'), start[:2]), ('gripper', ('finger',), start[2:])
            ):  # fmt: skip
                topic = f'{side}/{kind}_controller/joint_trajectory'
                self.controllers[topic] = Controller(self.node, topic, joints, first)
            self._out[side] = self.node.create_publisher(JointState, f'{side}/joint_states', 5)
        self.policy_reads: list[JointState] = []
        self.node.create_subscription(JointState, 'joint_states', self.policy_reads.append, 5)
        self.chunks = self.node.create_publisher(JointTrajectory, 'action_chunk', 5)
        self.info = self.node.create_publisher(DiagnosticArray, 'vla_policy/policy_info', LATCHED)
        self.wave: float | None = 0.3
        self.ahead, self.jump = np.zeros(6), np.zeros(6)
        self.silent = ''
        self._last = time.monotonic(), self.positions
        self._k, self._asked = 0, 0
        self.node.create_timer(0.01, self._tick)
        self.describe()

    @property
    def positions(self) -> np.ndarray:
        """Of all joints, in their own units."""
        now = time.monotonic()
        parts = [controller.position(now) for controller in self.controllers.values()]
        return np.concatenate(parts)

    def describe(self, **changes: str) -> None:
        said = {
            'action.kind': 'joint_absolute', 'action.joints': ','.join(JOINTS),
            'action.units': ','.join(UNITS), 'control_rate': str(RATE),
            'action.scale_position': '1', 'action.scale_rotation': '1', 'action.frame': 'base',
            'action.rotation': 'axis_angle', 'action.anchor': 'measured',
            'action.step_position': '1', 'action.step_rotation': '1',
            'action.gripper_open': '1', 'action.gripper_closed': '0',
        } | {k.replace('__', '.'): v for k, v in changes.items()}  # fmt: skip
        values = [KeyValue(key=k, value=v) for k, v in said.items()]
        self.info.publish(DiagnosticArray(status=[DiagnosticStatus(values=values)]))

    def chunk(self, meaning: str = MEANING, names: list[str] | None = None) -> None:
        """On from where the joints are now, in the units of the policy."""
        message = JointTrajectory(joint_names=names or JOINTS)
        message.header.frame_id = meaning
        message.header.stamp = _stamp(time.time())
        now = (self.positions - OFFSET) / SCALE + self.ahead
        step = np.array([(self.wave or 0.0) / RATE, 0, 0] * 2)
        for k in range(CHUNK):
            row = now + (k + 1) * step
            row[[2, 5]] = 1.0  # both grippers open
            point = JointTrajectoryPoint(positions=row.tolist())
            point.time_from_start.nanosec = round(k * 1e9 / RATE)
            message.points.append(point)
        self.chunks.publish(message)

    def _tick(self) -> None:
        self._k += 1
        now, positions = time.monotonic(), self.positions
        before, old = self._last
        self._last = now, positions
        self.speed = float(np.max(np.abs(positions - old))) / max(1e-3, now - before)
        for number, side in enumerate(('left', 'right')):
            if side == self.silent:
                continue
            at = positions[3 * number : 3 * number + 3] + self.jump[3 * number : 3 * number + 3]
            message = JointState(name=['waist', 'shoulder', 'finger'], position=at.tolist())
            message.header.stamp = _stamp(time.time())
            self._out[side].publish(message)
        if self.wave is not None and len(self.executed) > self._asked:
            self._asked = len(self.executed)  # answers requests, and nothing else
            self.chunk()
