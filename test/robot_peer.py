# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot of another writer, and a policy: plain rclpy, knows only topics, and can misbehave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

MEANING = 'base/ee_delta/0.05m/0.5rad/axis_angle/measured/grip0..1'
INFO = {
    'action.kind': 'ee_delta', 'action.scale_position': '0.05', 'action.scale_rotation': '0.5',
    'action.rotation': 'axis_angle', 'action.frame': 'base', 'action.anchor': 'measured',
    'action.step_position': '0.0125', 'action.step_rotation': '0.1',
    'action.gripper_open': '1.0', 'action.gripper_closed': '0.0', 'control_rate': '20.0',
}  # fmt: skip
NAMES = ['delta_x', 'delta_y', 'delta_z', 'delta_rx', 'delta_ry', 'delta_rz', 'gripper']
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TICK = 0.01


class Peer:
    """A node that drives a robot bridge and knows what it says of itself; `spin` drives it.

    Attributes:
        speed: m/s or rad/s, of the arm now.
        state, diagnostics: what the bridge said last.
    """

    def __init__(self, namespace: str, name: str) -> None:
        self.node = node = rclpy.create_node(name, namespace=namespace)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(node)
        self.speed = 0.0
        self.state: dict[str, str] = {}
        self.diagnostics: dict[str, str] = {}
        self.executed: list[JointTrajectory] = []
        self._clients: dict[str, object] = {}
        self._namespace = namespace
        node.create_subscription(DiagnosticArray, 'robot_bridge/state', self._on_state, LATCHED)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        node.create_subscription(JointTrajectory, 'executed_actions', self.executed.append, 5)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()

    def _on_state(self, message: DiagnosticArray) -> None:
        self.state = {pair.key: pair.value for pair in message.status[0].values}

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        own = f'{self._namespace}/robot_bridge: Bridge'.lstrip('/')
        for status in message.status:
            if status.name == own:
                self.diagnostics = {pair.key: pair.value for pair in status.values}
                self.diagnostics['message'] = status.message

    # -- driving the bridge ----------------------------------------------------------------------
    def spin(self, seconds: float) -> None:
        self.wait_for(lambda: False, seconds)

    def wait_for(self, condition: Callable[[], object], timeout: float = 15.0) -> bool:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.executor.spin_once(timeout_sec=0.005)
        return True

    def call(self, name: str, data: bool | None = None):
        kind = Trigger if data is None else SetBool
        request = Trigger.Request() if data is None else SetBool.Request(data=data)
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, f'robot_bridge/{name}')
        client = self._clients[name]
        assert self.wait_for(client.service_is_ready, 30.0), name
        for _ in range(3):  # DDS may match the two directions one after the other
            future = client.call_async(request)
            if self.wait_for(future.done, 5.0):
                return future.result()
        raise AssertionError(f'no answer from {name}')

    def enable(self) -> None:
        """Until the bridge is enabled."""
        for _ in range(100):
            answer = self.call('set_enabled', True)
            if answer.success:
                return
            self.spin(0.1)
        raise AssertionError(answer.message)

    def is_in(self, state: str, reason: str = '', timeout: float = 15.0) -> bool:
        """Whether the bridge comes to a state for a reason."""
        return self.wait_for(
            lambda: self.state.get('state') == state and reason in self.state['reason'], timeout
        )

    def moving(self) -> None:
        """Until the arm moves by the policy's will."""
        assert self.is_in('running'), self.state
        assert self.wait_for(lambda: self.speed > 0.02), self.state

    def stands_still(self, within: float = 0.3, slow: float = 0.01) -> bool:
        """Whether the arm comes to rest, and stays so."""
        self.spin(within)
        speeds = []
        for _ in range(10):
            self.spin(0.02)
            speeds.append(self.speed)
        return max(speeds) < slow


