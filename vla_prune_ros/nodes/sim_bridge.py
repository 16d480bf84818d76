# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb and node `sim_bridge`: a simulated robot in the place of a real one.

It publishes what a robot's drivers would (images, camera_info, joint_states, ee_pose, tf), the
instruction and `/clock`, and executes the chunks that come back. In lockstep mode time stands
still until the chunk for an observation is there; in realtime mode it does not wait.

Every observation for which a chunk is wanted is announced on `executed_actions`: a JointTrajectory
with the observation's stamp and the actions executed since the one before, at negative
`time_from_start`, in the units of the chunk. A policy with `trigger: request` answers exactly
those; any other policy may ignore them.

To drive it from outside start it with `episodes:=0`, set `task` and `initial_state`, call
`~/reset_episode` and wait for that episode to be done on `~/episode`.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TransformStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.nodes.episodes import Episodes, EpisodeStatus, Plan, Settings
from vla_prune_ros.nodes.messages import (
    EPISODES,
    LATCHED,
    NANOSECONDS,
    RELIABLE,
    MessageError,
    actions_from,
    camera_info_message,
    executed_message,
    image_message,
    joint_message,
    pose_message,
    to_ns,
    to_time,
    values_message,
)
from vla_prune_ros.nodes.parameters import BRIDGE, declare, undeclared
from vla_prune_ros.nodes.process import run_node
from vla_prune_ros.sim import BACKENDS, SimObservation, SimulatedRobot, Task, make_robot

DESCRIPTION = 'ROS 2 node sim_bridge: a simulated robot with cameras, clock and language tasks.'
INBOX = 64  # chunks that may wait
ACKNOWLEDGED = Duration(seconds=1)


