# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb and node `policy_node`: camera images, robot state and an instruction to action chunks.

Life: configure loads the model and warms it up, activate subscribes to the data, deactivate stops
and forgets, cleanup frees the model. With `autostart` the first two happen at start-up. A
transition that fails is logged with its cause and leaves the node where it was. The executor never
waits for the model: services are answered while it loads, runs or hangs.

Threads: the executor's callbacks store data; one worker does everything that touches the policy.
A parameter or a reset that was acknowledged is in force from the next inference. What is asked for
and what may be answered is decided in `conversation`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial, wraps
from typing import Any, NoReturn

import rclpy.task
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from vla_prune_ros.nodes.policy.conversation import Conversation
from vla_prune_ros.nodes.policy.health import Health
from vla_prune_ros.nodes.policy.inference import Answer, Inference
from vla_prune_ros.nodes.policy.inputs import NO_EVENTS, Inputs
from vla_prune_ros.nodes.policy.instructions import clean_instruction
from vla_prune_ros.nodes.policy.loading import another_rate, hardware
from vla_prune_ros.nodes.policy.modes import check_pruning, pruning_specs
from vla_prune_ros.nodes.policy.outputs import Outputs
from vla_prune_ros.nodes.policy.overlay import Overlay
from vla_prune_ros.nodes.policy.parameters import POLICY, PolicyConfig
from vla_prune_ros.ros.diagnostics import Diagnostics
from vla_prune_ros.ros.messages import LATCHED, RELIABLE
from vla_prune_ros.ros.parameter_service import BatchParameterService
from vla_prune_ros.ros.parameters import declare, report_unknown
from vla_prune_ros.ros.process import run_node
from vla_prune_ros.ros.throttle import Throttled

DESCRIPTION = 'ROS 2 node vla_policy: camera images, state and an instruction to action chunks.'
WATCH_PERIOD = 0.2  # s of wall clock
SUCCESS = TransitionCallbackReturn.SUCCESS


def reported(transition: Callable) -> Callable:
    """A transition that says how it ends; rclpy would go to an error state without a word."""

    @wraps(transition)
    def guarded(self: PolicyNode, state: LifecycleState) -> TransitionCallbackReturn:
        name = transition.__name__.removeprefix('on_')
        try:
            result = transition(self, state)
        except Exception as error:
            self.get_logger().error(f'{name} failed: {type(error).__name__}: {error}')
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f'{name}: {self.state}')
        return result

    return guarded


