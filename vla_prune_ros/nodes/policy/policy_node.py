# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb and node `policy_node`: camera images, robot state and an instruction to action chunks.

Life: configure loads the model and warms it up, activate subscribes to the data, deactivate stops
and forgets, cleanup frees the model. With `autostart` the first two happen at start-up. A
transition that fails is logged with its cause and leaves the node where it was.

Threads: the executor's callbacks store data; one worker does everything that touches the policy.
A parameter or a reset that was acknowledged is in force from the next inference.

Executed actions: an executor that reports on `executed_actions` what it really did, stamped with
the observation that followed, feeds the history; with `trigger: request` such a message is also
what asks for a chunk. A chunk that was asked for again is sent again, not computed again.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, NoReturn

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import MatchedSet
from vla_prune_ros.nodes.policy.health import Health
from vla_prune_ros.nodes.policy.inference import Answer, Inference
from vla_prune_ros.nodes.policy.inputs import Arrival, Inputs
from vla_prune_ros.nodes.policy.loading import hardware
from vla_prune_ros.nodes.policy.outputs import Outputs
from vla_prune_ros.nodes.policy.overlay import Overlay
from vla_prune_ros.nodes.policy.parameters import (
    POLICY,
    PolicyConfig,
    clean_instruction,
    pruning_choice,
    pruning_specs,
)
from vla_prune_ros.nodes.policy.trigger import Tick
from vla_prune_ros.ros.diagnostics import Diagnostics
from vla_prune_ros.ros.messages import LATCHED, RELIABLE
from vla_prune_ros.ros.parameter_service import BatchParameterService
from vla_prune_ros.ros.parameters import declare, report_unknown
from vla_prune_ros.ros.process import StopRequestedError, run_node, wait_for

DESCRIPTION = 'ROS 2 node vla_policy: camera images, state and an instruction to action chunks.'
WATCH_PERIOD = 0.2  # s of wall clock


def reported(transition: Callable) -> Callable:
    """A transition that says why it fails; rclpy would go to an error state without a word."""

    @wraps(transition)
    def guarded(self: PolicyNode, state: LifecycleState) -> TransitionCallbackReturn:
        name = transition.__name__.removeprefix('on_')
        try:
            return transition(self, state)
        except StopRequestedError:
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.get_logger().error(f'{name} failed: {type(error).__name__}: {error}')
            return TransitionCallbackReturn.FAILURE

    return guarded


