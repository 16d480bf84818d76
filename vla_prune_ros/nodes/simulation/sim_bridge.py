# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb and node `sim_bridge`: a simulated robot in the place of a real one.

It publishes what a robot's drivers would (images, camera_info, joint_states, ee_pose, tf), the
instruction and `/clock`, and executes the chunks that come back. In lockstep mode time stands
still until the chunk for an observation is there; in realtime mode it does not wait.

Every observation for which a chunk is wanted is announced on `executed_actions`: a JointTrajectory
with the observation's stamp and the actions executed since the one before, at negative
`time_from_start`, in the units of the chunk. A policy with `trigger: request` answers exactly
those; any other policy may ignore them. A policy that wants to be asked again before a chunk is
over says so on `vla_policy/inference_stats`: `requery` is how many of its actions to play.

To drive it from outside start it with `episodes:=0`, set `task` and `initial_state`, call
`~/reset_episode` and wait for that episode to be done on `~/episode`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rosgraph_msgs.msg import Clock as ClockMessage
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.execution.playing import Execution
from vla_prune_ros.nodes.simulation.episodes import Episodes
from vla_prune_ros.nodes.simulation.inbox import Answer, Inbox
from vla_prune_ros.nodes.simulation.link import EpisodeStatus, Plan, Settings
from vla_prune_ros.nodes.simulation.parameters import BRIDGE
from vla_prune_ros.nodes.simulation.sensors import Sensors
from vla_prune_ros.ros.delivery import acknowledged, wait_acknowledged
from vla_prune_ros.ros.messages import (
    LATCHED,
    NANOSECONDS,
    PROMPT,
    RELIABLE,
    MessageError,
    actions_from,
    executed_message,
    requery_from,
    to_ns,
    to_time,
    values_message,
)
from vla_prune_ros.ros.parameters import declare, report_unknown
from vla_prune_ros.ros.process import run_node
from vla_prune_ros.sim import SimObservation, SimulatedRobot, Task, make_robot

DESCRIPTION = 'ROS 2 node sim_bridge: a simulated robot with cameras, clock and language tasks.'
ACKNOWLEDGED = 1.0  # s in which readers have what is said, if they are there at all
CONNECTING = 1.0  # s that a policy gets to connect to all topics once it is there
THROTTLE = 5.0  # s between two warnings of a kind
STATISTICS = 'vla_policy/inference_stats'
LIMITS = 16  # chunks whose early end may be known before they come


