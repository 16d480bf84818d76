# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb and node `policy_node`: camera images, robot state and an instruction to action chunks.

Life: configure loads the model and warms it up, activate subscribes to the data, deactivate stops
and forgets, cleanup frees the model. With `autostart` the first two happen at start-up.

Threads: the executor's callbacks store data; one worker does everything that touches the policy.
A parameter or a reset that was acknowledged is in force from the next inference.

Executed actions: an executor that reports on `executed_actions` what it really did, stamped with
the observation that followed, feeds the history; with `trigger: request` such a message is also
what asks for a chunk. A chunk that was asked for again is sent again, not computed again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.nodes.assembler import MatchedSet
from vla_prune_ros.nodes.inputs import Inputs
from vla_prune_ros.nodes.messages import (
    LATCHED,
    NANOSECONDS,
    RELIABLE,
    chunk_message,
    to_ns,
    to_seconds,
    values_message,
)
from vla_prune_ros.nodes.parameters import (
    POLICY,
    declare,
    pruning_choice,
    pruning_specs,
    undeclared,
)
from vla_prune_ros.nodes.process import StopRequestedError, run_node, wait_for
from vla_prune_ros.nodes.trigger import Executed, Tick
from vla_prune_ros.nodes.worker import Worker

DESCRIPTION = 'ROS 2 node vla_policy: camera images, state and an instruction to action chunks.'
LONGEST_INSTRUCTION = 1000  # characters
FIFO_DEPTH = 64
CLOCK_PATIENCE = 0.5  # s, how long /clock may lag behind a stamp
MEANING_OF_STATE = 'position, axis-angle, fingers'


