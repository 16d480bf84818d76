# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a robot may move: facts in, state and reason out. Pure Python, any clock.

`idle` (nothing is commanded, others may drive) -> `holding` (enabled, hold still) <-> `running`;
any -> `stopped`: a fault, kept until `reset` leads back to idle. What was moving is held still for
`release_time` before nothing is commanded any more. This is no safety function.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

IDLE, HOLDING, RUNNING, STOPPED = STATES = ('idle', 'holding', 'running', 'stopped')
LATE_IN_A_ROW = 5
STATE_PATIENCE = 1.0  # s without state that end the hold
OUTSIDE = 0.02  # m beyond the box at which something is wrong
JUMP_FACTOR = 3.0  # times the speed limit
JUMP_SLACK = 0.01  # m of noise of a measured pose
STALL_SHARE = 1.0 / 3.0
STALL_LEAST = 0.05  # m that must have been asked for


@dataclass(frozen=True)
class Rules:
    """Times in seconds; a `permit_timeout` of 0: a permit does not age.

    What is `measured` of the arm is a pose or joints: for the reasons that are given.
    """

    state_timeout: float = 0.1
    hold_timeout: float = 10.0
    release_time: float = 0.3
    permit_timeout: float = 0.0
    dry_run: bool = False
    measured: str = 'pose'

    def outside(self, distance: float) -> str:
        """That the arm is outside its bounds by so much."""
        if self.measured == 'pose':
            return f'the pose is {distance:.3f} m outside limits.box'
        return f'a joint is {distance:.3f} outside joints.low, joints.high'


@dataclass(frozen=True)
class Facts:
    """What is known at one tick. Texts are empty if all is well.

    Attributes:
        now: s of a clock that never jumps.
        playable: whether there is an action to play; `pause`: why there must not be one.
        pose_age, joints_age: s since the newest; inf without one.
        outside: m, or rad, by which the arm is outside its bounds.
        pose_fault: what is wrong with the measured pose.
        stalled: what the arm did not do.
        misfit: why policy and robot do not go together.
        chunk_sources: nodes that publish chunks; `rivals`: others that command the arm.
        listeners: readers of our commands.
        permit: None where none is needed; `permit_age`: s.
        halted: what the controller says of a halt.
        late: ticks in a row that came too late.
    """

    now: float
    playable: bool = True
    pause: str = ''
    pose_age: float = 0.0
    joints_age: float = 0.0
    outside: float = 0.0
    pose_fault: str = ''
    stalled: str = ''
    misfit: str = ''
    chunk_sources: tuple[str, ...] = ('policy',)
    rivals: tuple[str, ...] = ()
    listeners: int = 1
    permit: bool | None = None
    permit_age: float = 0.0
    halted: str = ''
    late: int = 0


