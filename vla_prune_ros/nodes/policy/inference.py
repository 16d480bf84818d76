# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy and the one thread that touches it: from a request to a chunk that may leave.

Knows no ROS. What an observation needs before it may reach the model is checked here (age, mode
in force, readable pictures), and what a chunk needs before it may leave: it must be finite and in
range, and not late. Whatever goes wrong in an inference costs that chunk and the history, never
the thread; only a GPU that has failed for good ends the process, so that it is started again.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vla_prune_ros.nodes.policy.answering import Prepared, observation_of, publishable, unpacked
from vla_prune_ros.nodes.policy.assembler import NANOSECONDS, MatchedSet
from vla_prune_ros.nodes.policy.budgeting import Budgeting
from vla_prune_ros.nodes.policy.conversation import Conversation, Request
from vla_prune_ros.nodes.policy.gpu import is_lasting, release_memory
from vla_prune_ros.nodes.policy.latency import LatencyWindow
from vla_prune_ros.nodes.policy.loading import load_policy
from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.nodes.policy.trigger import Tick
from vla_prune_ros.nodes.policy.worker import Worker
from vla_prune_ros.ros.images import ImageError
from vla_prune_ros.ros.throttle import Throttled

CLOCK_PATIENCE = 0.5  # s, how long simulated time may lag behind a stamp


@dataclass(frozen=True)
class Answer:
    """A chunk that may leave for the robot.

    Attributes:
        chunk: what the policy said.
        actions: float64 [n, k], its actions in the units and within the range of the robot.
        clipped: how many numbers had to be brought into it.
        tick: the observation, its pictures unpacked, and what came before it.
        requery: actions to play before the mode wants the next chunk; 0: all.
        stages: ms that the node spent in front of the policy, by stage.
        offered: `time.perf_counter` when the observation was complete.
        cold: the first inference after loading or after a change of the mode.
        budget: what governor and audit say, for the statistics.
    """

    chunk: Any
    actions: np.ndarray
    clipped: int
    tick: Tick
    requery: int
    stages: dict[str, float]
    offered: float
    cold: bool
    budget: dict[str, Any]


