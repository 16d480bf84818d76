# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The other side in tests of the bridge: takes the place of the policy, or only watches."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped
from peer import PERIOD, Peer
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros import messages as m

STEPS = 20  # limit of an episode here: two and a half chunks


def bridge(namespace: str, *words: str, **parameters) -> list[str]:
    """Command line of a bridge."""
    parameters = {'max_steps': STEPS} | parameters
    pairs = [f'{name.replace("__", ".")}:={value}' for name, value in parameters.items()]
    settings = (word for pair in pairs for word in ('-p', pair))
    return ['--ros-args', '-r', f'__ns:={namespace}', *words, *settings]


class Robot(Peer):
    """Takes the place of the policy, or with `answers` off only watches."""

    def __init__(self, namespace: str, answers: bool = True) -> None:
        super().__init__(namespace)
        self.clocks: list[int] = []
        self.requests: list[JointTrajectory] = []  # repeated ones left out
        self.repeated = 0
        self.seen: dict[str, dict[int, object]] = {}
        node = self.node
        if answers:
            self.answers = node.create_publisher(JointTrajectory, 'action_chunk', m.RELIABLE)
        node.create_subscription(
            Clock, '/clock', lambda c: self.clocks.append(m.to_ns(c.clock)), m.RELIABLE
        )
        node.create_subscription(JointTrajectory, 'executed_actions', self._on_request, m.RELIABLE)
        for kind, topic in [
            (Image, 'agentview/image_raw'),
            (Image, 'wrist/image_raw'),
            (CameraInfo, 'agentview/camera_info'),
            (CameraInfo, 'wrist/camera_info'),
            (JointState, 'joint_states'),
            (PoseStamped, 'ee_pose'),
        ]:
            store = self.seen[topic] = {}
            node.create_subscription(
                kind, topic, lambda x, s=store: s.update({m.to_ns(x.header.stamp): x}), m.RELIABLE
            )

    def _on_request(self, message: JointTrajectory) -> None:
        if message in self.requests:
            self.repeated += 1
        else:
            self.requests.append(message)

    def answer(self, n: int, actions: np.ndarray, delay: float = 0.0) -> int:
        """Answer the n-th request; returns its stamp."""
        assert self.wait_for(lambda: len(self.requests) > n, 15.0), 'no request'
        stamp = m.to_ns(self.requests[n].header.stamp)
        self.spin(delay)
        self.answers.publish(m.chunk_message(actions, stamp, PERIOD))
        return stamp

    def wait_until_done(self, timeout: float = 30.0) -> dict[str, str]:
        done = lambda: self.episodes and self.episodes[-1]['state'] == 'done'  # noqa: E731
        assert self.wait_for(done, timeout), 'the episode did not end'
        return self.episodes[-1]


def some_actions(seed: int) -> np.ndarray:
    """A chunk of smooth, small motions."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(-0.3, 0.3, (8, 6)), np.ones((8, 1))], axis=1)