class Supervisor:
    """Keeps the state and why it is so.

    Attributes:
        state: one of `STATES`; `reason`: why.
        events: how often each kind of hold or stop happened.
    """

    def __init__(self, rules: Rules, on_change: Callable[[str, str], None] | None = None) -> None:
        self.rules, self._on_change = rules, on_change
        self.state, self.reason = IDLE, 'not enabled'
        self.events: Counter[str] = Counter()
        self._held_since = 0.0
        self._silent_from = -inf  # end of the hold after which nothing is commanded

    def commands(self, now: float) -> bool:
        """Whether commands are sent, be it to hold still."""
        return self.state in (HOLDING, RUNNING) or now < self._silent_from

    def enable(self, facts: Facts) -> list[str]:
        """Leave idle; the reasons why not, if there are any."""
        if self.state in (HOLDING, RUNNING):
            return []
        if self.state == STOPPED:
            return [f'stopped: {self.reason}; call ~/reset first']
        found = [text for _, text in self._stops(facts)]
        if facts.pose_age > self.rules.state_timeout:
            found.append(_silence('pose', facts.pose_age))
        if facts.joints_age > self.rules.state_timeout:
            found.append(_silence('joint states', facts.joints_age))
        if facts.outside > 0.0 and facts.outside <= OUTSIDE:
            found.append(self.rules.outside(facts.outside))
        if len(facts.chunk_sources) != 1:
            found.append(_sources(facts.chunk_sources))
        if not found:
            self._held_since = facts.now
            self._go(HOLDING, 'enabled, waiting for a chunk')
        return found

    def disable(self, now: float, reason: str = 'disabled') -> None:
        """Hold for `release_time`, then leave the arm to others. Does not end a stop."""
        if self.state in (HOLDING, RUNNING):
            self._silent_from = now + self.rules.release_time
            self._go(IDLE, reason)

    def stop(self, kind: str, reason: str, now: float) -> None:
        """A fault: hold, then be silent, until `reset`."""
        if self.state == STOPPED:
            return
        self.events[kind] += 1
        if self.state in (HOLDING, RUNNING):
            self._silent_from = now + self.rules.release_time
        self._go(STOPPED, reason)

    def reset(self) -> None:
        """Back to idle."""
        if self.state == STOPPED:
            self._go(IDLE, 'reset')

    def blocked(self, facts: Facts) -> str:
        """Why nothing may be played with these facts; '' if it may."""
        stops = self._stops(facts)
        return stops[0][1] if stops else self._hold(facts)[1]

    def tick(self, facts: Facts) -> str:
        """The state that follows from the facts."""
        if self.state not in (HOLDING, RUNNING):
            return self.state
        for kind, reason in self._stops(facts):
            self.stop(kind, reason, facts.now)
            return self.state
        kind, reason = self._hold(facts)
        if not kind:
            self._go(RUNNING, '')
            return self.state
        if self.state == RUNNING:
            self._held_since = facts.now
        if kind != 'waiting' and (self.state == RUNNING or reason != self.reason):
            self.events[kind] += 1
        if facts.now - self._held_since > self.rules.hold_timeout:
            self.stop('held', f'held still for {self.rules.hold_timeout:g} s: {reason}', facts.now)
        else:
            self._go(HOLDING, reason)
        return self.state

    def _stops(self, facts: Facts) -> list[tuple[str, str]]:
        """Every fault, the most severe first: kind and reason."""
        found, rules = [], self.rules
        if facts.permit is False:
            found.append(('permit', 'permit is not given'))
        elif facts.permit and rules.permit_timeout and facts.permit_age > rules.permit_timeout:
            found.append(('permit', f'permit is {facts.permit_age:.2f} s old'))
        if facts.rivals:
            found.append(('rival', f'also commands the arm: {", ".join(facts.rivals)}'))
        if not facts.listeners and not rules.dry_run:
            found.append(('no reader', 'nobody listens to our commands'))
        if facts.pose_fault:
            found.append(('pose', facts.pose_fault))
        if max(facts.pose_age, facts.joints_age) > STATE_PATIENCE:
            late = 'pose' if facts.pose_age >= facts.joints_age else 'joint states'
            found.append(('silence', _silence(late, max(facts.pose_age, facts.joints_age))))
        if facts.outside > OUTSIDE:
            found.append(('outside', rules.outside(facts.outside)))
        if facts.misfit:
            found.append(('misfit', facts.misfit))
        if facts.stalled and not rules.dry_run:
            found.append(('stall', facts.stalled))
        if facts.late >= LATE_IN_A_ROW:
            found.append(('late', f'{facts.late} ticks in a row came too late'))
        return found

    def _hold(self, facts: Facts) -> tuple[str, str]:
        """Kind and reason to hold still; empty for none."""
        timeout = self.rules.state_timeout
        if facts.pose_age > timeout:
            return 'silence', f'no new pose for {timeout:g} s'
        if facts.joints_age > timeout:
            return 'silence', f'no new joint states for {timeout:g} s'
        if len(facts.chunk_sources) > 1:
            return 'sources', _sources(facts.chunk_sources)
        if facts.halted:
            return 'halted', f'the controller halts: {facts.halted}'
        if facts.pause:
            return 'pause', facts.pause
        if not facts.playable:
            if self.state == HOLDING and self.reason == 'enabled, waiting for a chunk':
                return 'waiting', self.reason
            return 'starved', 'no action to play'
        return '', ''

    def _go(self, state: str, reason: str) -> None:
        if (state, reason) == (self.state, self.reason):
            return
        self.state, self.reason = state, reason
        if self._on_change is not None:
            self._on_change(state, reason)


class PoseWatch:
    """Finds jumps of a measured pose."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._last: tuple[float, np.ndarray] | None = None

    def forget(self) -> None:
        """Whatever comes next is no jump."""
        self._last = None

    def check(self, stamp: float, position: np.ndarray) -> str:
        """What is wrong with a new position [3] (m) at `stamp` (s); '' if nothing."""
        last, self._last = self._last, (stamp, position)
        if last is None or stamp <= last[0]:
            return ''
        moved, time = float(np.linalg.norm(position - last[1])), stamp - last[0]
        if moved > JUMP_FACTOR * self._speed * time + JUMP_SLACK:
            return f'the measured pose jumped by {moved:.3f} m in {1e3 * time:.0f} ms'
        return ''


class Progress:
    """Compares what was asked of the arm with what it did, over some time."""

    def __init__(self, span: float, unit: str = 'm') -> None:
        self._span, self._unit = span, unit
        self._steps: deque[tuple[float, np.ndarray, np.ndarray]] = deque()

    def forget(self) -> None:
        """Start anew."""
        self._steps.clear()

    def add(self, now: float, expected: np.ndarray, position: np.ndarray) -> str:
        """A step is asked of an arm at `position`; what it did not do, empty if all is well."""
        steps = self._steps
        steps.append((now, expected, position))
        if now - steps[0][0] < self._span:
            return ''
        asked = float(np.linalg.norm(sum(step[1] for step in list(steps)[:-1])))
        moved = float(np.linalg.norm(position - steps[0][2]))
        while now - steps[0][0] >= self._span:
            steps.popleft()
        if asked > STALL_LEAST and moved < STALL_SHARE * asked:
            unit = self._unit
            return f'the arm moved {moved:.3f} {unit} of {asked:.3f} {unit} in {self._span:g} s'
        return ''


def _silence(what: str, age: float) -> str:
    return f'no {what} yet' if age == inf else f'{what}: the newest is {age:.2f} s away'


def _sources(names: tuple[str, ...]) -> str:
    return f'chunks come from {", ".join(names)}' if names else 'nobody publishes chunks'
