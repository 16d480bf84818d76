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
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.timer import Timer
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.execution.supervisor import HOLDING, IDLE, RUNNING, STOPPED
from vla_prune_ros.nodes.robot.chunks import ChunkGate
from vla_prune_ros.nodes.robot.control import Control
from vla_prune_ros.nodes.robot.parameters import ANY_TIME, ROBOT, RobotConfig
from vla_prune_ros.nodes.robot.pilot import Pilot
from vla_prune_ros.nodes.robot.reports import Reports
from vla_prune_ros.ros.diagnostics import Diagnostics
from vla_prune_ros.ros.messages import (
    LATCHED,
    RELIABLE,
    MessageError,
    values_from,
    values_message,
)
from vla_prune_ros.ros.parameter_service import BatchParameterService
from vla_prune_ros.ros.parameters import ParameterError, declare, report_unknown
from vla_prune_ros.ros.process import run_node
from vla_prune_ros.ros.throttle import Throttled

DESCRIPTION = 'ROS 2 node robot_bridge: plays the chunks of a policy on a robot arm.'


class RobotBridge(LifecycleNode):
    """The robot as the policy knows it, and the policy as the robot knows it."""

    def __init__(self, stop: threading.Event, **options: Any) -> None:
        super().__init__('robot_bridge', start_parameter_services=False, **options)
        self._stop = stop
        self.failed = False
        self._specs = {spec.name: spec for spec in ROBOT}
        self.config = RobotConfig.from_values(declare(self, ROBOT))
        report_unknown(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self._parameter_service = BatchParameterService(self, self._apply_parameters)
        self.warn = Throttled(lambda text: self.get_logger().warning(text))
        self.gate = ChunkGate(self.config)
        self.pilot = Pilot(self.config, self._on_change, self.warn)
        self.control: Control | None = None
        self._instruction: str | None = None
        self._timer: Timer | None = None
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
        if self.control is not None:
            self.control.disable('the node ends', wait=True)

    def destroy_node(self) -> None:
        """Let go of DDS at once: rclpy's state machine would hold the node's handle."""
        super().destroy_node()
        self._state_machine = None  # type: ignore[assignment]

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Make everything that talks to the robot and to the policy."""
        if self.control is not None:  # was configured before; what it reads cannot have changed
            return super().on_configure(state)
        try:
            self.control = Control(self)
        except Exception as error:
            self.get_logger().error(f'configure failed: {error}')
            return TransitionCallbackReturn.FAILURE
        self.create_subscription(JointTrajectory, 'action_chunk', self._on_chunk, RELIABLE)
        self.create_subscription(DiagnosticArray, 'vla_policy/policy_info', self._on_info, LATCHED)
        for qos in (RELIABLE, LATCHED):  # whatever the writer is
            self.create_subscription(String, 'instruction', self._on_instruction, qos)
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the timer. Nothing moves before `~/set_enabled`."""
        assert self.control is not None  # made by on_configure
        self.control.restart()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(
            1.0 / self.config['command_rate'], self.control.on_timer, clock=steady
        )
        anchor = '' if self.config.joints else f', anchor {self.config.anchor}'
        self.get_logger().info(
            f'output {self.config["output"]}{anchor}'
            + (', dry run: no commands are published' if self.config['dry_run'] else '')
        )
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold still, then end the timer."""
        if self.control is not None:
            self.control.disable('deactivated', wait=True)
        if self._timer is not None:
            self.destroy_timer(self._timer)
        self._timer = None
        return super().on_deactivate(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the process."""
        self._stop.set()
        return super().on_shutdown(state)

    # -- callbacks -----------------------------------------------------------------------------
    def _on_chunk(self, message: JointTrajectory) -> None:
        now_ns = self.get_clock().now().nanoseconds
        try:
            if self.control is not None and self.control.around.chunk_sources() > 1:
                self.gate.refused['source'] += 1
                raise MessageError('more than one node publishes chunks')
            stamp, actions = self.gate.check(message, now_ns, self.pilot.since)
        except MessageError as error:
            self.warn('chunk', f'chunk refused: {error}')
            return
        self.pilot.add(stamp, actions, time.monotonic(), now_ns)

    def _on_info(self, message: DiagnosticArray) -> None:
        self._take_policy(values_from(message))

    def _take_policy(self, values: dict[str, str] | None = None) -> None:
        """What the policy says of itself, or last said; while we move it must not change."""
        moving = self.pilot.supervisor.state in (HOLDING, RUNNING)
        before = self.gate.semantics
        self.gate.describe(values, kept=moving)
        semantics = self.gate.semantics
        if self.gate.misfit:
            self.get_logger().error(self.gate.misfit)
        elif semantics is not None and semantics != before:
            self.pilot.configure(self.config, semantics)
            self.get_logger().info(f'policy: {semantics.signature}')

    def _on_instruction(self, message: String) -> None:
        text = ' '.join(message.data.split())
        if self._instruction not in (None, text):
            self.clear(f'the instruction changed: {text}')
        self._instruction = text

    def clear(self, why: str) -> None:
        """Forget the plan; hold until there is a new one."""
        self.pilot.clear(why, self.get_clock().now().nanoseconds)
        if self.pilot.supervisor.state in (HOLDING, RUNNING):
            self.get_logger().warning(why)

    def _on_set_enabled(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        supervisor = self.pilot.supervisor
        if self._timer is None or self.control is None:
            response.message = 'the node is not active'
        elif not request.data:
            self.control.disable()
            response.success, response.message = True, supervisor.state
        else:
            reasons = self.control.enable()
            response.success = not reasons
            response.message = '; '.join(reasons) or supervisor.reason or supervisor.state
            if reasons:
                self.get_logger().warning(f'not enabled: {response.message}')
        return response

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.control is not None:
            self.control.stop('service', '~/stop was called')
        response.success, response.message = True, self.pilot.supervisor.state
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.pilot.supervisor.reset()
        self._take_policy()
        if self.control is not None:
            self.control.state.restart()
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
                    raise ParameterError(f'{name}: only in state idle, this is {state}')
            RobotConfig.from_values(self._values() | changed)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self) -> None:
        self.config = RobotConfig.from_values(self._values())
        if self.pilot.supervisor.state == IDLE:
            self.pilot.configure(self.config, self.gate.semantics)
            if self.control is not None:
                self.control.state.follow(self.config)
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
        self.publish_state()

    def publish_state(self) -> None:
        """Publish `~/state`."""
        supervisor = self.pilot.supervisor
        values = {'state': supervisor.state, 'reason': supervisor.reason, **self._reports.brief()}
        self._state_out.publish(
            values_message(
                f'{self.get_name()}: state', values, self.get_clock().now().nanoseconds,
                summary=supervisor.state,
            )
        )  # fmt: skip

    def log_warning(self, text: str) -> None:
        """For the parts that have no logger."""
        self.get_logger().warning(text)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(RobotBridge, argv, 'robot_bridge', DESCRIPTION)