class SimBridge(Node):
    """The simulated robot as a node; see the module's text."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__('sim_bridge')
        self._stop = stop
        self._specs = {spec.name: spec for spec in BRIDGE}
        settings = self.settings = declare(self, BRIDGE)
        for name in undeclared(self):
            self.get_logger().warning(f'no parameter {name!r}: ignored')
        if settings['backend'] not in BACKENDS:
            raise ValueError(f'backend {settings["backend"]!r}; valid: {", ".join(BACKENDS)}')
        self.add_on_set_parameters_callback(self._check_parameters)
        self.failed = False
        self._tasks: tuple[Task, ...] = ()
        self._left = settings['episodes']
        self._plan: Plan | None = None  # the last one
        self._text: str | None = None  # instruction to repeat until the first chunk
        self._inbox: queue.SimpleQueue[tuple[int, np.ndarray]] = queue.SimpleQueue()
        self._images: dict[str, Any] = {}
        self._infos: dict[str, Any] = {}

        self._clock_publisher = self.create_publisher(ClockMessage, '/clock', QoSProfile(depth=1))
        self._joints = self.create_publisher(JointState, 'joint_states', RELIABLE)
        self._pose = self.create_publisher(PoseStamped, 'ee_pose', RELIABLE)
        self._instruction = self.create_publisher(String, 'instruction', LATCHED)
        self._executed = self.create_publisher(JointTrajectory, 'executed_actions', RELIABLE)
        self._episode = self.create_publisher(DiagnosticArray, '~/episode', EPISODES)
        self._tf = self._tf_publisher()
        self.create_subscription(JointTrajectory, 'action_chunk', self._on_chunk, RELIABLE)
        self.create_service(Trigger, '~/reset_episode', self._on_reset_episode)
        self.create_timer(
            1.0, self._repeat_instruction, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._episodes = Episodes(
            lambda: make_robot(settings['backend']),
            self,
            Settings(
                realtime=settings['mode'] == 'realtime',
                chunk_timeout=settings['chunk_timeout'],
                horizon=settings['execution.horizon'],
                prefetch=settings['execution.prefetch'],
                gap=settings['episode_gap'],
            ),
            self._on_failure,
        )

    def start(self) -> None:
        """Start the simulation."""
        self._episodes.start()

    def close(self) -> None:
        """Stop the simulation."""
        self._episodes.stop(timeout=1.2)

    # -- Link, called in the simulation thread -------------------------------------------------
    def ready(self) -> bool:
        """Whether a policy takes data and gives chunks."""
        chunks = self.count_publishers(self.resolve_topic_name('action_chunk'))
        there = chunks > 0 and all(
            publisher.get_subscription_count() for publisher in (self._joints, self._pose)
        )
        if not there:
            self.get_logger().info('waiting for a policy', throttle_duration_sec=5.0)
        return there

    def next_plan(self, robot: SimulatedRobot, requested: bool) -> Plan | None:
        """The episode that was asked for, or the next of the schedule, or None."""
        self._prepare(robot)
        if not requested and self._left == 0:
            return None
        if requested:
            self._left = 0  # whoever asks for episodes drives from now on
        sweep = self.settings['schedule'] == 'sweep' and not requested
        try:
            if sweep and self._plan is not None:
                task = (self._plan.task + 1) % len(robot.tasks)
                state = (self._plan.initial_state + (task == 0)) % robot.n_initial_states
            else:
                task = robot.task_index(self._value('task') or 0)
                state = self._value('initial_state')
        except ValueError as error:
            self.get_logger().error(str(error))
            self._left = 0
            return None
        self._left -= self._left > 0
        self._plan = Plan(task, state, self._value('max_steps'))
        return self._plan

    def every_step(self) -> bool:
        """As the parameter says."""
        return self._value('publish_every_step')

    def clock(self, stamp: int) -> None:
        """Publish /clock."""
        self._clock_publisher.publish(ClockMessage(clock=to_time(stamp)))

    def observation(self, robot: SimulatedRobot, observation: SimObservation, stamp: int) -> None:
        """Publish the sensors."""
        base = self.settings['base_frame']
        positions = [*observation.joint_positions, *observation.finger_positions]
        self._joints.publish(joint_message(robot.joint_names, positions, stamp))
        self._pose.publish(
            pose_message(observation.ee_position, observation.ee_quaternion, stamp, base)
        )
        transforms = []
        for camera in robot.cameras:
            frame = f'{camera.name}_optical_frame'
            self._infos[camera.name].publish(camera_info_message(camera, stamp, frame))
            self._images[camera.name].publish(
                image_message(observation.images[camera.name], stamp, frame)
            )
            if self._tf is not None:
                transforms.append(_transform(robot.camera_pose(camera.name), stamp, base, frame))
        if self._tf is not None:
            from tf2_msgs.msg import TFMessage

            self._tf.publish(TFMessage(transforms=transforms))

    def request(self, executed: np.ndarray, stamp: int) -> None:
        """Ask for a chunk and report what led here."""
        self._executed.publish(executed_message(executed, stamp, self._period))

    def chunk(self, timeout: float) -> tuple[int, np.ndarray] | None:
        """The next chunk that arrived."""
        try:
            if timeout <= 0.0:
                return self._inbox.get_nowait()
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None

    def instruct(self, text: str) -> None:
        """Publish the instruction; wait until the readers have it, as topics keep no order."""
        self._instruction.publish(String(data=text))
        self._instruction.wait_for_all_acked(ACKNOWLEDGED)
        self._text = text

    def report(self, status: EpisodeStatus, stamp: int) -> None:
        """Publish the episode's status."""
        if status.state == 'done':
            self._text = None
            self.get_logger().info(
                f'episode {status.episode}: {status.task}, state {status.initial_state}: '
                f'{status.result} after {status.step} steps'
            )
        self._episode.publish(
            values_message(
                f'{self.get_name()}: episode',
                asdict(status),
                stamp,
                summary=status.result or status.state,
            )
        )

    # -- callbacks -----------------------------------------------------------------------------
    def _on_chunk(self, message: JointTrajectory) -> None:
        self._text = None
        try:
            actions = actions_from(message)
            if not len(actions):
                raise MessageError('no actions')
        except MessageError as error:
            self.get_logger().error(f'chunk refused: {error}', throttle_duration_sec=5.0)
            return
        if self._inbox.qsize() < INBOX:
            self._inbox.put((to_ns(message.header.stamp), actions))

    def _on_reset_episode(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        response.success = self._episodes.is_alive()
        response.message = str(self._episodes.restart())
        return response

    def _repeat_instruction(self) -> None:
        text = self._text
        if text is not None:
            self._instruction.publish(String(data=text))

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Refuse what cannot be applied; changes nothing."""
        try:
            for parameter in parameters:
                if parameter.name in self._specs:
                    self._specs[parameter.name].check(parameter.value)
                if parameter.name == 'task' and self._tasks and parameter.value:
                    self._check_task(parameter.value)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _check_task(self, task: str) -> None:
        names = [t.name for t in self._tasks]
        if task not in names and task not in map(str, range(len(names))):
            raise ValueError(f'unknown task {task!r}; tasks: {", ".join(names)}')

    # -- helpers -------------------------------------------------------------------------------
    def _prepare(self, robot: SimulatedRobot) -> None:
        """What can only be made once the robot is there."""
        if self._tasks:
            return
        self._period = round(NANOSECONDS / robot.control_hz)
        for camera in robot.cameras:
            self._images[camera.name] = self.create_publisher(
                Image, f'{camera.name}/image_raw', RELIABLE
            )
            self._infos[camera.name] = self.create_publisher(
                CameraInfo, f'{camera.name}/camera_info', RELIABLE
            )
        self._tasks = robot.tasks
        self.get_logger().info(f'suite {robot.suite} with {len(robot.tasks)} tasks is ready')

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _tf_publisher(self) -> Any:
        """The tf publisher; None where the message package is missing (ROS 2 from wheels)."""
        if importlib.util.find_spec('tf2_msgs') is None:
            self.get_logger().info('tf2_msgs is not installed: no tf')
            return None
        from tf2_msgs.msg import TFMessage

        return self.create_publisher(TFMessage, '/tf', QoSProfile(depth=100))

    def _on_failure(self, error: Exception) -> None:
        """The simulation broke down: the node cannot go on."""
        self.get_logger().fatal(f'simulation failed: {type(error).__name__}: {error}')
        self.failed = True
        self._stop.set()


def _transform(
    pose: tuple[np.ndarray, np.ndarray], stamp: int, parent: str, child: str
) -> TransformStamped:
    position, quaternion = pose
    message = TransformStamped(child_frame_id=child)
    message.header.stamp = to_time(stamp)
    message.header.frame_id = parent
    translation, rotation = message.transform.translation, message.transform.rotation
    translation.x, translation.y, translation.z = (float(v) for v in position)
    rotation.x, rotation.y, rotation.z, rotation.w = (float(v) for v in quaternion)
    return message


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(SimBridge, argv, 'sim_bridge', DESCRIPTION)
