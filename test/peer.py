# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The other side in tests of the nodes: publishes what a robot would, keeps what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import rclpy
from conftest import patience
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros import messages as m

FINGERS = ('finger_joint1', 'finger_joint2')
PERIOD = 50_000_000


class Peer:
    """A node of the test process; `wait_for` spins it."""

    def __init__(self, namespace: str = '', policy: str = 'vla_policy') -> None:
        self.policy = policy
        self.node = rclpy.create_node('peer', namespace=namespace)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self._clients: dict[str, Client] = {}
        self.chunks: list[JointTrajectory] = []
        self.stats: list[dict[str, str]] = []
        self.info: list[dict[str, str]] = []
        self.episodes: list[dict[str, str]] = []
        node = self.node
        node.create_subscription(JointTrajectory, 'action_chunk', self.chunks.append, m.RELIABLE)
        self._keep(f'{policy}/inference_stats', self.stats, m.RELIABLE)
        self._keep(f'{policy}/policy_info', self.info, m.LATCHED)
        self._keep('sim_bridge/episode', self.episodes, m.EPISODES)
        self.images = {
            name: node.create_publisher(Image, f'{name}/image_raw', m.RELIABLE)
            for name in ('agentview', 'wrist')
        }
        self.joints = node.create_publisher(JointState, 'joint_states', m.RELIABLE)
        self.pose = node.create_publisher(PoseStamped, 'ee_pose', m.RELIABLE)
        self.executed = node.create_publisher(JointTrajectory, 'executed_actions', m.RELIABLE)
        self.instruction = node.create_publisher(String, 'instruction', m.RELIABLE)

    def _keep(self, topic: str, store: list, qos) -> None:
        self.node.create_subscription(
            DiagnosticArray,
            topic,
            lambda msg: store.append(m.values_from(msg) | {'stamp': m.to_ns(msg.header.stamp)}),
            qos,
        )

    def forget(self) -> None:
        """Start a test with nothing received but what is latched."""
        self.spin(0.05)
        for store in (self.chunks, self.stats):
            store.clear()

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()

    def wait_for(self, condition: Callable[[], object], timeout: float = 30.0) -> bool:
        """Spin until the condition holds; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.executor.spin_once(timeout_sec=0.02)
        return True

    def spin(self, seconds: float) -> None:
        self.wait_for(lambda: False, seconds)

    def wait_until_active(self, process, timeout: float = 60.0, *, raw: bool = True) -> None:
        """Wait until the policy node `process` listens to us (to raw images) and we to it."""
        ready = lambda: (  # noqa: E731
            self.joints.get_subscription_count()
            and self.executed.get_subscription_count()
            and (not raw or all(p.get_subscription_count() for p in self.images.values()))
            and self.node.count_publishers('action_chunk')
            and self.info
        )
        ended = lambda: process.popen.poll() is not None  # noqa: E731
        self.wait_for(lambda: ended() or ready(), timeout)
        assert not ended() and ready(), f'the policy node is not active:\n{process.log}'
        self.spin(patience(0.1))  # it may know of our publishers later than we of its readers

    def send(
        self,
        stamp: int,
        images: dict[str, np.ndarray],
        position: np.ndarray,
        quaternion: np.ndarray,
        fingers: np.ndarray,
    ) -> None:
        """Publish one observation."""
        self.joints.publish(m.joint_message(FINGERS, fingers, stamp))
        self.pose.publish(m.pose_message(position, quaternion, stamp, 'world'))
        for name, pixels in images.items():
            self.images[name].publish(m.image_message(pixels, stamp, name))

    def send_any(self, stamp: int | None = None, seed: int = 0) -> int:
        """Publish some observation, by default of now; returns its stamp."""
        rng = np.random.default_rng(seed)
        stamp = time.time_ns() if stamp is None else stamp
        images = {n: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for n in self.images}
        self.send(stamp, images, rng.normal(size=3), np.array([0, 0, 0, 1.0]), np.zeros(2))
        return stamp

    def ask(self, seed: int = 0, timeout: float = 10.0) -> JointTrajectory:
        """The chunk that answers some observation of now."""
        stamp = self.send_any(seed=seed)
        answered = lambda: any(m.to_ns(c.header.stamp) == stamp for c in self.chunks)  # noqa: E731
        assert self.wait_for(answered, timeout), 'no chunk'
        described = lambda: any(s['stamp'] == stamp for s in self.stats)  # noqa: E731
        assert self.wait_for(described, 2.0), 'no statistics'
        return self.chunks[-1]

    def call(self, kind: type, name: str, request, timeout: float = 10.0):
        """Call a service."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        assert self.wait_for(client.service_is_ready, timeout), f'no service {name}'
        future = client.call_async(request)
        if kind is not ChangeState and not self.wait_for(future.done, min(3.0, timeout)):
            # DDS may match the two directions one after the other: the answer finds no reader.
            future = client.call_async(request)
        assert self.wait_for(future.done, timeout), f'no answer from {name}'
        return future.result()

    def trigger(self, name: str) -> Trigger.Response:
        return self.call(Trigger, name, Trigger.Request())

    def set_parameters(self, node: str | None = None, /, **values):
        """Set parameters as `ros2 param set` does; '__' in a name stands for the dot."""
        parameters: list[ParameterMessage] = [
            Parameter(name.replace('__', '.'), value=value).to_parameter_msg()
            for name, value in values.items()
        ]
        request = SetParameters.Request(parameters=parameters)
        return self.call(SetParameters, f'{node or self.policy}/set_parameters', request).results

    def get_parameter(self, name: str, node: str | None = None):
        request = GetParameters.Request(names=[name])
        answer = self.call(GetParameters, f'{node or self.policy}/get_parameters', request)
        return rclpy.parameter.parameter_value_to_python(answer.values[0])

    def describe_all(self, node: str):
        """Descriptors of every parameter of a node."""
        names = self.call(
            ListParameters, f'{node}/list_parameters', ListParameters.Request()
        ).result.names
        request = DescribeParameters.Request(names=names)
        return self.call(DescribeParameters, f'{node}/describe_parameters', request).descriptors

    def parameter_client(self) -> Client:
        """Client of `set_parameters`, for requests that nobody waits for."""
        client = self.node.create_client(SetParameters, f'{self.policy}/set_parameters')
        assert self.wait_for(client.service_is_ready)
        return client

    @staticmethod
    def set_later(client: Client, **values):
        """Set parameters in one request; returns the future of the answer."""
        messages = [
            Parameter(name.replace('__', '.'), value=value).to_parameter_msg()
            for name, value in values.items()
        ]
        return client.call_async(SetParameters.Request(parameters=messages))
