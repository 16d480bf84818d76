# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot made of noise: asks a policy node for chunks and takes the time."""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import dataclass

import numpy as np

from vla_prune_ros.ros.client import Client
from vla_prune_ros.ros.messages import image_message, joint_message, pose_message
from vla_prune_ros.ros.peers import Policy, Robot
from vla_prune_ros.trials.command import checkpoint_parameters

CAMERAS = ('agentview', 'wrist')
FINGERS = ('finger_joint1', 'finger_joint2')


@dataclass(frozen=True)
class Scene:
    """What a robot senses at one moment: uint8 [H, W, 3] per camera and its state."""

    images: dict[str, np.ndarray]
    position: np.ndarray
    fingers: np.ndarray

    @property
    def proprio(self) -> np.ndarray:
        """float64 [8], for an upright hand."""
        return np.concatenate([self.position, np.zeros(3), self.fingers])


def scenes(count: int, size: int, seed: int = 0) -> list[Scene]:
    """Scenes with soft random pictures, as large as a camera's and not too easy for JPEG."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (len(CAMERAS), size // 8, size // 8, 3), dtype=np.uint8)
        fine = coarse.repeat(8, axis=1).repeat(8, axis=2)
        images = dict(zip(CAMERAS, fine, strict=True))
        made.append(Scene(images, rng.uniform(-0.3, 0.3, 3), rng.uniform(0, 0.04, 2)))
    return made


@dataclass(frozen=True)
class Reply:
    """A chunk's way, ms, and its statistics.

    Attributes:
        publish_ms: what this process needed to publish the messages but the last.
        round_trip_ms: from the call that published the last message to the chunk.
        stats: of the node about this chunk.
    """

    publish_ms: float
    round_trip_ms: float
    stats: dict[str, str]


def policy_parameters(args: Namespace, *more: str) -> list[str]:
    """Of a policy node on the processor that takes observations of any age."""
    own = [f'torch_threads:={args.threads}', 'device:=cpu', 'max_observation_age:=0.0']
    return [*own, *more, *checkpoint_parameters(args.checkpoint)]


class Driver:
    """The robot: two cameras, a hand, an instruction."""

    def __init__(self, client: Client) -> None:
        self.client, self.policy = client, Policy(client)
        self._robot = Robot(client, self.policy, CAMERAS)
        self.wait_until_connected = self._robot.wait_until_connected

    def ask(self, scene: Scene) -> Reply:
        """Publish a scene as of now and wait for its chunk and statistics.

        Raises:
            GraphError: they did not come.
        """
        stamp = time.time_ns()
        publishers = self._robot.publishers
        state = {
            'joint_states': joint_message(FINGERS, scene.fingers, stamp),
            'ee_pose': pose_message(scene.position, np.array([0, 0, 0, 1.0]), stamp, 'world'),
        }
        images = {name: image_message(scene.images[name], stamp, name) for name in CAMERAS}
        *before, (camera, last) = (state | images).items()
        begun = time.perf_counter()
        for name, message in before:
            publishers[name].publish(message)
        started = time.perf_counter()
        publishers[camera].publish(last)
        chunk, stats = self._robot.answer(stamp)
        self._robot.forget()
        return Reply((started - begun) * 1e3, (chunk.arrived - started) * 1e3, stats.value)

    def change(self, mode: str, instruction: str) -> None:
        """Set pruning mode and instruction, until both are in force.

        Raises:
            GraphError: the mode was refused.
        """
        self._robot.instruct(instruction)
        self.policy.set_mode(mode)