class SimBridge(Node):
    """The simulated robot as a node; see the module's text."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__('sim_bridge')
        self._stop = stop
        self._specs = {spec.name: spec for spec in BRIDGE}
        settings = self.settings = declare(self, BRIDGE)
        report_unknown(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.failed = False
        self._tasks: tuple[Task, ...] = ()
        self._n_states = 0
        self._notice = ''  # what every result must say
        self._left = settings['episodes']
        self._plan: Plan | None = None  # the last one
        self._there_since = 0.0  # when a policy was first seen, in wall-clock time
        self._text: str | None = None  # instruction to repeat until the first chunk
        self._period = 0  # of the robot, ns; 0 until it is there
        self._inbox = Inbox()
        self._refused = 0
        self._limits: OrderedDict[int, int] = OrderedDict()  # stamp -> actions to play
        self._limits_follow = True  # whether statistics say so of every chunk; not known yet
        self._warned: dict[str, float] = {}

        self._clock_publisher = self.create_publisher(ClockMessage, '/clock', PROMPT)
        self._sensors = Sensors(self, settings['base_frame'], settings['publish_objects'])
        self._instruction = self.create_publisher(String, 'instruction', LATCHED)
        self._executed = self.create_publisher(JointTrajectory, 'executed_actions', PROMPT)
        self._episode = self.create_publisher(DiagnosticArray, '~/episode', LATCHED)
        self.create_subscription(DiagnosticArray, STATISTICS, self._on_stats, RELIABLE)
        self.create_subscription(JointTrajectory, 'action_chunk', self._on_chunk, RELIABLE)
        self.create_service(Trigger, '~/reset_episode', self._on_reset_episode)
        self.create_timer(
            1.0, self._repeat_instruction, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        options = {k: settings[k] for k in ('suite', 'assets') if settings[k]}
        self._episodes = Episodes(lambda: make_robot(settings['backend'], **options), self)

    def start(self) -> None:
        """Start the simulation."""
        self._episodes.start()

    def close(self) -> None:
        """Stop the simulation; what was said last is heard."""
        self._episodes.stop(timeout=1.2)
        wait_acknowledged(self._outlets, ACKNOWLEDGED)

    # -- Link, called in the simulation thread -------------------------------------------------
    def ready(self) -> bool:
        """Whether a policy takes data and gives chunks."""
        topic = self.resolve_topic_name('action_chunk')
        there = self.count_publishers(topic) > 0 and all(
            publisher.get_subscription_count() for publisher in self._sensors.state
        )
        if not there:
            self._there_since = 0.0
            self.get_logger().info('waiting for a policy', throttle_duration_sec=THROTTLE)
            return False
        self._there_since = self._there_since or time.monotonic()
        return self._connected(topic) or time.monotonic() > self._there_since + CONNECTING

    def _connected(self, chunks: str) -> bool:
        """Whether all that a policy listens to reaches it; or the first words could be lost."""
        policies = {_node_of(p) for p in self.get_publishers_info_by_topic(chunks)}
        publishers = (*self._sensors.publishers, self._instruction, self._executed)
        for publisher in publishers:
            readers = self.get_subscriptions_info_by_topic(publisher.topic_name)
            if publisher.get_subscription_count() < len(readers):
                return False
            if publisher in self._sensors.state and not policies & {_node_of(r) for r in readers}:
                return False
        return True

    def next_plan(self, robot: SimulatedRobot, requested: bool) -> Plan | None:
        """The episode that was asked for, or the next of the schedule, or None."""
        self._prepare(robot)
        if not requested and self._left == 0:
            return None
        if requested:
            self._left = 0  # whoever asks for episodes drives from now on
        sweep = self._value('schedule') == 'sweep' and not requested
        try:
            if sweep and self._plan is not None:
                task = (self._plan.task + 1) % len(robot.tasks)
                state = (self._plan.initial_state + (task == 0)) % robot.n_initial_states
            else:
                task = robot.task_index(self._value('task') or 0)
                state = self._value('initial_state')
                self._check_state(state)
        except ValueError as error:
            self.get_logger().error(str(error))
            self._left = 0
            return None
        self._left -= self._left > 0
        settings = self._episode_settings()
        self._inbox.latency = settings.latency
        self._plan = Plan(task, state, self._value('max_steps'), settings)
        return self._plan

    def _episode_settings(self) -> Settings:
        """The parameters that count from one episode to the next, as they are now."""
        return Settings(
            realtime=self._value('mode') == 'realtime',
            chunk_timeout=self._value('chunk_timeout'),
            gap=self._value('episode_gap'),
            latency=self._value('latency'),
            execution=Execution(
                self._value('execution.mode'),
                self._value('execution.horizon'),
                self._value('execution.prefetch'),
            ),
        )

    def every_step(self) -> bool:
        """As the parameter says."""
        return self._value('publish_every_step')

    def clock(self, stamp: int) -> None:
        """Publish /clock."""
        self._clock_publisher.publish(ClockMessage(clock=to_time(stamp)))

    def observation(self, robot: SimulatedRobot, observation: SimObservation, stamp: int) -> None:
        """Publish the sensors."""
        self._sensors.publish(robot, observation, stamp)

    def request(self, executed: np.ndarray, stamp: int) -> None:
        """Ask for a chunk and report what led here."""
        self._executed.publish(executed_message(executed, stamp, self._period))

    def delivered(self) -> bool:
        """Whether all who read reliably have what was published."""
        return acknowledged(self._outlets)

    @property
    def _outlets(self) -> tuple[Publisher, ...]:
        own = self._clock_publisher, self._instruction, self._executed, self._episode
        return *self._sensors.all, *own

    def chunk(self, timeout: float) -> Answer | None:
        """The next answer that arrived."""
        return self._inbox.get(timeout)

    def limits_follow(self) -> bool:
        """Whether the statistics of a policy say of every chunk how much of it is to be played."""
        name = self.resolve_topic_name(STATISTICS)
        return self._limits_follow and self.count_publishers(name) > 0

    def discard_chunks(self) -> None:
        """Forget what arrived."""
        self._inbox.clear()
        self._refused = 0

    def refused(self) -> int:
        """Chunks refused since `discard_chunks`."""
        return self._refused

    def warn(self, kind: str, text: str) -> None:
        """Log a warning, one of a kind every few seconds."""
        now = time.monotonic()
        if now - self._warned.get(kind, -THROTTLE) >= THROTTLE:
            self._warned[kind] = now
            self.get_logger().warning(text)

    def instruct(self, text: str) -> None:
        """Publish the instruction; wait until the readers have it, as topics keep no order."""
        self._instruction.publish(String(data=text))
        wait_acknowledged((self._instruction,), ACKNOWLEDGED)
        self._text = text

    def report(self, status: EpisodeStatus, stamp: int) -> None:
        """Publish the episode's status."""
        failed = status.result == 'error'
        if status.state == 'done':
            self._text = None
            text = (
                f'episode {status.episode}: {status.task}, state {status.initial_state}: '
                f'{status.result} after {status.step} steps {status.error}'
            ).rstrip() + self._notice
            log = self.get_logger().error if failed else self.get_logger().info
            log(text)
        self._episode.publish(
            values_message(
                f'{self.get_name()}: episode',
                asdict(status),
                stamp,
                summary=status.result or status.state,
                level=DiagnosticStatus.ERROR if failed else DiagnosticStatus.OK,
            )
        )

    def give_up(self, error: Exception) -> None:
        """The simulation broke down for good: the node cannot go on."""
        self.get_logger().fatal(f'simulation failed: {type(error).__name__}: {error}')
        self.failed = True
        self._stop.set()

    # -- callbacks -----------------------------------------------------------------------------
    def _on_chunk(self, message: JointTrajectory) -> None:
        self._text = None
        try:
            actions = actions_from(message)
            if not len(actions):
                raise MessageError('no actions')
            self._check_grid(message)
        except MessageError as error:
            self._refused += 1
            self.warn('refused', f'chunk refused: {error}')
            return
        stamp = to_ns(message.header.stamp)
        self._inbox.put(Answer(stamp, actions, self._limits.pop(stamp, 0)))

    def _check_grid(self, message: JointTrajectory) -> None:
        """MessageError unless the actions are meant for this robot's control rate."""
        if not self._period:
            raise MessageError('the simulation has not started')
        times = [to_ns(point.time_from_start) for point in message.points]
        if any(abs(t - k * self._period) > 0.1 * self._period for k, t in enumerate(times)):
            raise MessageError(
                f'time_from_start must be 0, {self._period / 1e6:g} ms, ...: set control_rate of '
                f'the policy to {NANOSECONDS / self._period:g} Hz'
            )

    def _on_stats(self, message: DiagnosticArray) -> None:
        """Before its chunk or after it: how much of the chunk is to be played."""
        limit = requery_from(message)
        self._limits_follow = limit is not None
        if limit is None:
            return
        stamp = to_ns(message.header.stamp)
        if limit:
            self._limits[stamp] = limit
            if len(self._limits) > LIMITS:
                self._limits.popitem(last=False)
        self._inbox.put(Answer(stamp, None, limit))

    def _on_reset_episode(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        response.success = self._episodes.is_alive()
        response.message = str(self._episodes.restart())
        return response

    def _repeat_instruction(self) -> None:
        text = self._text
        if text is not None and acknowledged((self._instruction,)):
            self._instruction.publish(String(data=text))

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Refuse what cannot be applied; changes nothing."""
        try:
            for parameter in parameters:
                if parameter.name in self._specs:
                    self._specs[parameter.name].check(parameter.value)
                if parameter.name == 'task' and self._tasks and parameter.value:
                    self._check_task(parameter.value)
                if parameter.name == 'initial_state' and self._tasks:
                    self._check_state(parameter.value)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _check_task(self, task: str) -> None:
        names = [t.name for t in self._tasks]
        if task not in names and task not in map(str, range(len(names))):
            raise ValueError(f'unknown task {task!r}; tasks: {", ".join(names)}')

    def _check_state(self, state: int) -> None:
        if state >= self._n_states:
            raise ValueError(f'initial_state {state} is outside 0..{self._n_states - 1}')

    # -- helpers -------------------------------------------------------------------------------
    def _prepare(self, robot: SimulatedRobot) -> None:
        """What can only be made once the robot is there."""
        self._sensors.prepare(robot)
        if not self._tasks:
            self._period = round(NANOSECONDS / robot.control_hz)
            self._tasks, self._n_states = robot.tasks, robot.n_initial_states
            self.get_logger().info(f'suite {robot.suite} with {len(robot.tasks)} tasks is ready')
            if robot.notice:
                self._notice = f' ({robot.notice})'
                self.get_logger().warning(robot.notice)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value


def _node_of(endpoint: TopicEndpointInfo) -> tuple[str, str]:
    return endpoint.node_namespace, endpoint.node_name


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(SimBridge, argv, 'sim_bridge', DESCRIPTION)
