# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy and the one thread that touches it: from a tick to a chunk that may leave.

Knows no ROS. What an observation needs before it may reach the model is checked here (age, mode
in force), and what a chunk needs before it may leave: it must be finite and in range, not late,
and from after the last reset. Whatever goes wrong in an inference costs that chunk and the
history, never the thread.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from vla_prune_ros.execution.checks import safe_actions
from vla_prune_ros.nodes.policy.answering import Prepared, observation_of
from vla_prune_ros.nodes.policy.assembler import NANOSECONDS, MatchedSet
from vla_prune_ros.nodes.policy.latency import LatencyWindow
from vla_prune_ros.nodes.policy.loading import load_policy
from vla_prune_ros.nodes.policy.parameters import FIFO_DEPTH, PolicyConfig
from vla_prune_ros.nodes.policy.trigger import DEPTH, MAX_BETWEEN, Tick
from vla_prune_ros.nodes.policy.worker import Worker
from vla_prune_ros.ros.throttle import Throttled

CLOCK_PATIENCE = 0.5  # s, how long simulated time may lag behind a stamp


@dataclass(frozen=True)
class Work:
    """A tick on its way to the model. `epoch` counts the resets before it."""

    tick: Tick
    epoch: int
    offered: float  # time.perf_counter
    convert_ms: float

    @staticmethod
    def merge(superseded: Work, newer: Work) -> Work:
        """`newer` with what may not be lost of work that is left out."""
        if superseded.epoch != newer.epoch:
            return newer
        return replace(newer, tick=Tick.merge(superseded.tick, newer.tick))


@dataclass(frozen=True)
class Answer:
    """A chunk that may leave for the robot.

    Attributes:
        chunk: what the policy said.
        actions: float64 [n, 7], its actions within the range of the controller.
        clipped: how many numbers had to be brought into it.
        tick: the observation and what came before it.
        requery: actions to play before the mode wants the next chunk; 0: all.
        stages: ms that the node spent in front of the policy, by stage.
        offered: `time.perf_counter` when the observation was complete.
        cold: the first inference after loading or after a change of the mode.
    """

    chunk: Any
    actions: np.ndarray
    clipped: int
    tick: Tick
    requery: int
    stages: dict[str, float]
    offered: float
    cold: bool


