# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot made of recorded noise: asks a policy node for chunks and takes the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros.messages import (
    LATCHED,
    NO_EVENTS,
    RELIABLE,
    image_message,
    joint_message,
    pose_message,
    to_ns,
    values_from,
)
from vla_prune_ros.ros.process import make_executor

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


class Driver:
    """The node of the robot. Use it as a context manager, from one thread."""

    def __init__(self, check: Callable[[], None], patience: float) -> None:
        """Prepare.

        Args:
            check: raises when the policy node has ended.
            patience: seconds to wait for anything before giving up.
        """
        self._check, self._patience = check, patience
        self._chunks: dict[int, float] = {}  # stamp -> time of arrival
        self._stats: dict[int, dict[str, str]] = {}
        self.info: dict[str, str] = {}

    def __enter__(self) -> Driver:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        node = self._node = rclpy.create_node('vla_driver')
        self._executor = make_executor()
        self._executor.add_node(node)
        self._joints = node.create_publisher(
            JointState, 'joint_states', RELIABLE, event_callbacks=NO_EVENTS
        )
        self._pose = node.create_publisher(
            PoseStamped, 'ee_pose', RELIABLE, event_callbacks=NO_EVENTS
        )
        self._images = [
            node.create_publisher(Image, f'{c}/image_raw', RELIABLE, event_callbacks=NO_EVENTS)
            for c in CAMERAS
        ]
        self._instruction = node.create_publisher(
            String, 'instruction', LATCHED, event_callbacks=NO_EVENTS
        )
        self._setter = node.create_client(
            SetParametersAtomically, 'vla_policy/set_parameters_atomically'
        )
        node.create_subscription(
            JointTrajectory, 'action_chunk', self._on_chunk, RELIABLE, raw=True
        )
        node.create_subscription(
            DiagnosticArray, 'vla_policy/inference_stats', self._on_stats, RELIABLE
        )
        node.create_subscription(DiagnosticArray, 'vla_policy/policy_info', self._on_info, LATCHED)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(timeout_sec=0)
        self._node.destroy_node()
        rclpy.try_shutdown()

    def wait_until_active(self) -> None:
        """Wait for the node to take data.

        Raises:
            RuntimeError: it does not.
        """
        publishers = (self._joints, self._pose, *self._images)
        self._wait(
            lambda: self.info and all(p.get_subscription_count() for p in publishers),
            'the policy node is not active',
        )

    def ask(self, scene: Scene) -> Reply:
        """Publish a scene as of now and wait for its chunk and statistics."""
        stamp = time.time_ns()
        joints = joint_message(FINGERS, scene.fingers, stamp)
        pose = pose_message(scene.position, np.array([0, 0, 0, 1.0]), stamp, 'world')
        images = [image_message(scene.images[name], stamp, name) for name in CAMERAS]
        begun = time.perf_counter()
        self._joints.publish(joints)
        self._pose.publish(pose)
        *first, last = zip(self._images, images, strict=True)
        for publisher, image in first:
            publisher.publish(image)
        started = time.perf_counter()
        last[0].publish(last[1])
        self._wait(lambda: stamp in self._chunks, 'no chunk')
        self._wait(lambda: stamp in self._stats, 'no statistics')
        arrived, stats = self._chunks[stamp], self._stats[stamp]
        self._chunks.clear()
        self._stats.clear()
        return Reply((started - begun) * 1e3, (arrived - started) * 1e3, stats)

    def change(self, mode: str, instruction: str) -> None:
        """Set pruning mode and instruction.

        Raises:
            RuntimeError: the mode was refused.
        """
        self._instruction.publish(String(data=instruction))
        parameter = Parameter('pruning.mode', value=mode).to_parameter_msg()
        request = SetParametersAtomically.Request(parameters=[parameter])
        self._wait(self._setter.service_is_ready, 'no parameter service')
        future = self._setter.call_async(request)
        self._wait(future.done, 'no answer to a parameter')
        result = future.result().result
        if not result.successful:
            raise RuntimeError(f'mode {mode} was refused: {result.reason}')

    def spin(self, seconds: float) -> None:
        """Let time pass."""
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def _wait(self, condition: Callable[[], object], complaint: str) -> None:
        deadline = time.monotonic() + self._patience
        while not condition():
            self._executor.spin_once(timeout_sec=0.05)
            if time.monotonic() > deadline:
                raise RuntimeError(f'{complaint} after {self._patience:g} s')
            self._check()

    def _on_chunk(self, data: bytes) -> None:
        arrived = time.perf_counter()  # a robot's own decoding is not the node's
        message = deserialize_message(data, JointTrajectory)
        self._chunks[to_ns(message.header.stamp)] = arrived

    def _on_stats(self, message: DiagnosticArray) -> None:
        self._stats[to_ns(message.header.stamp)] = values_from(message)

    def _on_info(self, message: DiagnosticArray) -> None:
        self.info = values_from(message)
