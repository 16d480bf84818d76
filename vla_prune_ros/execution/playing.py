# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which action of which chunk comes next. Pure Python; one control step after another.

Alignment, in every mode: of a new chunk as many first actions are left out as were really executed
since its observation, however long it took. A step on which the robot held still executed nothing.
Open loop and receding horizon pass actions on bit for bit; the other two mix them as absolute
targets (see `targets`). A gripper that is told to open or to close is never mixed: it comes from
the newest chunk.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_prune_ros.execution.targets import DeltaPlans, JointPlans, age_weights, fade_weights

EXECUTION_MODES = ('open_loop', 'receding', 'blend', 'ensemble')
MARKS = 256  # observations that a chunk may still answer
LATENCIES = 10  # how many of the last delays decide when to ask
ENSEMBLE_DECAY = 0.01  # ACT's m


@dataclass(frozen=True)
class Execution:
    """How chunks are played.

    open_loop plays whole chunks. receding plays the first `horizon` aligned actions, and more only
    while the next chunk is late. blend asks as often and fades from the rest of the old chunk into
    the new one. ensemble asks at every step and averages all predictions. A `horizon` of 0 is half
    a chunk; open_loop and ensemble do not look at it. `prefetch` is how many actions may be left
    when the next chunk is asked for; 0 takes the longest of the last delays.
    """

    mode: str = 'open_loop'
    horizon: int = 0
    prefetch: int = 0

    def __post_init__(self) -> None:
        """ValueError for an unknown mode."""
        if self.mode not in EXECUTION_MODES:
            raise ValueError(
                f'execution.mode: {self.mode!r} is not one of {", ".join(EXECUTION_MODES)}'
            )

    def steps(self, n: int) -> int:
        """How many actions of a chunk of n are to be played before the next one."""
        if self.mode == 'open_loop':
            return n
        return 1 if self.mode == 'ensemble' else self.horizon or max(1, n // 2)


@dataclass(frozen=True)
class _Mark:
    """An observation: how many actions and steps came before it, and where the commands led."""

    executed: int
    step: int
    path: Any


@dataclass
class _Plan:
    """A chunk in its place: action k is number start + k of all that are executed."""

    stamp: int
    start: int
    actions: np.ndarray
    targets: list[Any] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.actions)