class Inference:
    """Owns the policy; see the module's text.

    Attributes:
        policy: the `VLAPolicy`, None while none is loaded. Only the worker's thread may use it.
        failures: failed inferences in a row.
        counts: inferences that came to nothing, by cause.
    """

    def __init__(
        self,
        config: Callable[[], PolicyConfig],
        clock: Callable[[], int],
        log: Any,
        on_answer: Callable[[Answer], None],
        on_change: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        """Start the thread.

        Args:
            config: returns the configuration in force.
            clock: node time, ns.
            log: a logger as rclpy's.
            on_answer: called in the worker's thread; no reset can come between.
            on_change: called in the worker's thread when the policy is another one or changed.
            stop: set when the process ends.
        """
        self._config, self._clock, self._log = config, clock, log
        self._warn = Throttled(lambda text: log.warning(text))
        self._complain = Throttled(lambda text: log.error(text), period=1.0)
        self._on_answer, self._on_change, self._stop = on_answer, on_change, stop
        self.policy: Any = None
        self.failures = 0
        self.last_error = ''
        self.counts = {'stale': 0, 'future': 0, 'failed': 0, 'late': 0, 'discarded': 0}
        self.latency = LatencyWindow()
        self.clock_may_lag = False
        self._gate = threading.Lock()  # between resets and chunks that leave
        self._open = False
        self._epoch = 0
        self._applied: tuple[str, dict] | None = None  # pruning mode that the policy runs
        self._cold = True
        self._carry: Tick | None = None
        self._prepared = Prepared()
        self._answered: int | None = None  # stamp of the last chunk
        self._working_on: int | None = None  # stamp of the newest tick that waits or is at work
        self._unanswered: Tick | None = None
        self._started: float | None = None  # time.monotonic of the inference at work
        depth = 1 if config().queue == 'latest' else FIFO_DEPTH
        self._worker = Worker(self._infer, self._on_failure, Work.merge, depth)
        self._worker.start()

    # -- called from the executor's thread -------------------------------------------------------
    def load(self) -> Future:
        """Load the policy that the configuration describes, and warm it up."""
        return self._worker.post(self._load)

    def free(self) -> Future:
        """Let go of the policy and its memory."""
        return self._worker.post(self._free)

    def open(self, accept: bool) -> None:
        """Let chunks leave, or none."""
        with self._gate:
            self._open = accept

    def forget(self, reason: str) -> None:
        """Empty everything that reaches from one inference into the next.

        No chunk of an observation from before leaves after this returns.
        """
        with self._gate:
            self._epoch += 1
            self._answered = self._working_on = self._unanswered = None
        self._worker.clear()
        self._post('reset', partial(self._reset, reason))

    def follow(self) -> None:
        """Apply a changed configuration before the next inference."""
        self._post('change of the pruning mode', lambda: self._follow(self._config()))

    def offer(self, tick: Tick, convert_ms: float) -> None:
        """Answer this tick, unless a newer one is faster."""
        self._working_on = tick.observation.stamp
        self._worker.offer(Work(tick, self._epoch, time.perf_counter(), convert_ms))

    def glimpse(self, frame: MatchedSet) -> None:
        """A frame that no chunk is asked for: what the mode wants of it is done at once."""
        self._post('preparing a frame', partial(self._prepare, frame))

    def knows(self, stamp: int) -> str:
        """What became of a request: answered, working, unanswered, or new."""
        unanswered = self._unanswered
        if stamp == self._answered:
            return 'answered'
        if stamp == self._working_on:
            return 'working'
        if unanswered is not None and stamp == unanswered.observation.stamp:
            return 'unanswered'
        return 'new'

    def retry(self, instruction: str) -> None:
        """Offer the tick again that was refused or failed last."""
        tick, self._unanswered = self._unanswered, None
        if tick is not None:
            self.offer(replace(tick, instruction=instruction), 0.0)

    def pardon(self) -> None:
        """Start to count failures anew."""
        self.failures = 0

    def close(self) -> None:
        """Stop for good, even if the model is still busy."""
        self.open(False)
        self._worker.stop(timeout=0.5)

    @property
    def superseded(self) -> int:
        """Observations that a newer one overtook while the model was busy."""
        return self._worker.superseded

    @property
    def busy_for(self) -> float:
        """Seconds of wall clock since the inference at work began; 0 if none is."""
        started = self._started
        return 0.0 if started is None else time.monotonic() - started

    @property
    def exhausted(self) -> bool:
        """Whether too many inferences in a row failed."""
        limit = self._config().max_failures
        return bool(limit) and self.failures >= limit

    def _post(self, what: str, job: Callable[[], Any]) -> None:
        def report(future: Future) -> None:
            if not future.cancelled() and (error := future.exception()) is not None:
                self._log.error(f'{what} failed: {type(error).__name__}: {error}')

        self._worker.post(job).add_done_callback(report)

    # -- the worker's thread ---------------------------------------------------------------------
    def _load(self) -> None:
        config = self._config()
        self.policy = load_policy(config)
        self._applied, self._cold = config.pruning, True
        self.latency.clear()
        self._on_change()
        # The objects of torch and of the model stay: no collection has to walk over them again.
        gc.collect()
        gc.freeze()

    def _free(self) -> None:
        self.policy = self._applied = self._carry = None
        self._prepared.clear()
        gc.unfreeze()
        _release_memory()

    def _prepare(self, frame: MatchedSet) -> None:
        policy, config = self.policy, self._config()
        if policy is not None and policy.wants_frames:
            self._prepared.add(policy, frame, config.cameras)

    def _reset(self, reason: str) -> None:
        self._carry = None
        self._prepared.clear()
        if self.policy is not None:
            self.policy.reset(reason)

    def _follow(self, config: PolicyConfig) -> None:
        if self.policy is None or self._applied == config.pruning:
            return
        self._prepared.clear()
        self._applied = config.pruning  # even if it fails: not again at every tick
        mode, options = config.pruning
        self.policy.set_pruning(mode, **options)
        self._cold = True
        self.latency.clear()
        self._on_change()

    def _infer(self, work: Work) -> None:
        config, policy = self._config(), self.policy
        begun = time.perf_counter()
        if policy is None or self.exhausted or work.epoch != self._epoch:
            return
        self._follow(config)
        tick = self._with_carried(work.tick)
        if not self._is_fresh(tick.observation.stamp, config):
            self._carry = tick  # without its observation, which is not to be trusted
            self._settle(replace(tick, executed=(), between=()))
            return
        self._started = time.monotonic()
        try:
            answer = self._answer(policy, work, tick, config, begun)
        finally:
            took, self._started = time.monotonic() - self._started, None
        self.failures = 0
        with self._gate:
            if work.epoch != self._epoch or not self._open:
                self.counts['discarded'] += 1
            elif config.inference_timeout and took > config.inference_timeout:
                self.counts['late'] += 1
                self._settle(None)
            else:
                self._answered = tick.observation.stamp
                self._on_answer(answer)

    def _answer(
        self, policy: Any, work: Work, tick: Tick, config: PolicyConfig, begun: float
    ) -> Answer:
        observation = observation_of(policy, tick, config.cameras, self._prepared)
        stepping = time.perf_counter()
        chunk = policy.step(observation)
        stepped = time.perf_counter()
        actions, clipped = safe_actions(chunk.actions, period_of(config))
        cold, self._cold = self._cold, False
        requery = policy.requery_after(actions)
        stages = {
            'convert': work.convert_ms,
            'queue': (begun - work.offered) * 1e3,
            'prepare': (stepping - begun) * 1e3,
            'step': (stepped - stepping) * 1e3,
            'check': (time.perf_counter() - stepped) * 1e3,
        }
        return Answer(chunk, actions, clipped, tick, requery, stages, work.offered, cold)

    def _with_carried(self, tick: Tick) -> Tick:
        """The tick with what observations that were refused had to tell."""
        carry, self._carry = self._carry, None
        if carry is None:
            return tick
        return replace(
            tick,
            executed=(*carry.executed, *tick.executed)[-DEPTH:],
            between=(*carry.between, *tick.between)[-MAX_BETWEEN:],
        )

    def _is_fresh(self, stamp: int, config: PolicyConfig) -> bool:
        """Whether an observation is young enough; one from the future waits for the clock."""
        patience = CLOCK_PATIENCE if self.clock_may_lag else 0.0
        deadline = time.monotonic() + patience
        while (age := self._clock() - stamp) < -period_of(config):
            if time.monotonic() >= deadline or self._stop.is_set():
                hint = '; is /clock published?' if self.clock_may_lag else ''
                self._refuse('future', f'its stamp is {-age / 1e9:.3f} s ahead of the clock{hint}')
                return False
            time.sleep(0.002)
        limit = config.max_observation_age
        if limit and age > limit * NANOSECONDS:
            hint = '; is use_sim_time set?' if age > 1e8 * NANOSECONDS else ''
            self._refuse('stale', f'it is {age / 1e9:.3f} s old{hint}')
            return False
        return True

    def _refuse(self, cause: str, text: str) -> None:
        self.counts[cause] += 1
        self._warn(cause, f'observation dropped: {text}')

    def _settle(self, unanswered: Tick | None) -> None:
        """Nothing is at work any more; a request for `unanswered` may come again."""
        self._unanswered, self._working_on = unanswered, None

    def _on_failure(self, work: Work, error: BaseException) -> None:
        """An inference failed: what it left in the history is not to be trusted."""
        self.failures += 1
        self.counts['failed'] += 1
        self.last_error = f'{type(error).__name__}: {error}'
        self._complain(
            type(error).__name__,
            f'inference failed ({self.failures} in a row): {self.last_error}',
        )
        self._settle(replace(work.tick, executed=(), between=()))
        try:
            error.__traceback__ = None  # its frames hold the tensors of the pass
            self.policy.reset('exception')
            _release_memory()
        except Exception as second:
            self._log.error(f'reset after the failure: {type(second).__name__}: {second}')


def period_of(config: PolicyConfig) -> int:
    """Control period in ns."""
    return round(NANOSECONDS / config.control_rate)


def _release_memory() -> None:
    gc.collect()
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
