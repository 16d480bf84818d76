# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb and node `robot_bridge`: plays the policy's chunks on an arm, and gives it the arm's state.

Everything that is about a particular robot is here and in its parameters: the state in the form
that the policy was trained on, chunks to commands, limits. It starts disabled and in dry run;
`~/set_enabled`, `~/stop` and `~/reset` need no working policy. None of it is a safety function:
emergency stop, speed and force limits are the robot's own.

Callbacks only store. One timer on a clock that never jumps does the rest: control steps at
`control_rate`, none made up for, and commands at `command_rate`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.execution.supervisor import HOLDING, IDLE, RUNNING, STOPPED, Facts
from vla_prune_ros.nodes.robot.chunks import ChunkGate
from vla_prune_ros.nodes.robot.grippers import make_gripper
from vla_prune_ros.nodes.robot.outputs import OUTPUTS, Servo
from vla_prune_ros.nodes.robot.parameters import ANY_TIME, ROBOT, RobotConfig
from vla_prune_ros.nodes.robot.pilot import Pilot
from vla_prune_ros.nodes.robot.reports import Reports, preview
from vla_prune_ros.nodes.robot.state import RobotState
from vla_prune_ros.ros.diagnostics import Diagnostics
from vla_prune_ros.ros.messages import (
    EPISODES,
    LATCHED,
    NANOSECONDS,
    RELIABLE,
    MessageError,
    executed_message,
    values_from,
    values_message,
)
from vla_prune_ros.ros.parameter_service import BatchParameterService
from vla_prune_ros.ros.parameters import declare, report_unknown
from vla_prune_ros.ros.process import run_node
from vla_prune_ros.ros.throttle import Throttled

DESCRIPTION = 'ROS 2 node robot_bridge: plays the chunks of a policy on a robot arm.'
LOOK = 0.2  # s between two looks at the graph
JUMP = 0.2  # s by which a clock may be set without our noticing
SETTLE = 0.3  # s after a simulated robot was put somewhere else