class ChunkPlayer:
    """Plays chunks by the rules of an `Execution` and says when to ask for the next one."""

    def __init__(
        self,
        execution: Execution | None = None,
        slop: int = 0,
        plans: DeltaPlans | JointPlans | None = None,
    ) -> None:
        """Prepare.

        Args:
            execution: the rules.
            slop: how far the stamp of a chunk may be from that of the nearest `observe`, ns.
            plans: what the numbers of an action are, for mixing them; deltas by default.
        """
        self.execution = execution or Execution()
        self._slop = slop
        self._kind: Any = plans or DeltaPlans()
        self._mixes = self.execution.mode in ('blend', 'ensemble')
        self._delays: deque[int] = deque(maxlen=LATENCIES)
        self.clear()

    def clear(self) -> None:
        """Start an episode: no chunk, nothing executed. What is known of delays stays."""
        self.starved = 0  # steps without a valid action after the first chunk
        self.unknown = 0  # chunks for an observation that was never made, or too long ago
        self._marks: OrderedDict[int, _Mark] = OrderedDict()
        self._plans: list[_Plan] = []  # the newest last
        self._executed = 0
        self._step = 0
        self._due = 0  # a chunk is due when this number of actions is executed
        self._path: Any = self._kind.origin()  # of all commands, to its end

    def observe(self, stamp: int) -> None:
        """An observation was made now, before the next action."""
        self._marks[stamp] = _Mark(self._executed, self._step, self._path)
        if len(self._marks) > MARKS:
            self._marks.popitem(last=False)

    def add(self, stamp: int, actions: np.ndarray, delay: int | None = None) -> bool:
        """Take the chunk [n, k] that answers the observation at `stamp`; False if unusable.

        `delay` is how many steps it took, where that cannot be counted because time stood still.
        """
        mark = self._mark(stamp)
        if mark is None:
            self.unknown += 1
            return False
        if self._plans and stamp <= self._plans[-1].stamp:
            return False
        self._delays.append(self._step - mark.step if delay is None else delay)
        targets = self._kind.targets(mark.path, actions) if self._mixes else []
        plan = _Plan(stamp, mark.executed, actions, targets)
        if self.execution.mode == 'ensemble':
            self._plans = [p for p in self._plans if p.end > self._executed]
        else:
            if self.execution.mode == 'blend' and self._plans:
                self._fade(self._plans[-1], plan)
            self._plans = []
        self._plans.append(plan)
        self._due = min(plan.end, self._executed + self.execution.steps(len(actions)))
        return True

    def _mark(self, stamp: int) -> _Mark | None:
        """What was when the observation at `stamp` was made; None if that is not known."""
        if not self._slop or stamp in self._marks:
            return self._marks.get(stamp)
        near = min(self._marks, key=lambda mark: abs(mark - stamp), default=None)
        return None if near is None or abs(near - stamp) > self._slop else self._marks[near]

    def shorten(self, stamp: int, n: int) -> bool:
        """Drop what follows action n - 1 of the newest chunk, if that answers `stamp`.

        What was executed stays, at least one action is played. True if something was dropped.
        """
        if not self._plans or self._plans[-1].stamp != stamp:
            return False
        plan = self._plans[-1]
        keep = max(n, 1, self._executed - plan.start)
        if keep >= len(plan.actions):
            return False
        plan.actions, plan.targets = plan.actions[:keep], plan.targets[:keep]
        self._plans = [plan]  # older predictions must not outlive it
        self._due = min(self._due, plan.end)
        return True

    @property
    def width(self) -> int:
        """How many numbers an action has."""
        return self._kind.width

    @property
    def stamp(self) -> int | None:
        """Stamp of the observation that the chunk in play answers; None without one."""
        return self._plans[-1].stamp if self._plans else None

    @property
    def rest(self) -> np.ndarray:
        """What will be played unless another chunk comes, [n, k]."""
        path, rows = self._path, []
        for number in range(self._executed, self._executed + self.remaining):
            rows.append(self._action(number, path))
            path = self._kind.moved(path, rows[-1]) if self._mixes else path
        return np.reshape(rows, (-1, self._kind.width))

    @property
    def remaining(self) -> int:
        """Actions that can be played without a new chunk."""
        return max(0, self._plans[-1].end - self._executed) if self._plans else 0

    @property
    def is_due(self) -> bool:
        """Whether the next chunk is wanted before anything else is done: time can wait for it."""
        return self._due <= self._executed

    @property
    def wants_chunk(self) -> bool:
        """Whether to ask for a chunk with the next observation, as time will not wait for it."""
        return self._due - self._executed <= self.lead

    @property
    def lead(self) -> int:
        """How many actions early a chunk is asked for."""
        return self.execution.prefetch or max([1, *self._delays])

    def next(self) -> np.ndarray | None:
        """The action [k] of this control step; None means hold still."""
        self._step += 1
        if self.remaining == 0:
            self.starved += bool(self._plans)
            return None
        action = self._action(self._executed, self._path)
        self._path = self._kind.moved(self._path, action) if self._mixes else self._path
        self._executed += 1
        return action

    def skips(self, stamp: int) -> int | None:
        """How many actions of a chunk for `stamp` are over; None: nothing is known of it."""
        mark = self._mark(stamp)
        return None if mark is None else self._executed - mark.executed

    def _action(self, number: int, path: Any) -> np.ndarray:
        newest = self._plans[-1]
        action = newest.actions[number - newest.start]
        if not self._mixes:
            return action
        targets = [p.targets[number - p.start] for p in self._plans if number < p.end]
        target = self._kind.mix(targets, age_weights(len(targets), ENSEMBLE_DECAY))
        return self._kind.action(path, target, action)

    def _fade(self, old: _Plan, new: _Plan) -> None:
        """Lead the new plan's targets gently away from what is left of the old plan's."""
        first, end = self._executed - new.start, min(old.end, new.end) - new.start
        if first >= end:
            return
        for k, weight in zip(range(first, end), fade_weights(first, end), strict=True):
            before = old.targets[new.start + k - old.start]
            new.targets[k] = self._kind.mix(
                [before, new.targets[k]], np.array([weight, 1.0 - weight])
            )