class Inference:
    """Owns the policy; see the module's text.

    Attributes:
        policy: the `VLAPolicy`, None while none is loaded. Only the worker's thread may use it.
        failures: failed inferences in a row.
        fatal: whether no inference can succeed any more; `stop` is set then.
        counts: inferences that came to nothing, by cause.
    """

    def __init__(
        self,
        config: Callable[[], PolicyConfig],
        conversation: Conversation,
        clock: Any,
        log: Any,
        on_answer: Callable[[Answer], None],
        on_change: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        """Prepare; `start` starts the thread.

        Args:
            config: returns the configuration in force.
            conversation: what is to be answered, and whether the answer may leave.
            clock: the node's, as `rclpy.clock.ROSClock`; simulated time may lag behind a stamp.
            log: a logger as rclpy's.
            on_answer: called in the worker's thread; no reset can come between.
            on_change: called in the worker's thread when the policy is another one or changed.
            stop: set when the process ends.
        """
        self._config, self._conversation = config, conversation
        self._clock, self._log = clock, log
        self._warn = Throttled(lambda text: log.warning(text))
        self._complain = Throttled(lambda text: log.error(text), period=1.0)
        self._on_answer, self._on_change, self._stop = on_answer, on_change, stop
        self.policy: Any = None
        self.failures = 0
        self.fatal = False
        self.last_error = ''
        self.counts = {'stale': 0, 'future': 0, 'failed': 0, 'late': 0, 'discarded': 0}
        self.latency = LatencyWindow()
        self.budgeting = Budgeting(log)
        self._epoch = 0  # how often the conversation had forgotten when the policy did
        self._applied: tuple[str, dict] | None = None  # pruning mode that the policy runs
        self._cold = True
        self._prepared = Prepared()
        self._started: float | None = None  # time.monotonic of the inference at work
        self._worker = Worker(self.serve)
        conversation.wake = self._worker.wake

    # -- called from the executor's thread -------------------------------------------------------
    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def load(self) -> Future:
        """Load the policy that the configuration describes, and warm it up."""
        return self._worker.post(self._load)

    def free(self) -> Future:
        """Let go of the policy and its memory."""
        return self._worker.post(self._free)

    def follow(self) -> None:
        """Apply a changed configuration before the next inference."""
        self._worker.wake()

    def pardon(self) -> None:
        """Start to count failures anew."""
        self.failures = 0

    def close(self) -> None:
        """Stop for good, even if the model is still busy."""
        self._conversation.deactivate()
        self._worker.stop(timeout=0.5)

    @property
    def superseded(self) -> int:
        """Observations that a newer one overtook while the model was busy."""
        return self._conversation.superseded

    @property
    def busy_for(self) -> float:
        """Seconds of wall clock since the inference at work began; 0 if none is."""
        started = self._started
        return 0.0 if started is None else time.monotonic() - started

    @property
    def exhausted(self) -> bool:
        """Whether too many inferences in a row failed."""
        limit = self._config().max_failures
        return self.fatal or (bool(limit) and self.failures >= limit)

    # -- the worker's thread ---------------------------------------------------------------------
    def serve(self) -> bool:
        """Do the next thing there is to do; False if there is nothing."""
        config = self._config()
        if self.policy is None:
            return False
        try:
            self._keep_up(config)
        except BaseException as error:
            self._log.error(f'reset or change of the mode: {type(error).__name__}: {error}')
        busy, recorded = self._answer_next(config) or self._prepare_next(config), False
        try:
            if self.budgeting.measure(self.policy):
                self._on_change()
            elif not busy:  # what comes meanwhile waits for a stage of a pass or a recording
                recorded = self.policy.catch_up()
                if not recorded:
                    self.budgeting.audit(self.policy, lambda: self._is_wanted(config))
        except BaseException as error:
            self._complain('budget', f'measurement or audit: {type(error).__name__}: {error}')
        return busy or recorded or self.budgeting.measuring

    def _load(self) -> None:
        config = self._config()
        self.policy = load_policy(config)
        self._applied, self._cold = config.pruning, True
        self._epoch = self._conversation.forgotten[0]
        self.budgeting.load()
        self.budgeting.apply(self.policy, config, self._conversation.instruction)
        while self.budgeting.measuring:
            self.budgeting.measure(self.policy)
        self.latency.clear()
        self._on_change()
        # The objects of torch and of the model stay: no collection has to walk over them again.
        gc.collect()
        gc.freeze()

    def _free(self) -> None:
        self.policy = self._applied = None
        self._prepared.clear()
        gc.unfreeze()
        release_memory()

    def _keep_up(self, config: PolicyConfig) -> None:
        """Do what was acknowledged: forget, change the mode."""
        epoch, reason = self._conversation.forgotten
        if epoch != self._epoch:
            self._epoch = epoch
            self._prepared.clear()
            self.budgeting.forget()
            self.policy.reset(reason)
        if changed := self._applied != config.pruning:
            self._prepared.clear()
            self._applied = config.pruning  # even if it fails: not again at every tick
            self.policy.set_pruning(config.pruning[0], **config.pruning[1])
            self._cold = True
            self.latency.clear()
        try:
            changed |= self.budgeting.apply(self.policy, config, self._conversation.instruction)
        finally:
            if changed:
                self._on_change()

    def _is_wanted(self, config: PolicyConfig) -> bool:
        """Whether there is something better to do; frames are prepared as if nothing ran."""
        if self._worker.called or self._conversation.next() is not None:
            return True
        self._prepare_next(config)
        return False

    def _prepare_next(self, config: PolicyConfig) -> bool:
        """What the mode wants of a frame that nobody asked for yet is done ahead."""
        if not self.policy.wants_frames or self.exhausted:
            return False
        try:
            frames = self._conversation.frames()
            return self._prepared.add_one(self.policy, frames, config.cameras)
        except BaseException as error:
            self._complain('frame', f'preparing a frame: {type(error).__name__}: {error}')
            return False

    def _answer_next(self, config: PolicyConfig) -> bool:
        request = None if self.exhausted else self._conversation.next()
        if request is None:
            return False
        if request.epoch != self._epoch:  # the history has to be emptied first
            return True
        begun = time.perf_counter()
        if not self._is_fresh(request.observation.stamp, config):
            self._conversation.refuse(request)
            return True
        try:
            observation = unpacked(request.observation, config.cameras)
        except ImageError:
            self._conversation.refuse(request, broken=True)
            return True
        tick = self._conversation.take(request)
        if tick is None:
            return True
        self._started = time.monotonic()
        try:
            answer = self._answer(request, tick, observation, config, begun)
            took, self._started = time.monotonic() - self._started, None
            self.failures = 0
            late = bool(config.inference_timeout) and took > config.inference_timeout
            publish = None if late else lambda: self._on_answer(answer)
            left = self._conversation.finish(request, tick, publish)
            if not left:
                self.counts['late' if late else 'discarded'] += 1
            self.budgeting.after(
                answer, request.observation.stamp, begun, left, time.perf_counter()
            )
        except BaseException as error:  # whatever it is, this thread has to live
            self._started = None
            self._on_failure(error)
            self._conversation.finish(request, tick, None)
        return True

    def _answer(
        self,
        request: Request,
        tick: Tick,
        observation: MatchedSet,
        config: PolicyConfig,
        begun: float,
    ) -> Answer:
        policy = self.policy
        self.budgeting.before(policy, config, tick, begun - request.offered)
        seen = replace(tick, observation=observation)
        asked = observation_of(policy, seen, config.cameras, self._prepared)
        stepping = time.perf_counter()
        chunk = policy.step(asked)
        stepped = time.perf_counter()
        actions, clipped = publishable(chunk.actions, config, period_of(config))
        cold, self._cold = self._cold, False
        requery = policy.requery_after(actions)
        stages = {
            'convert': request.convert_ms,
            'queue': (begun - request.offered) * 1e3,
            'prepare': (stepping - begun) * 1e3,
            'step': (stepped - stepping) * 1e3,
            'check': (time.perf_counter() - stepped) * 1e3,
        }
        extra = stages, request.offered, cold, self.budgeting.values()
        return Answer(chunk, actions, clipped, seen, requery, *extra)

    def _is_fresh(self, stamp: int, config: PolicyConfig) -> bool:
        """Whether an observation is young enough; one from the future waits for the clock."""
        lags = self._clock.ros_time_is_active
        deadline = time.monotonic() + (CLOCK_PATIENCE if lags else 0.0)
        while (age := self._clock.now().nanoseconds - stamp) < -period_of(config):
            if time.monotonic() >= deadline or self._stop.is_set():
                hint = '; is /clock published?' if lags else ''
                cause, text = 'future', f'its stamp is {-age / 1e9:.3f} s ahead of the clock{hint}'
                break
            time.sleep(0.002)
        else:
            limit = config.max_observation_age
            if not limit or age <= limit * NANOSECONDS:
                return True
            hint = '; is use_sim_time set?' if age > 1e8 * NANOSECONDS else ''
            cause, text = 'stale', f'it is {age / 1e9:.3f} s old{hint}'
        self.counts[cause] += 1
        self._warn(cause, f'observation dropped: {text}')
        return False

    def _on_failure(self, error: BaseException) -> None:
        """An inference failed: what it left in the history is not to be trusted."""
        self.failures += 1
        self.counts['failed'] += 1
        self.last_error = f'{type(error).__name__}: {error}'
        said = f'inference failed ({self.failures} in a row): {self.last_error}'
        self._complain(type(error).__name__, said)
        error.__traceback__ = None  # its frames hold the tensors of the pass
        if is_lasting(error):
            self._log.fatal('the GPU gives nothing any more; the process ends to be started again')
            self.fatal = True
            self._stop.set()
            return
        try:
            self._prepared.clear()
            self.policy.reset('exception')
            release_memory()
        except Exception as second:
            self._log.error(f'reset after the failure: {type(second).__name__}: {second}')


def period_of(config: PolicyConfig) -> int:
    """Control period in ns."""
    return round(NANOSECONDS / config.control_rate)
