# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How an arm is told where to go: one small class per kind of command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from std_srvs.srv import SetBool

from vla_prune_ros.execution.commands import Command, Tool
from vla_prune_ros.execution.targets import Pose
from vla_prune_ros.nodes.robot.optional import needed
from vla_prune_ros.nodes.robot.state import pose_message_of
from vla_prune_ros.ros.messages import NO_EVENTS, RELIABLE, to_time


class PoseOutput:
    """Absolute targets on `arm/target_pose`."""

    topic, kind = 'arm/target_pose', PoseStamped

    def __init__(self, node: Node, tool: Tool, topic: str = '') -> None:
        self._tool = tool
        self.publisher = node.create_publisher(
            self.kind, topic or self.topic, RELIABLE, event_callbacks=NO_EVENTS
        )

    def send(self, command: Command, pose: Pose, stamp: int, frame: str) -> None:
        """Publish where the grip point should be now: `pose`, on the way to the command's."""
        self.publisher.publish(pose_message_of(self._tool.pose(pose), stamp, frame))


class TwistOutput(PoseOutput):
    """Velocities on `arm/twist`, m/s and rad/s in the base frame."""

    topic, kind = 'arm/twist', TwistStamped

    def send(self, command: Command, pose: Pose, stamp: int, frame: str) -> None:
        """Publish the velocity that leads to the command's pose."""
        self.publisher.publish(twist_message(self._tool.twist(command.twist, pose), stamp, frame))


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


OUTPUTS = {'pose': PoseOutput, 'twist': TwistOutput}