class PolicyNode(LifecycleNode):
    """The policy as a node; see the module's text."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__('vla_policy', start_parameter_services=False)
        self._stop = stop
        self._specs = {spec.name: spec for spec in (*POLICY, *pruning_specs())}
        values = declare(self, self._specs.values())
        self.config = PolicyConfig.from_values(values)
        check_pruning(values, {})
        report_unknown(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self._parameter_service = BatchParameterService(self, self._apply_parameters)

        self.state = 'unconfigured'
        self.chunk_len = 0
        self.last_chunk: Any = None
        self._overdue = False
        self._once = Throttled(lambda text: self.get_logger().warning(text), period=math.inf)
        self._loading: Future | None = None
        self._begun = 0.0  # time.monotonic when loading began

        self._outputs = Outputs(self)
        warn = Throttled(lambda text: self.get_logger().warning(text))
        self._conversation = Conversation(self.config, self._outputs.repeat, warn)
        self._conversation.instruct(
            clean_instruction(self.config.default_instruction), lambda: None
        )
        self.inputs = Inputs(self, self.config, self._conversation)
        self.inference = Inference(
            lambda: self.config, self._conversation, self.get_clock(), self.get_logger(),
            self._on_answer, self._on_change, stop,
        )  # fmt: skip
        self.inference.start()
        self._overlay = Overlay(self, self.config, lambda: self._patches_per_view)
        self._patches_per_view = 0
        Diagnostics(
            self,
            self.config.diagnostic_updater_period,
            lambda: self._outputs.hardware,
            Health(self).tasks,
        )
        # Before the model loads. A latched reader does not match a volatile writer (ros2 topic
        # pub), and a volatile reader misses what was latched before it came: so both.
        for qos in (RELIABLE, LATCHED):
            self.create_subscription(
                String, 'instruction', self._on_instruction, qos, event_callbacks=NO_EVENTS
            )
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(SetBool, '~/set_enabled', self._on_set_enabled)
        # rclpy's own callback waits until the transition is over, and nobody is served meanwhile.
        service = self._service_change_state
        service.callback = partial(self._on_change_state, service.callback)
        service.callback_group = ReentrantCallbackGroup()
        # Sim time may stand still, a watchdog may not.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(WATCH_PERIOD, self._watch, clock=steady)

    @property
    def failed(self) -> bool:
        """Whether the process is to end with an error."""
        return self.inference.fatal

    @property
    def enabled(self) -> bool:
        """Whether chunks may leave."""
        return self._conversation.enabled

    @property
    def instruction(self) -> str:
        """The instruction in force; '' is none."""
        return self._conversation.instruction

    # -- life ----------------------------------------------------------------------------------
    def start(self) -> None:
        """Configure and activate as soon as the executor spins, if `autostart` says so."""
        if self.config.autostart:
            assert self.executor is not None  # it was added to one
            self.executor.create_task(self._start_up)

    async def _start_up(self) -> None:
        await self._load()
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def close(self) -> None:
        """Stop for good, even if the model is still busy."""
        self.inference.close()
        self._outputs.close()

    def destroy_node(self) -> None:
        """Let go of DDS at once: rclpy's state machine would hold the node's handle."""
        super().destroy_node()
        self._state_machine = None  # type: ignore[assignment]

    async def _on_change_state(
        self, plain: Callable, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Do what takes long in the worker, the transition itself in one step."""
        wanted = request.transition.label or request.transition.id
        configure = wanted in ('configure', Transition.TRANSITION_CONFIGURE)
        if configure and self.state == 'unconfigured':
            if self._loading is not None:
                self.get_logger().warning('configure refused: the model is being loaded')
                return response
            await self._load()
        response = plain(request, response)
        return response

    def _load(self) -> rclpy.task.Future:
        """Start to load the model; what it returns is done when it is loaded, or failed."""
        self.get_logger().info(f'loading {self.config.checkpoint or "the embedded policy"}')
        self._begun = time.monotonic()
        done: rclpy.task.Future = rclpy.task.Future(executor=self.executor)
        self._loading = self.inference.load()
        self._loading.add_done_callback(lambda _: done.set_result(None))
        return done

    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take the model that `_load` has loaded and run once."""
        loading, self._loading = self._loading, None
        assert loading is not None  # `_load` comes first
        loading.result()
        took = time.monotonic() - self._begun
        self.get_logger().info(f'ready after {took:.1f} s on {self._outputs.hardware}')
        self.state = 'inactive'
        return super().on_configure(state)

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to take data."""
        self.inference.pardon()
        try:
            self.inputs.subscribe()
        except Exception:
            self.inputs.unsubscribe()
            raise
        report_unknown(self, qos=True)
        result = super().on_activate(state)  # the publisher may publish from here on
        self.state = 'active'
        self._conversation.activate()
        return result

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking data and forget."""
        self.state = 'inactive'
        self._conversation.deactivate()
        self.inputs.unsubscribe()
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model, as soon as it has nothing to do."""
        self.state, self.last_chunk = 'unconfigured', None
        self.inference.free()
        return super().on_cleanup(state)

    @reported
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the process: a node that is finalised can do nothing more."""
        self.state = 'finalized'
        self._conversation.deactivate()
        self._stop.set()
        return super().on_shutdown(state)

    # -- commands ------------------------------------------------------------------------------
    def _on_instruction(self, message: String) -> None:
        try:
            text = clean_instruction(message.data)
        except ValueError as error:
            self.inputs.streams.broken('instruction')
            self.get_logger().warning(str(error))
            return
        if self._conversation.instruct(text, self._publish_info):
            self.get_logger().info(f'instruction: {text or "none, no chunks"}')

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._conversation.reset('reset')
        response.success = self.inference.policy is not None
        response.message = 'history cleared' if response.success else 'no policy is loaded'
        return response

    def _on_set_enabled(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        self._conversation.enable(request.data)
        response.success = True
        response.message = 'enabled' if request.data else 'disabled: no chunks are published'
        self.get_logger().info(response.message)
        return response

    def _values(self) -> dict[str, Any]:
        return {name: self.get_parameter(name).value for name in self._specs}

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Refuse what cannot be applied; changes nothing."""
        changed = {p.name: p.value for p in parameters if p.name in self._specs}
        try:
            for name, value in changed.items():
                self._specs[name].check(value)
            policy = self.inference.policy
            check_pruning(self._values(), changed, None if policy is None else policy.config)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

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
        if text := another_rate(policy.config, self.config):
            self._once('rate', text)
        self._conversation.announce(self._publish_info)

    def _publish_info(self) -> None:
        policy = self.inference.policy
        if policy is not None:
            more = self.inference.budgeting.info()
            self._outputs.info(policy, self.instruction, self.config, more)

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
        topic = self._outputs.topic
        if self.count_publishers(topic) > 1:
            self._once('rival', f'somebody else publishes on {topic}, too: the robot gets both')
        if inference.exhausted:
            self.get_logger().error(
                f'deactivating after {inference.failures} failures in a row: '
                f'{inference.last_error}'
            )
            self.trigger_deactivate()


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(PolicyNode, argv, 'policy_node', DESCRIPTION)