class PolicyNode(LifecycleNode):
    """The policy as a node; see the module's text."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__('vla_policy')
        self._stop = stop
        self._specs = {spec.name: spec for spec in (*POLICY, *pruning_specs())}
        self.settings = declare(self, self._specs.values())
        for name in undeclared(self):
            self.get_logger().warning(f'no parameter {name!r}: ignored')
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)

        self.failed = False
        self._policy: Any = None
        self._instruction = self.settings['default_instruction'].strip()
        self._active = False
        self._enabled = True
        self._failures = 0
        self._last_chunk: JointTrajectory | None = None
        self._working_on = -1  # stamp of the newest observation given to the worker
        self._inputs = Inputs(self, self.settings, self._on_tick, self._on_executed)
        self._worker = Worker(
            self._infer,
            self._on_failure,
            Tick.merge,
            depth=1 if self.settings['queue'] == 'latest' else FIFO_DEPTH,
        )
        self._worker.start()

        self._chunks = self.create_lifecycle_publisher(JointTrajectory, 'action_chunk', RELIABLE)
        self._stats = self.create_publisher(DiagnosticArray, '~/inference_stats', RELIABLE)
        self._info = self.create_publisher(DiagnosticArray, '~/policy_info', LATCHED)
        # Before the model loads. A latched reader does not match a volatile writer (ros2 topic
        # pub), and a volatile reader misses what was latched before it came: so both.
        expected = SubscriptionEventCallbacks(incompatible_qos=lambda event: None)
        for qos in (RELIABLE, LATCHED):
            self.create_subscription(
                String, 'instruction', self._on_instruction, qos, event_callbacks=expected
            )
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(SetBool, '~/set_enabled', self._on_set_enabled)
        # Sim time may stand still, a watchdog may not.
        self.create_timer(0.2, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # -- life ----------------------------------------------------------------------------------
    def start(self) -> None:
        """Configure and activate, if `autostart` says so."""
        success = TransitionCallbackReturn.SUCCESS
        if self.settings['autostart'] and self.trigger_configure() == success:
            self.trigger_activate()

    def close(self) -> None:
        """Stop for good, even if the model is still busy."""
        self._active = False
        self._worker.stop(timeout=0.5)

    def destroy_node(self) -> None:
        """Let go of DDS at once: rclpy's state machine would hold the node's handle."""
        super().destroy_node()
        self._state_machine = None

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and run it once."""
        mode, options = pruning_choice(self._values())
        self.get_logger().info(f'loading {self.settings["checkpoint"] or "the embedded policy"}')
        started = time.monotonic()
        try:
            load = partial(load_policy, self.settings, mode, options)
            self._policy = wait_for(self._worker.post(load), self._stop)
        except StopRequestedError:
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.get_logger().error(f'configure failed: {type(error).__name__}: {error}')
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f'ready after {time.monotonic() - started:.1f} s')
        self._publish_info()
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to take data."""
        self._failures = 0
        self._inputs.subscribe()
        self._active = True
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking data and forget."""
        self._active = False
        self._inputs.unsubscribe()
        self._forget()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model."""
        wait_for(self._worker.post(self._free), self._stop)
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the process: a node that is finalised can do nothing more."""
        self._active = False
        self._stop.set()
        return super().on_shutdown(state)

    def _free(self) -> None:
        self._policy = None

    # -- data in -------------------------------------------------------------------------------
    def _on_tick(self, tick: Tick) -> None:
        """An observation wants a chunk."""
        if not (self._active and self._enabled):
            return
        if not self._instruction:
            self.get_logger().warning('waiting for an instruction', throttle_duration_sec=5.0)
            return
        self._working_on = tick.observation.stamp
        self._worker.offer(replace(tick, instruction=self._instruction))

    def _on_executed(self, stamp: int, executed: Executed) -> None:
        last = self._last_chunk
        if last is not None and to_ns(last.header.stamp) == stamp:
            self._publish_chunk(last)  # the answer was lost
        elif stamp != self._working_on:
            self._inputs.add_executed(stamp, executed)

    def _on_instruction(self, message: String) -> None:
        text = message.data.strip()
        if text == self._instruction:
            return
        if not text or len(text) > LONGEST_INSTRUCTION:
            self._inputs.streams.broken('instruction')
            self.get_logger().warning(
                f'instruction of {len(text)} characters ignored; 1 to {LONGEST_INSTRUCTION} count'
            )
            return
        self.get_logger().info(f'instruction: {text}')
        self._instruction = text
        self._publish_info()

    # -- services and parameters ---------------------------------------------------------------
    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._forget()
        response.success = self._policy is not None
        response.message = 'history cleared' if response.success else 'no policy is loaded'
        return response

    def _on_set_enabled(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        self._enabled = request.data
        self._forget()
        response.success = True
        response.message = 'enabled' if request.data else 'disabled: no chunks are published'
        self.get_logger().info(response.message)
        return response

    def _forget(self) -> None:
        """Empty everything that reaches from one inference into the next."""
        self._worker.clear()
        self._inputs.clear()
        self._last_chunk = None
        self._working_on = -1
        self._worker.post(lambda: self._policy and self._policy.reset())

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
        policy = self._policy
        if not touched or policy is None:
            return
        from vla_prune_ros.pruning import make_selector

        values = self._values() | changed
        for mode in touched - {'mode'} | {values['pruning.mode']}:
            name, options = pruning_choice(values, mode)
            make_selector(name, policy.config, **options)

    def _apply_parameters(self, parameters: list[Parameter]) -> None:
        if any(p.name.startswith('pruning.') for p in parameters) and self._policy is not None:
            mode, options = pruning_choice(self._values())
            self._worker.post(lambda: self._set_pruning(mode, options))

    def _set_pruning(self, mode: str, options: dict[str, Any]) -> None:
        if self._policy is None:
            return
        self._policy.set_pruning(mode, **options)
        self._publish_info()

    # -- the worker's part ---------------------------------------------------------------------
    def _infer(self, tick: Tick) -> None:
        from vla_prune_ros.policy import Observation

        policy, stamp = self._policy, tick.observation.stamp
        if policy is None or not self._is_fresh(stamp):
            self._working_on = -1
            return
        started = time.perf_counter()
        for event in tick.events():
            if isinstance(event, np.ndarray):
                policy.record_executed(event)
            else:
                policy.observe(self._images(event))
        samples = tick.observation.samples
        chunk = policy.step(
            Observation(
                images=self._images(tick.observation),
                proprio=np.concatenate([samples['ee_pose'], samples['joint_states']]),
                instruction=tick.instruction,
                stamp=to_seconds(stamp),
            )
        )
        self._failures = 0
        period = round(NANOSECONDS / self.settings['control_rate'])
        message = chunk_message(chunk.actions, stamp, period)
        if not (self._active and self._enabled):
            return
        self._last_chunk = message
        self._publish_chunk(message)
        self._publish_stats(chunk, stamp, (time.perf_counter() - started) * 1e3)

    def _images(self, observation: MatchedSet) -> dict[str, np.ndarray]:
        return {name: observation.samples[name] for name in self.settings['cameras']}

    def _is_fresh(self, stamp: int) -> bool:
        """Whether an observation is young enough; one from the future waits for the clock."""
        deadline = time.monotonic() + CLOCK_PATIENCE
        period = NANOSECONDS / self.settings['control_rate']
        while (age := self.get_clock().now().nanoseconds - stamp) < -period:
            if time.monotonic() > deadline or self._stop.is_set():
                self._inputs.streams.broken('future')
                self.get_logger().warning(
                    f'observation dropped: its stamp is {-age / 1e9:.3f} s ahead of the clock',
                    throttle_duration_sec=5.0,
                )
                return False
            time.sleep(0.002)
        limit = self.get_parameter('max_observation_age').value
        if limit and age > limit * NANOSECONDS:
            self._inputs.streams.broken('stale')
            hint = '; is use_sim_time set?' if age > 1e8 * NANOSECONDS else ''
            self.get_logger().warning(
                f'observation dropped: it is {age / 1e9:.3f} s old{hint}',
                throttle_duration_sec=5.0,
            )
            return False
        return True

    def _on_failure(self, error: Exception) -> None:
        """An inference failed: what it left in the history is not to be trusted."""
        self._policy.reset('exception')
        self._failures += 1
        self._working_on = -1
        self.get_logger().error(
            f'inference failed ({self._failures} in a row): {type(error).__name__}: {error}',
            throttle_duration_sec=1.0,
        )

    # -- data out ------------------------------------------------------------------------------
    def _publish_chunk(self, message: JointTrajectory) -> None:
        if self._active and self._enabled:
            self._chunks.publish(message)

    def _publish_stats(self, chunk: Any, stamp: int, node_ms: float) -> None:
        values = {
            'sequence': chunk.sequence,
            'mode': chunk.mode,
            'tokens_kept': len(chunk.kept),
            'tokens_total': chunk.n_visual,
            'reset_reason': chunk.reset_reason or '',
            **{f'{stage}_ms': round(ms, 4) for stage, ms in chunk.timing.items()},
            'node_ms': round(node_ms, 4),
            **{f'{chunk.mode}.{name}': value for name, value in chunk.stats.items()},
            'superseded': self._worker.superseded,
            **self._inputs.counts(),
            'kept': chunk.kept.tolist(),
        }
        self._stats.publish(
            values_message(
                f'{self.get_name()}: inference', values, stamp,
                summary=chunk.mode, hardware_id=self._hardware,
            )
        )  # fmt: skip

    @property
    def _hardware(self) -> str:
        return '' if self._policy is None else str(self._policy.model.device)

    def _publish_info(self) -> None:
        policy = self._policy
        if policy is None:
            return
        info = policy.info()
        options = info.pop('options')
        values = info | {f'pruning.{info["mode"]}.{k}': v for k, v in options.items()}
        values |= {
            'instruction': self._instruction,
            'proprio': MEANING_OF_STATE,
            'control_rate': self.settings['control_rate'],
        }
        self._info.publish(
            values_message(
                f'{self.get_name()}: policy', values, self.get_clock().now().nanoseconds,
                summary=info['mode'], hardware_id=self._hardware,
            )
        )  # fmt: skip

    # -- watchdog ------------------------------------------------------------------------------
    def _watch(self) -> None:
        """Report streams that come and go; give up after too many failures."""
        if not self._active:
            return
        self._inputs.watch()
        limit = self.settings['max_failures']
        if limit and self._failures >= limit:
            self.get_logger().error(f'deactivating after {self._failures} failures in a row')
            self.trigger_deactivate()


def load_policy(settings: dict[str, Any], mode: str, options: dict[str, Any]) -> Any:
    """The policy that the parameters describe, warmed up. Runs in the worker."""
    import torch

    from vla_prune_ros.policy import VLAPolicy

    if settings['torch_threads']:
        torch.set_num_threads(settings['torch_threads'])
    gpu = torch.cuda.is_available()
    device, dtype = settings['device'], settings['dtype']
    if device == 'auto':
        device = 'cuda' if gpu else 'cpu'
    if dtype == 'auto':
        dtype = 'float32' if device == 'cpu' else 'bfloat16'
    directory = settings['checkpoint']
    if not directory:
        from vla_prune_ros import weights

        directory = weights.directory('tabletop')
    policy = VLAPolicy.from_pretrained(
        directory,
        pruning=mode,
        device=device,
        dtype=dtype,
        unnorm_key=settings['unnorm_key'] or None,
        readout_start=settings['readout_start'] or None,
        cameras=tuple(settings['cameras']),
        max_gap=settings['max_gap'],
        **options,
    )
    policy.warm_up()
    policy.info()  # reads all weight files for their digest, which may take long
    return policy


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the node and end the process; exit code 0 after SIGINT or SIGTERM."""
    run_node(PolicyNode, argv, 'policy_node', DESCRIPTION)