class OtherRobot(Peer):
    """Arm, gripper and policy in one node; `spin` and `wait_for` drive all of it.

    Attributes:
        speed: m/s, of the arm now.
        commands: what came for the arm: when, and the message.
        moves: what the policy wants along x, in units; None: no chunks.
        state_off, joints_off: streams that are silent.
        offset: s, added to the stamps of the state; `frame`: of the pose.
        drop: every so-manieth message is lost; `twice`: every message comes twice.
        delay: s that a message of state is under way.
    """

    def __init__(self, namespace: str, output: str = 'pose', name: str = 'other_robot') -> None:
        super().__init__(namespace, name)
        node = self.node
        self.output = output
        self.position, self.velocity = np.array([0.0, 0.0, 1.0]), np.zeros(3)
        self.target: np.ndarray | None = None
        self.commands: list[tuple[float, object]] = []
        self.gripper: list[float] = []
        self.moves: float | None = 0.3
        self.state_off = self.joints_off = self.twice = self.stuck = False
        self.offset, self.delay, self.drop, self.frame = 0.0, 0.0, 0, 'base_link'
        self.jump = np.zeros(3)
        self._under_way: list[tuple[float, object, object]] = []
        self._k, self._moved = 0, time.monotonic()
        self.pose_out = node.create_publisher(PoseStamped, 'arm/pose', 5)
        self.joints_out = node.create_publisher(JointState, 'gripper/joint_states', 5)
        self.chunks = node.create_publisher(JointTrajectory, 'action_chunk', 5)
        self.info = node.create_publisher(DiagnosticArray, 'vla_policy/policy_info', LATCHED)
        self.instruction = node.create_publisher(String, 'instruction', LATCHED)
        self.permit = node.create_publisher(Bool, 'permit', 5)
        kind, topic = {
            'pose': (PoseStamped, 'arm/target_pose'), 'twist': (TwistStamped, 'arm/twist')
        }[output]  # fmt: skip
        self.arm_in = node.create_subscription(kind, topic, self._on_command, 5)
        node.create_subscription(
            Float64MultiArray, 'gripper/command', lambda msg: self.gripper.append(msg.data[0]), 5
        )
        node.create_timer(TICK, self._tick)
        self.describe()

    # -- the policy ------------------------------------------------------------------------------
    def describe(self, **changes: str) -> None:
        """Say what the policy's actions are; '__' in a name stands for the dot."""
        said = INFO | {k.replace('__', '.'): v for k, v in changes.items()}
        status = DiagnosticStatus(values=[KeyValue(key=k, value=v) for k, v in said.items()])
        self.info.publish(DiagnosticArray(status=[status]))

    def chunk(self, x: float, age: float = 0.0, publisher=None, **changes) -> None:
        """Publish a chunk of 8 equal actions for an observation of `age` seconds ago."""
        message = JointTrajectory(joint_names=changes.get('names', NAMES))
        message.header.stamp = _stamp(time.time() - age)
        message.header.frame_id = changes.get('meaning', MEANING)
        for k in range(8):
            point = JointTrajectoryPoint(positions=[x, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
            point.time_from_start.nanosec = k * changes.get('period', 50_000_000)
            message.points.append(point)
        (publisher or self.chunks).publish(message)

    # -- the arm ---------------------------------------------------------------------------------
    def _tick(self) -> None:
        self._k += 1
        now = time.monotonic()
        steps = max(1, min(20, round((now - self._moved) / TICK)))  # however late we are
        self._moved = now
        for _ in range(steps):
            before = self.position
            self._move(now)
        self.speed = float(np.linalg.norm(self.position - before)) / TICK
        if not self.state_off:
            self._send(self.pose_out, self._pose())
        if not self.joints_off:
            joints = JointState(name=['finger_joint1', 'finger_joint2'], position=[0.04, -0.04])
            joints.header.stamp = _stamp(time.time() + self.offset)
            self._send(self.joints_out, joints)
        if self.moves is not None and self._k % 5 == 0:
            self.chunk(self.moves, age=0.03)
        while self._under_way and self._under_way[0][0] <= now:
            _, publisher, message = self._under_way.pop(0)
            publisher.publish(message)

    def _move(self, now: float) -> None:
        if self.target is None or self.stuck:
            return
        if self.output == 'pose':  # as soft as OSC_POSE
            pull = 150.0 * (self.target - self.position) - 2.0 * math.sqrt(150.0) * self.velocity
            self.velocity = self.velocity + TICK * pull
            self.position = self.position + TICK * self.velocity
        elif self.commands and now - self.commands[-1][0] < 0.1:
            self.position = self.position + TICK * self.target

    def _pose(self) -> PoseStamped:
        message = PoseStamped()
        message.header.frame_id = self.frame
        message.header.stamp = _stamp(time.time() + self.offset)
        p = message.pose.position
        p.x, p.y, p.z = (float(v) for v in self.position + self.jump)
        message.pose.orientation.w = 1.0
        return message

    def _send(self, publisher, message) -> None:
        if self.drop and self._k % self.drop == 0:
            return
        for _ in range(2 if self.twice else 1):
            self._under_way.append((time.monotonic() + self.delay, publisher, message))

    def _on_command(self, message) -> None:
        self.commands.append((time.monotonic(), message))
        assert message.header.frame_id == 'base_link'
        vector = message.pose.position if self.output == 'pose' else message.twist.linear
        self.target = np.array([vector.x, vector.y, vector.z])


def _stamp(seconds: float):
    from builtin_interfaces.msg import Time

    return Time(sec=int(seconds), nanosec=int(1e9 * (seconds % 1.0)))
