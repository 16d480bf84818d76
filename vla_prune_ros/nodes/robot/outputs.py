# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How an arm is told where to go: one small class per kind of command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseArray, PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_prune_ros.execution.commands import Command
from vla_prune_ros.execution.joints import JointCommand
from vla_prune_ros.execution.targets import Pose
from vla_prune_ros.nodes.robot.optional import needed
from vla_prune_ros.nodes.robot.parameters import RobotConfig
from vla_prune_ros.nodes.robot.pose_state import pose_message_of
from vla_prune_ros.ros.messages import NO_EVENTS, RELIABLE, to_duration, to_time


class PoseOutput:
    """Absolute targets on `arm/target_pose`.

    Attributes:
        publishers: of commands.
    """

    topic, kind, shown = 'arm/target_pose', PoseStamped, PoseArray

    def __init__(self, node: Node, config: RobotConfig) -> None:
        self._tool = config.tool
        topic = config['topics.command'] or self.topic
        self.publishers = {topic: _publisher(node, self.kind, topic)}

    def forget(self) -> None:
        """Every command stands for itself."""

    def send(self, command: Command, pose: Pose, stamp: int, frame: str) -> None:
        """Publish where the grip point should be now: `pose`, on the way to the command's."""
        self._publish(pose_message_of(self._tool.pose(pose), stamp, frame))

    def _publish(self, message: Any) -> None:
        for publisher in self.publishers.values():
            publisher.publish(message)


class TwistOutput(PoseOutput):
    """Velocities on `arm/twist`, m/s and rad/s in the base frame."""

    topic, kind = 'arm/twist', TwistStamped

    def send(self, command: Command, pose: Pose, stamp: int, frame: str) -> None:
        """Publish the velocity that leads to the command's pose."""
        self._publish(twist_message(self._tool.twist(command.twist, pose), stamp, frame))


class JointTrajectoryOutput:
    """The rest of a plan for one or more joint trajectory controllers, whenever it changes.

    A controller plays it to its end and stays there, whatever becomes of us. The stamp is 0: now.

    Attributes:
        publishers: of commands, by topic.
    """

    topic, shown = 'arm/joint_trajectory', JointTrajectory

    def __init__(self, node: Node, config: RobotConfig) -> None:
        self._config = config
        topics = [t or config['topics.command'] or self.topic
                  for t in config.per_joint('joints.topics')]  # fmt: skip
        self._columns = {
            topic: [k for k, t in enumerate(topics) if t == topic]
            for topic in dict.fromkeys(topics)
        }
        self.publishers = {t: _publisher(node, JointTrajectory, t) for t in self._columns}
        self._sent: JointCommand | None = None

    def forget(self) -> None:
        """The controllers may do something else by now."""
        self._sent = None

    def send(self, command: JointCommand, pose: Any, stamp: int, frame: str) -> None:
        """Publish what is new of a command."""
        if command is self._sent:
            return
        known, self._sent = command.follows(self._sent), command
        if not known:
            for topic, publisher in self.publishers.items():
                publisher.publish(self.message(command, self._columns[topic]))

    def message(self, command: JointCommand, columns: Sequence[int] | None = None) -> Any:
        """A command on the wire, of some joints, or of all by the names that the policy has."""
        names = self._config.joints if columns is None else self._config.wire_names
        columns = range(len(names)) if columns is None else columns
        step = self._config['stop_time'] * 1e9 if command.holds else self._config.period
        message = JointTrajectory(joint_names=[names[k] for k in columns])
        for number, row in enumerate(command.path, start=1):
            point = JointTrajectoryPoint(positions=[float(row[k]) for k in columns])
            point.time_from_start = to_duration(round(number * step))
            message.points.append(point)
        return message


def _publisher(node: Node, kind: type, topic: str) -> Publisher:
    return node.create_publisher(kind, topic, RELIABLE, event_callbacks=NO_EVENTS)


def twist_message(twist: np.ndarray, stamp: int, frame: str) -> TwistStamped:
    """A velocity [6] on the wire."""
    message = TwistStamped()
    message.header.stamp = to_time(stamp)
    message.header.frame_id = frame
    linear, angular = message.twist.linear, message.twist.angular
    linear.x, linear.y, linear.z = (float(v) for v in twist[:3])
    angular.x, angular.y, angular.z = (float(v) for v in twist[3:])
    return message


SERVO_TYPES = {'twist': 1, 'pose': 2}
SERVO_HALTS = {2: 'singularity', 5: 'collision', 6: 'joint bound'}


class Servo:
    """MoveIt Servo: takes nothing until it was told the type of its commands; says when it halts.

    Untried on a running Servo: names and numbers are those of moveit_servo of Jazzy.
    """

    def __init__(self, node: Node, name: str, output: str, log: Callable[[str], None]) -> None:
        messages = needed('moveit_msgs.msg', 'servo')
        self._types = needed('moveit_msgs.srv', 'servo').ServoCommandType
        self._output, self._log = output, log
        self.halted = ''
        self._switch: Any = node.create_client(self._types, f'{name}/switch_command_type')
        self._pause: Any = node.create_client(SetBool, f'{name}/pause_servo')
        node.create_subscription(messages.ServoStatus, f'{name}/status', self._on_status, RELIABLE)

    def start(self) -> None:
        """Tell it what comes; not waited for."""
        request = self._types.Request(command_type=SERVO_TYPES[self._output])
        for client, words in ((self._switch, request), (self._pause, SetBool.Request(data=False))):
            if not client.service_is_ready():
                self._log(f'{client.srv_name} is not there')
            client.call_async(words)

    def _on_status(self, message: Any) -> None:
        self.halted = SERVO_HALTS.get(message.code, '')


OUTPUTS = {
    'pose': PoseOutput, 'twist': TwistOutput, 'joint_trajectory': JointTrajectoryOutput
}  # fmt: skip
