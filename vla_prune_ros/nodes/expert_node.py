# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb and node `expert_node`: the scripted expert for libero_spatial in the place of a policy.

It answers the same requests with the same chunks on the same topics, but from privileged state: it
subscribes to `objects`, which a `sim_bridge` publishes with `publish_objects:=true` and no robot
can. It proves that state, actions and success detection go through, and nothing about a policy.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState, MultiDOFJointState
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros.messages import (
    NANOSECONDS,
    RELIABLE,
    chunk_message,
    to_ns,
)
from vla_prune_ros.ros.process import run_node
from vla_prune_ros.sim.libero.expert import BOWL, PLATE, BowlExpert, Situation

DESCRIPTION = (
    'ROS 2 node expert_node: a scripted expert for libero_spatial, with privileged state.'
)
PERIOD = NANOSECONDS // 20
CHUNK = 8
NEW_EPISODE = NANOSECONDS  # a longer jump of the time begins one


class ExpertNode(Node):
    """Answers an `executed_actions` request as soon as pose and objects of its stamp are there."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__('vla_policy')
        self.failed = False
        self._expert = BowlExpert()
        self._waiting: dict[str, Any] = {}  # topic -> its newest message
        self._last, self._answer = 0, np.zeros((0, 7))
        self._chunks = self.create_publisher(JointTrajectory, 'action_chunk', RELIABLE)
        for kind, topic in (
            (PoseStamped, 'ee_pose'),
            (JointState, 'joint_states'),
            (MultiDOFJointState, 'objects'),
            (JointTrajectory, 'executed_actions'),
        ):
            self.create_subscription(
                kind, topic, lambda message, t=topic: self._take(t, message), RELIABLE
            )

    def start(self) -> None:
        """Say what this is."""
        self.get_logger().warning('scripted expert with privileged state: not a policy')

    def close(self) -> None:
        """Nothing runs beside the executor."""

    def _take(self, topic: str, message: Any) -> None:
        self._waiting[topic] = message
        stamps = {to_ns(m.header.stamp) for m in self._waiting.values()}
        if len(self._waiting) < 4 or len(stamps) > 1:
            return
        stamp, poses = stamps.pop(), self._poses()
        self._waiting.clear()
        if missing := {BOWL, PLATE} - poses.keys():
            self.get_logger().error(f'no {" and ".join(sorted(missing))} among the objects')
            return
        if stamp != self._last:  # otherwise a request that was sent again
            if not 0 < stamp - self._last <= NEW_EPISODE:
                self._expert.reset()
            situation = Situation(*poses['hand'], poses[BOWL][0], poses[PLATE][0])
            self._last, self._answer = stamp, self._expert.chunk(situation, CHUNK)
        self._chunks.publish(chunk_message(self._answer, stamp, PERIOD))

    def _poses(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Position [3] and quaternion xyzw [4] of hand and things."""
        hand, objects = self._waiting['ee_pose'].pose, self._waiting['objects']
        poses = {'hand': _arrays(hand.position, hand.orientation)}
        for name, transform in zip(objects.joint_names, objects.transforms, strict=True):
            poses[name] = _arrays(transform.translation, transform.rotation)
        return poses


def _arrays(position: Any, rotation: Any) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([position.x, position.y, position.z]),
        np.array([rotation.x, rotation.y, rotation.z, rotation.w]),
    )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(ExpertNode, argv, 'expert_node', DESCRIPTION)
