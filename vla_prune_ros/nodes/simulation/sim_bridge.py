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

`~/reset_episode` ends the running episode and starts one with `task` and `initial_state` as they
are now; it does not count among `episodes`, and the schedule goes on after it. To drive the bridge
from outside start it with `episodes:=0`, set both, call the service and wait for that episode to
be done on `~/episode`: its first status is the episode at hand, its second the last that ended.
"""

from __future__ import annotations

import threading
import time
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
from vla_prune_ros.nodes.simulation.answers import STATISTICS, Answers
from vla_prune_ros.nodes.simulation.episodes import Episodes
from vla_prune_ros.nodes.simulation.link import EpisodeStatus, Plan, Settings
from vla_prune_ros.nodes.simulation.parameters import BRIDGE, check_shift
from vla_prune_ros.nodes.simulation.sensors import Sensors
from vla_prune_ros.ros.delivery import acknowledged, wait_acknowledged
from vla_prune_ros.ros.messages import (
    LATCHED,
    NANOSECONDS,
    PROMPT,
    executed_message,
    to_time,
    values_message,
)
from vla_prune_ros.ros.parameters import ParameterError, declare, report_unknown
from vla_prune_ros.ros.process import run_node
from vla_prune_ros.ros.throttle import Throttled
from vla_prune_ros.sim import SimObservation, SimulatedRobot, make_robot
from vla_prune_ros.sim.shifts import ShiftedRobot

DESCRIPTION = 'ROS 2 node sim_bridge: a simulated robot with cameras, clock and language tasks.'
ACKNOWLEDGED = 1.0  # s in which readers have what is said, if they are there at all
CONNECTING = 1.0  # s that a policy gets to connect to all topics once it is there


class SimBridge(Node):
    """The simulated robot as a node; see the module's text."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__('sim_bridge')
        self._stop = stop
        self._specs = {spec.name: spec for spec in BRIDGE}
        settings = self.settings = declare(self, BRIDGE)
        check_shift(settings['shift'], settings)
        report_unknown(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.failed = False
        self._robot: SimulatedRobot | None = None
        self._notice = ''  # what every result must say
        self._left = settings['episodes']
        self._plan: Plan | None = None  # the last one
        self._there_since = 0.0  # when a policy was first seen, in wall-clock time
        self._text: str | None = None  # instruction to repeat until the first chunk
        self._ended: DiagnosticStatus | None = None  # the last episode's end
        self._idle = self._recorded = False
        self.warn = Throttled(lambda text: self.get_logger().warning(text))
        self._inform = Throttled(lambda text: self.get_logger().info(text))

        self._clock_publisher = self.create_publisher(ClockMessage, '/clock', PROMPT)
        self._sensors = Sensors(self, settings['base_frame'], settings['publish_objects'])
        self._instruction = self.create_publisher(String, 'instruction', LATCHED)
        self._executed = self.create_publisher(JointTrajectory, 'executed_actions', PROMPT)
        self._episode = self.create_publisher(DiagnosticArray, '~/episode', LATCHED)
        self._drives = settings['interface'] != 'chunk'
        self.answers = Answers(self, self._be_quiet, self.warn, listens=not self._drives)
        self.create_service(Trigger, '~/reset_episode', self._on_reset_episode)
        self.create_timer(
            1.0, self._repeat_instruction, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        options = {k: settings[k] for k in ('suite', 'assets') if settings[k]}
        if self._drives:
            from vla_prune_ros.nodes.simulation.driver import driver_episodes

            self._episodes: Episodes = driver_episodes(self, self._sensors, settings)
        else:
            backend = settings['backend']
            self._episodes = Episodes(lambda: ShiftedRobot(make_robot(backend, **options)), self)

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
            self._inform('policy', 'waiting for a policy')
            return False
        if missing := self._unheard():
            topics = ', '.join(sorted(missing))
            self._inform('recorder', f'waiting for {self.settings["recorder"]} to hear {topics}')
            return False
        self._there_since = self._there_since or time.monotonic()
        return self._connected(topic) or time.monotonic() > self._there_since + CONNECTING

    def _unheard(self) -> set[str]:
        """Topics that the recorder that was announced does not hear and never heard all of."""
        name, missing = self.settings['recorder'], set()
        if name and not self._recorded:
            own = {p.topic_name for p in (*self._sensors.recorded, self._executed)}
            others = map(self.resolve_topic_name, ('action_chunk', STATISTICS))
            missing = {
                topic
                for topic in own.union(t for t in others if self.count_publishers(t))
                if name not in {r.node_name for r in self.get_subscriptions_info_by_topic(topic)}
            }
            self._recorded = not missing
        return missing

    def _connected(self, chunks: str) -> bool:
        """Whether all that a policy listens to reaches it; or the first words could be lost."""
        policies = {_node_of(p) for p in self.get_publishers_info_by_topic(chunks)}
        for publisher in self._outlets:
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
            if not self._idle:
                done = 'all episodes are done' if self._plan else 'no episodes are planned'
                self.get_logger().info(f'{done}: ~/reset_episode starts one')
            self._idle = True
            return None
        self._idle = False
        if self._plan is not None and self._value('schedule') == 'sweep' and not requested:
            task = (self._plan.task + 1) % len(robot.tasks)
            state = (self._plan.initial_state + (task == 0)) % robot.n_initial_states
        else:
            task = robot.task_index(self._value('task') or 0)
            state = self._value('initial_state')
        self._left -= self._left > 0 and not requested
        shift = self._value('shift')
        if isinstance(robot, ShiftedRobot):  # the arm of a driver has none
            robot.change(shift, self._value('shift.seed'))
        settings = Settings(  # as they are now
            realtime=self._value('mode') == 'realtime',
            chunk_timeout=self._value('chunk_timeout'),
            gap=self._value('episode_gap'),
            latency=self._value('latency'),
            execution=Execution(
                *(self._value(f'execution.{name}') for name in ('mode', 'horizon', 'prefetch'))
            ),
        )
        self.answers.latency = settings.latency
        self._plan = Plan(task, state, self._value('max_steps'), settings, shift)
        return self._plan

    def every_step(self) -> bool:
        """As the parameter says."""
        return self._value('publish_every_step')

    def clock(self, stamp: int) -> None:
        """Publish /clock, but for a robot that lives by the wall clock."""
        if self._drives:
            return
        self._clock_publisher.publish(ClockMessage(clock=to_time(stamp)))

    def observation(self, robot: SimulatedRobot, observation: SimObservation, stamp: int) -> None:
        """Publish the sensors."""
        self._sensors.publish(robot, observation, stamp)

    def request(self, executed: np.ndarray, stamp: int) -> None:
        """Ask for a chunk and report what led here."""
        self._executed.publish(executed_message(executed, stamp, self.answers.period))

    def delivered(self) -> bool:
        """Whether all who read reliably have what was published."""
        return acknowledged(self._outlets)

    @property
    def _outlets(self) -> tuple[Publisher, ...]:
        own = self._clock_publisher, self._instruction, self._executed, self._episode
        return *self._sensors.all, *own

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
            if failed:  # on lines of their own: rclpy holds a line to its first severity
                self.get_logger().error(text)
            else:
                self.get_logger().info(text)
        message = values_message(
            f'{self.get_name()}: episode', asdict(status), stamp,
            summary=status.result or status.state,
            level=DiagnosticStatus.ERROR if failed else DiagnosticStatus.OK,
        )  # fmt: skip
        if status.state == 'done':
            self._ended = message.status[0]
        elif self._ended is not None:  # one message is kept: a busy reader may miss the end
            message.status.append(self._ended)
        self._episode.publish(message)

    def give_up(self, error: Exception) -> None:
        """The simulation broke down for good: the node cannot go on."""
        said = isinstance(error, ParameterError)
        text = f'{error}' if said else f'simulation failed: {type(error).__name__}: {error}'
        self.get_logger().fatal(text)
        self.failed = True
        self._stop.set()

    # -- callbacks -----------------------------------------------------------------------------
    def _on_reset_episode(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        response.success = self._episodes.is_alive()
        number = self._episodes.restart()
        response.message = f'episode {number} begins' if response.success else 'there is no robot'
        return response

    def _be_quiet(self) -> None:
        """The policy answers: it has the instruction."""
        self._text = None

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
                if parameter.name == 'shift':
                    check_shift(parameter.value, self.settings)
                if self._robot is not None:
                    _check_choice(self._robot, parameter.name, parameter.value)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    # -- helpers -------------------------------------------------------------------------------
    def _prepare(self, robot: SimulatedRobot) -> None:
        """What can only be made once the robot is there."""
        self._sensors.prepare(robot)
        if self._robot is None:
            self._robot = robot
            for name in ('task', 'initial_state'):
                _check_choice(robot, name, self._value(name))
            self.answers.period = round(NANOSECONDS / robot.control_hz)
            self.get_logger().info(f'suite {robot.suite} with {len(robot.tasks)} tasks is ready')
            if robot.notice:
                self._notice = f' ({robot.notice})'
                self.get_logger().warning(robot.notice)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value


def _node_of(endpoint: TopicEndpointInfo) -> tuple[str, str]:
    return endpoint.node_namespace, endpoint.node_name


def _check_choice(robot: SimulatedRobot, name: str, value: Any) -> None:
    """ParameterError if the robot has no such task or initial state."""
    n = robot.n_initial_states
    if name == 'initial_state' and value >= n:
        raise ParameterError(f'parameter initial_state: {value} is outside 0..{n - 1}')
    try:
        robot.task_index((name == 'task' and value) or 0)
    except ValueError as error:
        raise ParameterError(f'parameter task: {error}') from error


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(SimBridge, argv, 'sim_bridge', DESCRIPTION)
