# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The simulated robot as the driver of a real arm would show it: commands in, state out.

It knows no chunks: `interface: pose` takes targets and keeps the last one, `interface: twist`
takes velocities and stops when they stay away; both take a gripper command. Time is the wall
clock's. State comes at 100 Hz, pictures at 20 Hz from a thread with a robot of its own, as
rendering would stall the physics.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray

from vla_prune_ros.nodes.simulation.episodes import Episodes
from vla_prune_ros.nodes.simulation.link import EpisodeStatus, Link
from vla_prune_ros.nodes.simulation.sensors import Sensors
from vla_prune_ros.ros.messages import RELIABLE, MessageError, pose_from, to_ns
from vla_prune_ros.ros.parameters import ParameterError
from vla_prune_ros.sim import SimObservation, make_robot, quaternion_to_axis_angle

STEP = 0.01  # s between two looks at the commands, and two messages of state
PHYSICS = 5  # steps of the simulation in one STEP
CONTROL = 5  # STEPs that count as one step of the episode
PICTURES = 0.05  # s
STALE = 0.1  # s after which a velocity does not count any more
PAUSE = 0.2  # s between two episodes: whoever drives must know of it before the arm jumps


@dataclass(frozen=True)
class _Wish:
    """A command and when it came: a pose (position, rotation) or a twist [6]."""

    value: Any
    stamp: int
    came: float


class ArmCommands:
    """Subscriptions to what moves the arm; what is wrong is dropped and told."""

    def __init__(self, node: Node, interface: str, frame: str, warn: Callable[[str, str], None]):
        self._frame, self._warn = frame, warn
        self.arm: _Wish | None = None
        self.opening: float | None = None
        self._since = 0  # older commands are of another episode
        if interface == 'pose':
            node.create_subscription(PoseStamped, 'arm/target_pose', self._on_pose, RELIABLE)
        else:
            node.create_subscription(TwistStamped, 'arm/twist', self._on_twist, RELIABLE)
        node.create_subscription(Float64MultiArray, 'gripper/command', self._on_gripper, RELIABLE)

    def forget(self) -> None:
        """The arm was put somewhere else."""
        self.arm = self.opening = None
        self._since = time.time_ns()

    def _on_pose(self, message: PoseStamped) -> None:
        try:
            pose_from(message)
        except MessageError as error:
            self._warn('command', f'command dropped: {error}')
            return
        p, q = message.pose.position, message.pose.orientation
        rotation = _matrix(np.array([q.x, q.y, q.z, q.w]))
        self._take(message.header, (np.array([p.x, p.y, p.z]), rotation))

    def _on_twist(self, message: TwistStamped) -> None:
        v, w = message.twist.linear, message.twist.angular
        self._take(message.header, np.array([v.x, v.y, v.z, w.x, w.y, w.z]))

    def _take(self, header: Any, value: Any) -> None:
        stamp = to_ns(header.stamp)
        if header.frame_id != self._frame:
            text = f'command dropped: frame {header.frame_id!r} is not {self._frame!r}'
        elif isinstance(value, np.ndarray) and not np.isfinite(value).all():
            text = 'command dropped: not finite'
        elif abs(time.time_ns() - stamp) > 1e9 * STALE:
            text = f'command dropped: {(time.time_ns() - stamp) / 1e9:.2f} s old'
        elif stamp < self._since:
            return
        else:
            self.arm = _Wish(value, stamp, time.monotonic())
            return
        self._warn('command', text)

    def _on_gripper(self, message: Float64MultiArray) -> None:
        if len(message.data) == 1 and np.isfinite(message.data[0]):
            self.opening = float(message.data[0])
        else:
            self._warn('gripper', f'gripper command dropped: {list(message.data)}')


