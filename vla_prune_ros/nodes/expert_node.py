# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb and node `expert_node`: a scripted expert in the place of a policy.

It answers the same requests on the same topics, but from privileged state: it subscribes to
`objects`, which a `sim_bridge` publishes with `publish_objects:=true` and no robot can. It proves
that state, actions and success detection go through, and makes demonstrations to record; it proves
nothing about a policy.

For libero_spatial it answers with chunks, for the tabletop with one action, so that every step of
a lockstep episode is observed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState, MultiDOFJointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros.messages import (
    LATCHED,
    NANOSECONDS,
    RELIABLE,
    chunk_message,
    joints_from,
    to_ns,
)
from vla_prune_ros.ros.parameters import MAX_INT, Spec, declare
from vla_prune_ros.ros.process import run_node
from vla_prune_ros.sim.base import to_policy_gripper
from vla_prune_ros.sim.libero.expert import BOWL, PLATE, BowlExpert, Situation

if TYPE_CHECKING:
    from vla_prune_ros.sim.tabletop.tasks import Scene, TabletopTask

DESCRIPTION = (
    'ROS 2 node expert_node: a scripted expert with privileged state, for demonstrations.'
)
PARAMETERS = (
    Spec(
        'noise', 0.0,
        'tabletop: standard deviation of what is added to the moves, so that demonstrations show '
        'how to get back',
        0.0, 1.0,
    ),
    Spec('seed', 0, 'tabletop: of the noise', 0, MAX_INT),
)  # fmt: skip
PERIOD = NANOSECONDS // 20
CHUNK = 8
NEW_EPISODE = NANOSECONDS  # a longer jump of the time begins one
FINGERS = ('finger_joint1', 'finger_joint2')


class ExpertNode(Node):
    """Answers an `executed_actions` request as soon as pose and objects of its stamp are there."""

    def __init__(self, stop: threading.Event) -> None:
        from vla_prune_ros.sim.tabletop.expert import Demonstrator  # needs mujoco
        from vla_prune_ros.sim.tabletop.tasks import COLOURS, TASKS

        super().__init__('vla_policy')
        self.failed = False
        settings = declare(self, PARAMETERS)
        self._bowls = BowlExpert()
        self._blocks = Demonstrator(settings['noise'], settings['seed'])
        self._tasks = {task.instruction: task for task in TASKS}
        self._things = {colour: f'{colour}_block' for colour in COLOURS}
        self._task: TabletopTask | None = None
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
        self.create_subscription(String, 'instruction', self._instruct, LATCHED)

    def start(self) -> None:
        """Say what this is."""
        self.get_logger().warning('scripted expert with privileged state: not a policy')

    def close(self) -> None:
        """Nothing runs beside the executor."""

    def _instruct(self, message: String) -> None:
        self._task = self._tasks.get(message.data.strip())

    def _take(self, topic: str, message: Any) -> None:
        self._waiting[topic] = message
        stamps = {to_ns(m.header.stamp) for m in self._waiting.values()}
        if len(self._waiting) < 4 or len(stamps) > 1:
            return
        stamp = stamps.pop()
        if stamp != self._last:  # otherwise a request that was sent again
            answer = self._plan(not 0 < stamp - self._last <= NEW_EPISODE)
            if answer is None:
                return
            self._last, self._answer = stamp, answer
        self._waiting.clear()
        self._chunks.publish(chunk_message(self._answer, stamp, PERIOD))

    def _plan(self, new_episode: bool) -> np.ndarray | None:
        """Actions [n, 7] for what is waiting; None if there is no expert for it."""
        poses = self._poses()
        if poses.keys() >= {BOWL, PLATE}:
            if new_episode:
                self._bowls.reset()
            situation = Situation(*poses['hand'], poses[BOWL][0], poses[PLATE][0])
            return self._bowls.chunk(situation, CHUNK)
        if poses.keys() >= {'plate', *self._things.values()}:
            if self._task is None:
                return None  # the instruction comes, and the request again
            if new_episode:
                self._blocks.reset()
            action = self._blocks.action(self._task, self._scene(poses))
            action[6] = to_policy_gripper(action[6])
            return action[None]
        text = ', '.join(poses) or 'nothing'
        self.get_logger().error(f'no expert for these objects: {text}', throttle_duration_sec=5.0)
        return None

    def _scene(self, poses: dict[str, tuple[np.ndarray, np.ndarray]]) -> Scene:
        from vla_prune_ros.sim.tabletop.tasks import Scene

        hand, orientation = poses['hand']
        return Scene(
            hand=hand,
            hand_rotation=_rotation(orientation),
            fingers=joints_from(self._waiting['joint_states'], FINGERS),
            blocks={colour: poses[name][0] for colour, name in self._things.items()},
            plate=poses['plate'][0],
        )

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


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """Matrix [3, 3] of a unit quaternion xyzw."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(ExpertNode, argv, 'expert_node', DESCRIPTION)
