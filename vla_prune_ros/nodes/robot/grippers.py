# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How a gripper is told to open or to close: by a topic or by an action."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from builtin_interfaces.msg import Duration
from rclpy.action import ActionClient
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_prune_ros.nodes.robot.optional import needed
from vla_prune_ros.nodes.robot.parameters import RobotConfig
from vla_prune_ros.ros.messages import RELIABLE

PATIENCE = 3.0  # s for the answer to a goal
LONGEST = 15.0  # s for a goal to be reached, or given up by its server
CLOSING = Duration(sec=0, nanosec=500_000_000)  # in a joint trajectory


class TopicGripper:
    """A message per change."""

    def __init__(self, node: Node, kind: str, joint: str, topic: str) -> None:
        types = {
            'float_array': Float64MultiArray,
            'joint_state': JointState,
            'joint_trajectory': JointTrajectory,
        }
        self._node, self._kind, self._joint = node, kind, joint
        self._publisher = node.create_publisher(types[kind], topic, RELIABLE)

    def move(self, position: float) -> None:
        """Go to a position of the joint."""
        if self._kind == 'float_array':
            message = Float64MultiArray(data=[position])
        elif self._kind == 'joint_state':
            message = JointState(name=[self._joint], position=[position])
            message.header.stamp = self._node.get_clock().now().to_msg()
        else:
            point = JointTrajectoryPoint(positions=[position], time_from_start=CLOSING)
            message = JointTrajectory(joint_names=[self._joint], points=[point])
        self._publisher.publish(message)

    def watch(self) -> None:
        """A topic gives no answer."""


class ActionGripper:
    """Goals of one of two actions. One is outstanding, the latest wish waits; none is waited for.

    Some drivers cannot be preempted, and many fail on a goal per control step.
    """

    def __init__(
        self, client: Any, goal: Callable[[float], Any], warn: Callable[[str, str], None]
    ) -> None:
        """Prepare.

        Args:
            client: as `rclpy.action.ActionClient`.
            goal: makes a goal of a position.
            warn: cause and text.
        """
        self._client, self._goal, self._warn = client, goal, warn
        self._wish: float | None = None  # what comes after the goal that is under way
        self._current: tuple[float, int, float] | None = None  # position, tries, since when
        self._accepted = False

    def move(self, position: float) -> None:
        """Go to a position of the joint, as soon as the last goal is through."""
        self._wish = position
        self._next()

    def watch(self) -> None:
        """Look whether an answer is missing; call it now and then."""
        if self._current is not None:
            waited, most = time.monotonic() - self._current[2], PATIENCE
            if self._accepted:
                most = LONGEST
            if waited > most:
                self._failed(f'no {"end" if self._accepted else "answer"} within {most:g} s')
        self._next()

    def _next(self) -> None:
        if self._current is None and self._wish is not None:
            position, self._wish = self._wish, None
            self._send(position, 1)

    def _send(self, position: float, tries: int) -> None:
        self._current, self._accepted = (position, tries, time.monotonic()), False
        mine = self._current
        future = self._client.send_goal_async(self._goal(position))
        future.add_done_callback(lambda f: self._answered(mine, f.result()))

    def _answered(self, which: tuple, handle: Any) -> None:
        if which is not self._current:
            return
        if not handle.accepted:
            self._failed('the goal was rejected')
            return
        self._accepted = True
        handle.get_result_async().add_done_callback(lambda _: self._done(which))

    def _done(self, which: tuple) -> None:
        if which is self._current:
            self._current = None
            self._next()

    def _failed(self, text: str) -> None:
        assert self._current is not None
        position, tries, _ = self._current
        self._current = None
        again = tries == 1 and self._wish is None
        self._warn('gripper', f'gripper: {text}{"; trying once again" if again else ""}')
        if again:
            self._send(position, 2)
        else:
            self._next()


def make_gripper(
    node: Node, config: RobotConfig, warn: Callable[[str, str], None]
) -> TopicGripper | ActionGripper | None:
    """What `gripper.type` names.

    Raises:
        RuntimeError: it needs control_msgs, which is not installed.
    """
    kind, joint, effort = (config[f'gripper.{n}'] for n in ('type', 'joint', 'max_effort'))
    if kind == 'none':
        return None
    if kind not in ('gripper_command', 'parallel_gripper'):
        return TopicGripper(node, kind, joint, config['topics.gripper'])
    actions = needed('control_msgs.action', f'gripper.type: {kind}')
    if kind == 'gripper_command':
        action = actions.GripperCommand

        def goal(position: float) -> Any:
            message = action.Goal()
            message.command.position, message.command.max_effort = position, effort
            return message
    else:
        action = actions.ParallelGripperCommand

        def goal(position: float) -> Any:
            message = action.Goal()
            message.command.name, message.command.position = [joint], [position]
            message.command.effort = [effort]
            return message

    return ActionGripper(ActionClient(node, action, config['topics.gripper_action']), goal, warn)