class RobotBridge(LifecycleNode):
    """The robot as the policy knows it, and the policy as the robot knows it."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__('robot_bridge', start_parameter_services=False)
        self._stop = stop
        self.failed = False
        self._specs = {spec.name: spec for spec in ROBOT}
        self.config = RobotConfig.from_values(declare(self, ROBOT))
        report_unknown(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self._parameter_service = BatchParameterService(self, self._apply_parameters)
        self.warn = Throttled(lambda text: self.get_logger().warning(text))
        self.gate = ChunkGate(self.config)
        self.pilot = Pilot(self.config, self._on_change)
        self.state: RobotState | None = None
        self.late = self.late_ticks = 0
        self.sources: tuple[str, ...] = ()
        self.rivals: tuple[str, ...] = ()
        self.listeners = 0
        self._permit: tuple[bool, float] | None = None  # and when it came
        self._servo: Servo | None = None
        self._instruction: str | None = None
        self._episode, self._settled = '', 0.0  # why to wait between episodes, and until when
        self._episode_number = ''
        self._offset: int | None = None  # ns between the clocks
        self._next = self._looked = self._ticked = 0.0
        self._timer = None
        self._state_out = self.create_publisher(DiagnosticArray, '~/state', LATCHED)
        self._reports = Reports(self)
        Diagnostics(
            self, self.config['diagnostic_updater.period'], lambda: '', self._reports.tasks
        )
        self.create_service(SetBool, '~/set_enabled', self._on_set_enabled)
        self.create_service(Trigger, '~/stop', self._on_stop)
        self.create_service(Trigger, '~/reset', self._on_reset)

    # -- life ----------------------------------------------------------------------------------
    def start(self) -> None:
        """Configure and activate, if `autostart` says so; ends the process if that fails."""
        success = TransitionCallbackReturn.SUCCESS
        if self.config['autostart'] and not (
            self.trigger_configure() == success and self.trigger_activate() == success
        ):
            self.failed = True
            self._stop.set()

    def close(self) -> None:
        """Hold still for `release_time`, then be silent."""
        self._halt('the node ends')

    def destroy_node(self) -> None:
        """Let go of DDS at once: rclpy's state machine would hold the node's handle."""
        super().destroy_node()
        self._state_machine = None

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Make everything that talks to the robot and to the policy."""
        config = self.config
        try:
            if config['output'] not in OUTPUTS:
                raise RuntimeError(f'output {config["output"]} is not there yet')
            self._output = OUTPUTS[config['output']](self, config.tool)
            self._gripper = make_gripper(
                self, config['gripper.type'], config['gripper.joint'],
                config['gripper.max_effort'], self.warn,
            )  # fmt: skip
            if config['servo']:
                self._servo = Servo(self, config['servo'], config['output'], self._log_warning)
            self.state = RobotState(self, config, self.warn)
        except Exception as error:
            self.get_logger().error(f'configure failed: {error}')
            return TransitionCallbackReturn.FAILURE
        self._executed_out = self.create_publisher(JointTrajectory, 'executed_actions', RELIABLE)
        self._preview_out = self.create_publisher(PoseArray, '~/preview', RELIABLE)
        self.create_subscription(JointTrajectory, 'action_chunk', self._on_chunk, RELIABLE)
        self.create_subscription(DiagnosticArray, 'vla_policy/policy_info', self._on_info, LATCHED)
        for qos in (RELIABLE, LATCHED):  # whatever the writer is
            self.create_subscription(String, 'instruction', self._on_instruction, qos)
            if config['permit.required']:
                self.create_subscription(Bool, 'permit', self._on_permit, qos)
        if config['follow_episodes']:
            self.create_subscription(
                DiagnosticArray, config['follow_episodes'], self._on_episode, EPISODES
            )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the timer. Nothing moves before `~/set_enabled`."""
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(
            1.0 / self.config['command_rate'], self._on_timer, clock=steady
        )
        self.get_logger().info(
            f'output {self.config["output"]}, anchor {self.config.anchor}'
            + (', dry run: no commands are published' if self.config['dry_run'] else '')
        )
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold still, then end the timer."""
        self._halt('deactivate')
        self.pilot.supervisor.reset()
        self.destroy_timer(self._timer)
        return super().on_deactivate(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the process."""
        self._stop.set()
        return super().on_shutdown(state)

    def _halt(self, reason: str) -> None:
        supervisor = self.pilot.supervisor
        if supervisor.state in (HOLDING, RUNNING):
            supervisor.stop('end', reason, time.monotonic())
        while self.state is not None and supervisor.commands(time.monotonic()):
            self.pilot.hold(time.monotonic(), self.state.pose)
            self._send(time.monotonic())
            time.sleep(1.0 / self.config['command_rate'])

    # -- every control step --------------------------------------------------------------------
    def _on_timer(self) -> None:
        now = time.monotonic()
        try:
            if now >= self._next:
                self._tick(now)
            self._send(now)
        except Exception as error:
            text = f'{type(error).__name__}: {error}'
            self.get_logger().error(f'a control step failed: {text}', throttle_duration_sec=1.0)
            self.pilot.supervisor.stop('exception', f'a control step failed: {text}', now)

    def _tick(self, now: float) -> None:
        period = self.config.period / NANOSECONDS
        if self._next and now > self._next + period:
            self.late, self.late_ticks = self.late + 1, self.late_ticks + 1
            self.warn('late', f'a control step came {1e3 * (now - self._next):.0f} ms late')
        else:
            self.late = 0
        self._next = now + period if now > self._next + period else self._next + period
        self._ticked = now
        now_ns = self.get_clock().now().nanoseconds
        self._watch_clock(now_ns)
        if now - self._looked > LOOK:
            self._look(now)
        self.state.look()
        waits = self._between_episodes(now, now_ns)
        state = self.pilot.tick(self._facts(now, now_ns), now_ns, self.state.pose)
        if waits:
            self.pilot.release()
        if (opens := self.pilot.open_or_close(now)) is not None:
            self._grip(opens)
        if self._gripper is not None:
            self._gripper.watch()
        self._ask(now, now_ns)
        if state == RUNNING and self._preview_out.get_subscription_count():
            self._preview_out.publish(preview(self.pilot, self.state, now_ns))

    def _facts(self, now: float, now_ns: int) -> Facts:
        state, config = self.state, self.config
        permit, since = self._permit or (False, now)
        return Facts(
            now=now,
            pause=self._episode,
            pose_age=state.age('pose', now_ns),
            joints_age=state.age('joints', now_ns),
            outside=config.limits.outside(state.pose.position) if state.pose else 0.0,
            pose_fault=state.fault,
            misfit=self.gate.misfit,
            chunk_sources=self.sources,
            rivals=self.rivals,
            listeners=self.listeners,
            permit=permit if config['permit.required'] else None,
            permit_age=now - since,
            halted=self._servo.halted if self._servo else '',
            late=self.late,
        )

    def _send(self, now: float) -> None:
        """Publish where the arm should be now."""
        pilot, config = self.pilot, self.config
        command = pilot.command
        if command is None or config['dry_run'] or not pilot.supervisor.commands(now):
            return
        pose = command.pose
        if pilot.supervisor.state == RUNNING:
            ahead = now - self._ticked + 1.0 / config['command_rate']
            pose = pilot.commander.between(ahead * NANOSECONDS / config.period)
        stamp = self.get_clock().now().nanoseconds
        self._output.send(command, pose, stamp, self.state.base)

    def _grip(self, opens: bool) -> None:
        if self._gripper is not None and not self.config['dry_run']:
            self._gripper.move(self.config['gripper.open' if opens else 'gripper.closed'])

    def _ask(self, now: float, now_ns: int) -> None:
        """Report what was executed, which asks for a chunk."""
        executed = self.pilot.ask(now)
        if executed is None:
            return
        if self.config['dry_run']:
            executed = executed[:0]
        stamp = now_ns - round(self.config['request.freshness'] * NANOSECONDS)
        self._executed_out.publish(executed_message(executed, stamp, self.config.period))

    def _watch_clock(self, now_ns: int) -> None:
        offset = now_ns - time.monotonic_ns()
        last, self._offset = self._offset, offset
        if last is None or self.get_parameter('use_sim_time').value:
            return
        if abs(offset - last) > JUMP * NANOSECONDS:
            self.state.restart()
            self._clear(f'the clock was set by {(offset - last) / NANOSECONDS:+.2f} s')

    def _look(self, now: float) -> None:
        """Who else is there."""
        self._looked = now
        self.sources = self._names('action_chunk', own=False)
        self.rivals = self._names(self._output.topic, own=True)
        self.listeners = self._output.publisher.get_subscription_count()
        self._publish_state()

    def _names(self, topic: str, *, own: bool) -> tuple[str, ...]:
        """Nodes that publish a topic; with `own` we are one of them, and left out."""
        infos = self.get_publishers_info_by_topic(self.resolve_topic_name(topic))
        names = [f'{i.node_namespace.rstrip("/")}/{i.node_name}' for i in infos]
        if own and self.get_fully_qualified_name() in names:
            names.remove(self.get_fully_qualified_name())
        return tuple(sorted(names))

    def _between_episodes(self, now: float, now_ns: int) -> bool:
        """Whether a simulated robot is being put somewhere else."""
        if not self._episode:
            return False
        self.state.forgive()
        if self._settled and now > self._settled:
            self._episode, self._settled = '', 0.0
            self.pilot.clear('a new episode', now_ns)
            self.pilot.gripper.forget()
        return True

    # -- callbacks -----------------------------------------------------------------------------
    def _on_chunk(self, message: JointTrajectory) -> None:
        now_ns = self.get_clock().now().nanoseconds
        try:
            if self.count_publishers(self.resolve_topic_name('action_chunk')) > 1:
                self.gate.refused['source'] += 1
                raise MessageError('more than one node publishes chunks')
            stamp, actions = self.gate.check(message, now_ns, self.pilot.since)
        except MessageError as error:
            self.warn('chunk', f'chunk refused: {error}')
            return
        self.pilot.add(stamp, actions, time.monotonic(), now_ns)

    def _on_info(self, message: DiagnosticArray) -> None:
        values = values_from(message)
        idle = self.pilot.supervisor.state not in (HOLDING, RUNNING)
        before = self.gate.semantics
        self.gate.describe(values, kept=not idle)
        if self.gate.misfit:
            self.get_logger().error(self.gate.misfit)
        elif self.gate.semantics != before:
            self.pilot.configure(self.config, self.gate.semantics)
            self.get_logger().info(f'policy: {self.gate.semantics.signature}')

    def _on_instruction(self, message: String) -> None:
        text = ' '.join(message.data.split())
        if self._instruction not in (None, text):
            self._clear(f'the instruction changed: {text}')
        self._instruction = text

    def _on_permit(self, message: Bool) -> None:
        self._permit = message.data, time.monotonic()
        if not message.data:
            self._stop_now('permit', 'permit is not given')

    def _on_episode(self, message: DiagnosticArray) -> None:
        status = values_from(message)
        if status.get('state') == 'done':
            self._episode, self._settled = 'the episode is over', 0.0
        elif status.get('episode') != self._episode_number:
            self._episode_number = status.get('episode', '')
            self._episode, self._settled = 'a new episode', time.monotonic() + SETTLE
        if self._episode:
            self.pilot.release()

    def _clear(self, why: str) -> None:
        """Forget the plan; hold until there is a new one."""
        self.pilot.clear(why, self.get_clock().now().nanoseconds)
        if self.pilot.supervisor.state in (HOLDING, RUNNING):
            self.get_logger().warning(why)

    def _stop_now(self, kind: str, reason: str) -> None:
        now = time.monotonic()
        self.pilot.supervisor.stop(kind, reason, now)
        if self.state is not None:
            self.pilot.hold(now, self.state.pose)

    def _on_set_enabled(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        now, supervisor = time.monotonic(), self.pilot.supervisor
        if not request.data:
            supervisor.disable(now)
            if self.state is not None:
                self.pilot.hold(now, self.state.pose)
            response.success, response.message = True, supervisor.state
            return response
        if self._timer is None or self.state is None:
            response.message = 'the node is not active'
            return response
        now_ns = self.get_clock().now().nanoseconds
        self._look(now)
        self.state.forgive()
        was = supervisor.state
        reasons = supervisor.enable(self._facts(now, now_ns))
        if not reasons and was == IDLE:
            self.pilot.clear('', now_ns)
            if self._servo is not None:
                self._servo.start()
        response.success = not reasons
        response.message = '; '.join(reasons) or supervisor.reason or supervisor.state
        if reasons:
            self.get_logger().warning(f'not enabled: {response.message}')
        return response

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._stop_now('service', '~/stop was called')
        response.success, response.message = True, self.pilot.supervisor.state
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.state is not None:
            self.state.forgive()
        self.pilot.supervisor.reset()
        response.success = self.pilot.supervisor.state == IDLE
        response.message = self.pilot.supervisor.state
        return response

    # -- parameters and reports ----------------------------------------------------------------
    def _values(self) -> dict[str, Any]:
        return {name: self.get_parameter(name).value for name in self._specs}

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Refuse what cannot be applied; changes nothing."""
        changed = {p.name: p.value for p in parameters if p.name in self._specs}
        state = self.pilot.supervisor.state
        try:
            for name, value in changed.items():
                self._specs[name].check(value)
                if state != IDLE and name not in ANY_TIME:
                    raise ValueError(f'{name}: only in state idle, this is {state}')
            RobotConfig.from_values(self._values() | changed)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self) -> None:
        self.config = RobotConfig.from_values(self._values())
        if self.pilot.supervisor.state == IDLE:
            self.pilot.configure(self.config, self.gate.semantics)
        else:
            self.pilot.follow(self.config)

    def _on_change(self, state: str, reason: str) -> None:
        log = self.get_logger()
        text = f'{state}: {reason}' if reason else state
        if state == STOPPED:
            log.error(text)
        elif state == HOLDING:
            log.warning(text)
        else:
            log.info(text)
        self._publish_state()

    def _publish_state(self) -> None:
        supervisor = self.pilot.supervisor
        values = {'state': supervisor.state, 'reason': supervisor.reason, **self._reports.brief()}
        self._state_out.publish(
            values_message(
                f'{self.get_name()}: state', values, self.get_clock().now().nanoseconds,
                summary=supervisor.state,
            )
        )  # fmt: skip

    def _log_warning(self, text: str) -> None:
        self.get_logger().warning(text)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(RobotBridge, argv, 'robot_bridge', DESCRIPTION)
