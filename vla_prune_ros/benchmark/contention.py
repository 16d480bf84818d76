# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A machine that other work slows down: busy loops on the core of the policy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_prune_ros.benchmark.scene import Query
from vla_prune_ros.policy import Observation, VLAPolicy
from vla_prune_ros.policy.governor import Decision, Governor
from vla_prune_ros.pruning import CLASSES

_LOOP = 'import os\nwhile os.getppid() == {parent}: sum(range(100000))'


@contextmanager
def busy(core: int, loops: int) -> Iterator[None]:
    """So many busy loops on a core; they end with the context or with this process."""
    code = _LOOP.format(parent=os.getpid())
    running = [subprocess.Popen([sys.executable, '-c', code]) for _ in range(loops)]
    try:
        for loop in running:
            os.sched_setaffinity(loop.pid, {core})
        yield
    finally:
        for loop in running:
            loop.kill()
            loop.wait()


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this process, all its threads, on one core."""
    before = {int(thread): os.sched_getaffinity(int(thread)) for thread in _threads()}
    for thread in _threads():
        os.sched_setaffinity(int(thread), {core})
    try:
        yield
    finally:
        for thread, cores in before.items():
            os.sched_setaffinity(thread, cores)


def _threads() -> list[str]:
    return os.listdir('/proc/self/task')


class Asker:
    """Asks a policy with one picture after another and takes the time."""

    def __init__(
        self,
        policy: VLAPolicy,
        queries: Sequence[Query],
        instruction: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._policy, self._queries, self._instruction = policy, queries, instruction
        self._clock, self._next = clock, 0

    def __call__(self, share: float) -> tuple[float, float, bool]:
        """Seconds, rows per layer, and whether it was dense, of a query with a budget."""
        query = self._queries[self._next % len(self._queries)]
        stamp = 0.4 * self._next
        self._next += 1
        self._policy.set_budget(share)
        started = self._clock()
        if len(query.executed):
            self._policy.record_executed(query.executed)
        observation = Observation(query.images, query.proprio, self._instruction, stamp)
        chunk = self._policy.step(observation)
        return self._clock() - started, chunk.rows, chunk.dense


def sample(ask: Asker, count: int) -> tuple[dict[float, list[float]], dict[float, float]]:
    """Seconds and rows per layer of every class.

    Classes take turns, so that whatever else goes on hits all of them.
    """
    ask(1.0)  # the first one beside a new load is between two
    seconds: dict[float, list[float]] = {share: [] for share in CLASSES}
    rows: dict[float, float] = {}
    for _ in range(count):
        for share in reversed(CLASSES):
            took, rows[share], _ = ask(share)
            seconds[share].append(took)
    return seconds, rows


def shared_core(
    seconds: Mapping[float, Sequence[float]], loops: int, draws: int = 24, seed: int = 0
) -> dict[float, list[float]]:
    """What passes of so much processor time take on a core shared fairly with busy loops.

    Args:
        seconds: processor time by class.
        loops: busy loops on the core.
        draws: samples of each class.
        seed: of the spread around the fair share: log-normal, 4 %, and half more once in 100.
    """
    random = np.random.default_rng(seed + loops)
    found = {}
    for share, own in seconds.items():
        spread = np.exp(0.04 * random.normal(size=draws)) * (
            1 + 0.5 * (random.random(draws) < 0.01)
        )
        found[share] = (min(own) * (1 + loops) * spread).tolist()
    return found


@dataclass(frozen=True)
class Step:
    """One query of a live run.

    Attributes:
        at: s since the beginning.
        loops: busy loops beside it.
        share: budget.
        seconds: that it took.
        decision: of the governor; None for a fixed budget.
    """

    at: float
    loops: int
    share: float
    seconds: float
    decision: Decision | None = None

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        chosen = self.decision
        return {
            'at': round(self.at, 4),
            'loops': self.loops,
            'share': self.share,
            'ms': round(1e3 * self.seconds, 2),
            'predicted_ms': None if chosen is None else round(1e3 * chosen.predicted, 2),
            'scale': None if chosen is None else round(chosen.scale, 4),
            'margin': None if chosen is None else round(chosen.margin, 4),
            'state': '' if chosen is None else chosen.state,
        }


def live(
    ask: Asker,
    core: int,
    phases: Sequence[tuple[int, int]],
    deadline: float,
    chooser: Governor | float,
) -> list[Step]:
    """Real passes beside real busy loops that come and go.

    Args:
        ask: the policy.
        core: where it runs, and the loops.
        phases: (loops, queries) in turn.
        deadline: s.
        chooser: a governor, or a fixed share.
    """
    steps: list[Step] = []
    started = time.perf_counter()
    for loops, queries in phases:
        with busy(core, loops):
            for _ in range(queries):
                at = time.perf_counter() - started
                decision = None
                if isinstance(chooser, Governor):
                    decision = chooser.decide(deadline)
                share = chooser if decision is None else decision.share
                seconds, rows, dense = ask(share)
                if isinstance(chooser, Governor):
                    chooser.learn(seconds, rows, dense=dense)
                steps.append(Step(at, loops, share, seconds, decision))
    return steps


def trace(
    samples: Mapping[int, Mapping[float, Sequence[float]]],
    rows: Mapping[float, float],
    phases: Sequence[tuple[int, int]],
    deadline: float,
    chooser: Governor | float,
    seed: int = 0,
) -> list[Step]:
    """As `live`, with latencies drawn from samples: loops -> share -> s."""
    random, steps, at = np.random.default_rng(seed), [], 0.0
    for loops, queries in phases:
        for _ in range(queries):
            decision = chooser.decide(deadline) if isinstance(chooser, Governor) else None
            share = chooser if decision is None else decision.share
            seconds = float(random.choice(samples[loops][share]))
            if isinstance(chooser, Governor):
                chooser.learn(seconds, rows[share])
            steps.append(Step(at, loops, share, seconds, decision))
            at += seconds
    return steps


def settling(missed: Sequence[bool], loads: Sequence[int]) -> list[int]:
    """After every rise of the load: queries until two in a row are in time.

    Those of a phase that ends before that count as the length of the phase.
    """
    found = []
    for k in range(1, len(loads)):
        if loads[k] <= loads[k - 1]:
            continue
        end = next((j for j in range(k, len(loads)) if loads[j] != loads[k]), len(loads))
        late = np.array([*missed[k:end], False], dtype=bool)
        pairs = np.flatnonzero(~late[:-1] & ~late[1:])
        found.append(int(pairs[0]) if len(pairs) else end - k)
    return found
