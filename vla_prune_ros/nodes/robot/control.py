# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What happens at every control step, and between two of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.execution.joints import JointCommand
from vla_prune_ros.execution.supervisor import HOLDING, RUNNING, Facts
from vla_prune_ros.nodes.robot.grippers import make_gripper
from vla_prune_ros.nodes.robot.outputs import OUTPUTS, Servo
from vla_prune_ros.nodes.robot.pose_state import PoseState
from vla_prune_ros.nodes.robot.reports import preview
from vla_prune_ros.nodes.robot.state import JointsState
from vla_prune_ros.nodes.robot.surroundings import Surroundings
from vla_prune_ros.ros.messages import NANOSECONDS, RELIABLE, executed_message

if TYPE_CHECKING:
    from vla_prune_ros.nodes.robot.robot_bridge import RobotBridge


class Control:
    """Everything that talks to the robot, and the steps that a timer at `command_rate` drives.

    Attributes:
        state: of the arm; `around`: what is around it.
        late: control steps in a row that came too late; `late_steps`: all of them.
    """

    def __init__(self, node: RobotBridge) -> None:
        """Make publishers and subscriptions.

        Raises:
            RuntimeError: a package that a parameter asks for is not installed.
        """
        config = node.config
        self._node, self._pilot = node, node.pilot
        self._servo = None
        if config['servo']:
            self._servo = Servo(node, config['servo'], config['output'], node.log_warning)
        self._gripper = make_gripper(node, config, node.warn)
        state: Any = JointsState if config.joints else PoseState
        self.state = state(node, config, node.warn)
        output: Any = OUTPUTS[config['output']]
        self._output = output(node, config)
        self.around = Surroundings(
            node, config, self._output.publishers.values(),
            lambda: self.stop('permit', 'permit is not given'), self._pilot.release,
        )  # fmt: skip
        self._executed_out = node.create_publisher(JointTrajectory, 'executed_actions', RELIABLE)
        self._preview_out = node.create_publisher(self._output.shown, '~/preview', RELIABLE)
        self.late = self.late_steps = 0
        self.restart()

    def restart(self) -> None:
        """The timer starts anew."""
        self._next = self._ticked = 0.0

    def stop(self, kind: str, reason: str) -> None:
        """A fault: hold still at once."""
        now = time.monotonic()
        self._pilot.supervisor.stop(kind, reason, now)
        self._pilot.hold(now, self.state.pose)

    def disable(self, reason: str = 'disabled', *, wait: bool = False) -> None:
        """Hold still, then be silent; `wait` for that, as no timer may come any more."""
        self._pilot.supervisor.disable(time.monotonic(), reason)
        self._pilot.hold(time.monotonic(), self.state.pose)
        while wait and self._pilot.supervisor.commands(time.monotonic()):
            self._send(time.monotonic())
            time.sleep(1.0 / self._node.config['command_rate'])

    def enable(self) -> list[str]:
        """Leave idle; the reasons why not, if there are any."""
        if self._pilot.supervisor.state in (HOLDING, RUNNING):
            return []
        now, now_ns = time.monotonic(), self._node.get_clock().now().nanoseconds
        self.around.look(now, at_once=True)
        self.state.forgive()
        reasons = self._pilot.supervisor.enable(self._facts(now, now_ns))
        if not reasons:
            self._pilot.clear('', now_ns)
            if self._servo is not None:
                self._servo.start()
        return reasons

    def on_timer(self) -> None:
        """A control step if one is due, and a command. Nothing that goes wrong here leaves."""
        now = time.monotonic()
        try:
            if now >= self._next:
                self._step(now)
            self._send(now)
        except Exception as error:
            self._pilot.release()
            text = f'a control step failed: {type(error).__name__}: {error}'
            self.stop('exception', text)
            self._node.warn('exception', text)

    def _step(self, now: float) -> None:
        period = self._node.config.period / NANOSECONDS
        if self._next and now > self._next + period:
            self.late, self.late_steps = self.late + 1, self.late_steps + 1
            self._node.warn('late', f'a control step came {1e3 * (now - self._next):.0f} ms late')
        else:
            self.late = 0
        self._next = now + period if now > self._next + period else self._next + period
        self._ticked = now
        now_ns = self._node.get_clock().now().nanoseconds
        if jump := self.around.clock_set(now_ns):
            self.state.restart()
            self._node.clear(f'the clock was set by {jump:+.2f} s')
        if self.around.look(now):
            self._node.publish_state()
        self.state.look()
        state = self._fly(now, now_ns)
        if (opens := self._pilot.open_or_close(now)) is not None:
            self._grip(opens)
        if self._gripper is not None:
            self._gripper.watch()
        self._ask(now, now_ns)
        if state == RUNNING and self._preview_out.get_subscription_count():
            self._preview_out.publish(self._preview(now_ns))

    def _preview(self, now_ns: int) -> Any:
        """Where the rest of the chunk leads."""
        if isinstance(self._pilot.command, JointCommand):
            return self._output.message(self._pilot.command)
        return preview(self._pilot, self.state, now_ns)

    def _fly(self, now: float, now_ns: int) -> str:
        """The step itself. While a simulated robot is put somewhere else nothing is commanded."""
        pilot, waits = self._pilot, bool(self.around.episode)
        if waits:
            self.state.forgive()
            if self.around.episode_begins(now):
                pilot.clear('a new episode', now_ns)
                pilot.gripper.forget()
        state = pilot.tick(self._facts(now, now_ns), now_ns, self.state.pose)
        if waits:
            pilot.release()
        return state

    def _facts(self, now: float, now_ns: int) -> Facts:
        state, config, around = self.state, self._node.config, self.around
        return Facts(
            now=now,
            pause=around.episode,
            pose_age=state.age('pose', now_ns),
            joints_age=state.age('joints', now_ns),
            outside=config.limits.outside(state.pose.position) if state.pose else 0.0,
            pose_fault=state.fault,
            misfit=self._node.gate.misfit,
            chunk_sources=around.sources,
            rivals=around.rivals,
            listeners=around.listeners,
            permit=around.permit,
            permit_age=around.permit_age(now),
            halted=self._servo.halted if self._servo else '',
            late=self.late,
        )

    def _send(self, now: float) -> None:
        """Publish where the arm should be now."""
        pilot, config = self._pilot, self._node.config
        command = pilot.command
        if command is None or config['dry_run'] or not pilot.supervisor.commands(now):
            self._output.forget()
            return
        pose = command.pose
        if pilot.supervisor.state == RUNNING and pilot.commander is not None:
            ahead = now - self._ticked + 1.0 / config['command_rate']
            pose = pilot.commander.between(ahead * NANOSECONDS / config.period) or pose
        stamp = self._node.get_clock().now().nanoseconds
        self._output.send(command, pose, stamp, self.state.base)

    def _grip(self, opens: bool) -> None:
        if self._gripper is not None and not self._node.config['dry_run']:
            self._gripper.move(self._node.config['gripper.open' if opens else 'gripper.closed'])

    def _ask(self, now: float, now_ns: int) -> None:
        """Report what was executed, which asks for a chunk."""
        fresh = round(self._node.config['request.freshness'] * NANOSECONDS)
        stamp = max(now_ns - fresh, self._pilot.earliest)
        executed = self._pilot.ask(now, stamp)
        semantics = self._node.gate.semantics
        if executed is None or semantics is None:
            return
        if self._node.config['dry_run']:
            executed = executed[:0]
        period, names = self._node.config.period, semantics.names
        self._executed_out.publish(executed_message(executed, stamp, period, names))