class DriverEpisodes(Episodes):
    """Episodes of an arm that is driven by commands. The success is the task's, as ever."""

    def __init__(
        self,
        link: Link,
        sensors: Sensors,
        commands: ArmCommands,
        interface: str,
        stiffness: float,
    ) -> None:
        super().__init__(lambda: make_robot('tabletop', render=False), link)
        self._sensors, self._commands = sensors, commands
        self._interface, self._stiffness = interface, stiffness
        self._snapshot: tuple[int, tuple] | None = None  # stamp and state for the pictures
        self._pictures = threading.Thread(target=self._show, name='pictures', daemon=True)
        self._next = time.monotonic()

    def run(self) -> None:
        """Thread body."""
        self._pictures.start()
        super().run()

    def stop(self, timeout: float) -> bool:
        """End both threads."""
        ended = super().stop(timeout)
        if self._pictures.is_alive():
            self._pictures.join(timeout)
        return ended

    def _report(self, status: EpisodeStatus) -> None:
        self._now = time.time_ns()
        super()._report(status)
        if status.state == 'done':
            self._stopping.wait(PAUSE)

    def _deliver(self) -> None:
        """Time goes on, whoever listens."""

    def _wait_for_policy(self, status: EpisodeStatus) -> None:
        """A driver waits for nobody."""
        self._link.instruct(status.instruction)

    def _idle(self, robot: Any) -> None:
        if self._snapshot is None:
            robot.reset(0, 0)
            robot.arm.controller.stiffness = self._stiffness
        self._tick(robot)

    def _play_lockstep(
        self, robot: Any, observation: SimObservation, status: EpisodeStatus
    ) -> None:
        """Let time pass until the task is done; its steps count from the first command on."""
        robot.arm.controller.stiffness = self._stiffness
        self._commands.forget()
        status.mode, ticks, begun = 'realtime', 0, False
        while not status.success and status.step < status.max_steps:
            self._check()
            status.late += self._tick(robot)
            begun = begun or self._commands.arm is not None
            ticks += begun
            if ticks and ticks % CONTROL == 0:
                status.step = ticks // CONTROL
                status.success = robot.success()

    _play_realtime = _play_lockstep

    def _tick(self, robot: Any) -> bool:
        """10 ms of physics, and what it leads to; whether it came too late."""
        arm, wish = robot.arm, self._commands.arm
        if wish is not None and self._interface == 'pose':
            arm.follow(*wish.value)
        elif wish is not None:
            fresh = time.monotonic() - wish.came < STALE
            arm.drive(wish.value if fresh else np.zeros(6))
        if (opening := self._commands.opening) is not None:
            arm.grip(opening)
        arm.run(PHYSICS)
        self._next += STEP
        now = time.monotonic()
        if late := now > self._next + STEP:
            self._next = now  # never made up for
        time.sleep(max(0.0, self._next - now))
        stamp = time.time_ns()
        self._snapshot = stamp, robot.save()
        self._sensors.publish_state(robot, robot.observe(render=False), stamp)
        return late

    def _show(self) -> None:
        """Body of the thread of the pictures."""
        robot: Any = make_robot('tabletop')
        try:
            due = time.monotonic()
            while not self._stopping.is_set():
                if self._snapshot is not None:
                    stamp, state = self._snapshot
                    robot.restore(state)
                    self._sensors.publish_images(robot, robot.observe(), stamp)
                due = max(due + PICTURES, time.monotonic())
                self._stopping.wait(due - time.monotonic())
        except Exception as error:
            if not self._stopping.is_set():
                self._link.give_up(error)
        finally:
            robot.close()


def driver_episodes(node: Any, sensors: Sensors, settings: Mapping[str, Any]) -> DriverEpisodes:
    """The robot of a `SimBridge` as an arm that takes commands.

    Raises:
        ParameterError: the backend has no such arm, or it is to wait for a recorder.
    """
    interface = settings['interface']
    if settings['backend'] != 'tabletop':
        raise ParameterError(f'interface {interface}: only backend tabletop has it')
    if settings['recorder']:
        raise ParameterError(f'recorder: an arm with interface {interface} waits for nobody')
    commands = ArmCommands(node, interface, settings['base_frame'], node.warn)
    return DriverEpisodes(node, sensors, commands, interface, settings['interface.stiffness'])


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] of a unit quaternion xyzw [4]."""
    from vla_prune_ros.sim.tabletop.controller import rotation_from_axis_angle

    return rotation_from_axis_angle(quaternion_to_axis_angle(quaternion))