class PolicyNode(LifecycleNode):
    """The policy as a node; see the module's text."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__('vla_policy', start_parameter_services=False)
        self._stop = stop
        self._specs = {spec.name: spec for spec in (*POLICY, *pruning_specs())}
        self.config = PolicyConfig.from_values(declare(self, self._specs.values()))
        report_unknown(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self._parameter_service = BatchParameterService(self, self._apply_parameters)

        self.failed = False
        self.state = 'unconfigured'
        self.enabled = self.config.enabled
        self.instruction = ''
        if self.config.default_instruction.strip():
            self.instruction = clean_instruction(self.config.default_instruction)
        self.chunk_len = 0
        self.last_chunk: Any = None
        self._overdue = False

        self.inputs = Inputs(self, self.config, self._on_tick, self._on_executed, self._on_frame)
        self._outputs = Outputs(self)
        self.inference = Inference(
            lambda: self.config,
            lambda: self.get_clock().now().nanoseconds,
            self.get_logger(),
            self._on_answer,
            self._on_change,
            stop,
        )
        self._overlay = Overlay(self, self.config, lambda: self._patches_per_view)
        self._patches_per_view = 0
        period = self.config.diagnostic_updater_period
        Diagnostics(self, period, lambda: self._outputs.hardware, Health(self).tasks)
        # Before the model loads. A latched reader does not match a volatile writer (ros2 topic
        # pub), and a volatile reader misses what was latched before it came: so both.
        expected = SubscriptionEventCallbacks(use_default_callbacks=False)
        for qos in (RELIABLE, LATCHED):
            self.create_subscription(
                String, 'instruction', self._on_instruction, qos, event_callbacks=expected
            )
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(SetBool, '~/set_enabled', self._on_set_enabled)
        # Sim time may stand still, a watchdog may not.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(WATCH_PERIOD, self._watch, clock=steady)

    # -- life ----------------------------------------------------------------------------------
    def start(self) -> None:
        """Configure and activate, if `autostart` says so."""
        success = TransitionCallbackReturn.SUCCESS
        if self.config.autostart and self.trigger_configure() == success:
            self.trigger_activate()

    def close(self) -> None:
        """Stop for good, even if the model is still busy."""
        self.inference.close()

    def destroy_node(self) -> None:
        """Let go of DDS at once: rclpy's state machine would hold the node's handle."""
        super().destroy_node()
        self._state_machine = None  # type: ignore[assignment]

    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and run it once."""
        self.get_logger().info(f'loading {self.config.checkpoint or "the embedded policy"}')
        started = time.monotonic()
        wait_for(self.inference.load(), self._stop)
        self.get_logger().info(
            f'ready after {time.monotonic() - started:.1f} s on {self._outputs.hardware}'
        )
        self.state = 'inactive'
        return super().on_configure(state)

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to take data."""
        self.inference.pardon()
        self.inference.clock_may_lag = self.get_parameter('use_sim_time').value
        try:
            self.inputs.subscribe()
        except Exception:
            self.inputs.unsubscribe()
            raise
        report_unknown(self, qos=True)
        result = super().on_activate(state)  # the publisher may publish from here on
        self.state = 'active'
        self.inference.open(self.enabled)
        return result

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking data and forget."""
        self.state = 'inactive'
        self.inference.open(False)
        self.inputs.unsubscribe()
        self._forget('deactivate')
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model."""
        self.state, self.last_chunk = 'unconfigured', None
        wait_for(self.inference.free(), self._stop)
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the process: a node that is finalised can do nothing more."""
        self.state = 'finalized'
        self.inference.open(False)
        self._stop.set()
        return super().on_shutdown(state)

    # -- data in -------------------------------------------------------------------------------
    @property
    def _takes_data(self) -> bool:
        return self.state == 'active' and self.enabled

    def _on_tick(self, tick: Tick, arrival: Arrival) -> None:
        """An observation wants a chunk."""
        if not self._takes_data:
            return
        if not self.instruction:
            self.get_logger().warning('waiting for an instruction', throttle_duration_sec=5.0)
            return
        self.inference.offer(replace(tick, instruction=self.instruction), arrival.convert_ms)

    def _on_frame(self, frame: MatchedSet) -> None:
        if self._takes_data:
            self.inference.glimpse(frame)

    def _on_executed(self, stamp: int, executed: Executed) -> None:
        known = self.inference.knows(stamp)
        if known == 'new':
            self.inputs.add_executed(stamp, executed)
        elif known == 'answered' and self._takes_data:
            self._outputs.repeat()
        elif known == 'unanswered' and self._takes_data:
            self.inference.retry(self.instruction)

    def _on_instruction(self, message: String) -> None:
        try:
            text = clean_instruction(message.data)
        except ValueError as error:
            self.inputs.streams.broken('instruction')
            self.get_logger().warning(str(error))
            return
        if text != self.instruction:
            self.get_logger().info(f'instruction: {text}')
            self.instruction = text
            self._publish_info()

    # -- services and parameters ---------------------------------------------------------------
    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._forget('reset')
        response.success = self.inference.policy is not None
        response.message = 'history cleared' if response.success else 'no policy is loaded'
        return response

    def _on_set_enabled(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        self.enabled = request.data
        self.inference.open(self._takes_data)
        self._forget('enabled')
        response.success = True
        response.message = 'enabled' if request.data else 'disabled: no chunks are published'
        self.get_logger().info(response.message)
        return response

    def _forget(self, reason: str) -> None:
        """Empty everything that reaches from one inference into the next."""
        self.inputs.clear()
        self.inference.forget(reason)

    def _values(self) -> dict[str, Any]:
        return {name: self.get_parameter(name).value for name in self._specs}

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Refuse what cannot be applied; changes nothing."""
        changed = {p.name: p.value for p in parameters if p.name in self._specs}
        try:
            for name, value in changed.items():
                self._specs[name].check(value)
            self._check_pruning(changed)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _check_pruning(self, changed: dict[str, Any]) -> None:
        """ValueError if a pruning mode that would be affected cannot be made."""
        touched = {name.split('.')[1] for name in changed if name.startswith('pruning.')}
        policy = self.inference.policy
        if not touched or policy is None:
            return
        from vla_prune_ros.pruning import make_selector

        values = self._values() | changed
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # nothing runs on these selectors
            for mode in touched - {'mode'} | {values['pruning.mode']}:
                name, options = pruning_choice(values, mode)
                make_selector(name, policy.config, **options)

    def _apply_parameters(self) -> None:
        """Put what was set into force as a whole, from the next inference on."""
        self.config = PolicyConfig.from_values(self._values())
        self.inputs.streams.timeout = self.config.stream_timeout
        self.inference.follow()

    # -- called in the worker's thread -----------------------------------------------------------
    def _on_answer(self, answer: Answer) -> None:
        publish_ms = self._outputs.chunk(answer, self.config)
        self.last_chunk = answer.chunk
        self._overlay.show(answer)
        total = (time.perf_counter() - answer.offered) * 1e3 + answer.stages['convert']
        stages = answer.stages | {'publish': publish_ms}
        policy_ms = answer.chunk.timing['total']
        self.inference.latency.add({'total': total, 'policy': policy_ms}, cold=answer.cold)
        counts = {'superseded': self.inference.superseded} | self.inputs.counts()
        counts |= {f'dropped.{cause}': n for cause, n in self.inference.counts.items()}
        self._outputs.statistics(answer, stages, counts)

    def _on_change(self) -> None:
        """The policy was loaded or its mode changed."""
        policy = self.inference.policy
        self._outputs.hardware = hardware(policy)
        self.chunk_len = policy.config.chunk_len
        self._patches_per_view = policy.config.patches_per_view
        if note := policy.info()['note']:
            self.get_logger().warning(f'mode {policy.settings.mode}: {note}')
        self._publish_info()

    def _publish_info(self) -> None:
        policy = self.inference.policy
        if policy is not None:
            self._outputs.info(policy, self.instruction, self.config)

    # -- watchdog ------------------------------------------------------------------------------
    def _watch(self) -> None:
        """Report streams that come and go and an inference that hangs; give up after failures."""
        if self.state != 'active':
            return
        inference, config = self.inference, self.config
        asked = config.trigger == 'request'
        self.inputs.watch(waited_for=asked and inference.busy_for > 0)
        overdue = bool(config.inference_timeout) and inference.busy_for > config.inference_timeout
        if overdue and not self._overdue:
            self.get_logger().error(
                f'an inference takes longer than {config.inference_timeout:g} s; '
                'its chunk will be dropped'
            )
        self._overdue = overdue
        if inference.exhausted:
            self.get_logger().error(
                f'deactivating after {inference.failures} failures in a row: '
                f'{inference.last_error}'
            )
            self.trigger_deactivate()


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(PolicyNode, argv, 'policy_node', DESCRIPTION)
