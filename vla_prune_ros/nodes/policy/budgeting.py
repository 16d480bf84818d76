# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The budget of every inference: what the deadline allows and what the audit asks for.

Lives in the worker's thread, around `VLAPolicy.step`. Knows no ROS; times are in seconds of
whatever clock the caller has. What is decided here is written into the statistics of the chunk, so
a replay takes it from there and needs neither clock nor governor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.nodes.policy.trigger import Tick

if TYPE_CHECKING:
    from vla_prune_ros.nodes.policy.inference import Answer
    from vla_prune_ros.policy import VLAPolicy
    from vla_prune_ros.policy.audit import IdleTime, Watch
    from vla_prune_ros.policy.governor import Decision, Governor


class InPlay:
    """How much of the published chunk the robot has left, as its reports say."""

    def __init__(self) -> None:
        self._stamp: int | None = None
        self._actions = self._played = 0
        self._reports = False  # whether the robot tells what it executes

    def published(self, stamp: int, actions: int) -> None:
        """A chunk left for the robot; it replaces the one before."""
        self._stamp, self._actions, self._played = stamp, actions, 0

    def told(self, tick: Tick) -> None:
        """Take in what was executed before an observation."""
        self._reports |= bool(tick.executed)
        if self._stamp is not None:
            self._played += sum(end > self._stamp for e in tick.executed for end in e.ends)

    def forget(self) -> None:
        """Nothing is in play."""
        self._stamp = None

    @property
    def left(self) -> int | None:
        """Actions left; None without a chunk or reports, or where it has run dry already."""
        left = self._actions - self._played
        return left if self._stamp is not None and self._reports and left > 0 else None


class Budgeting:
    """See the module's text.

    Attributes:
        decision: of the governor for the latest inference; None while it is off.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._applied: tuple | None = None  # what `apply` followed last
        self._key: tuple = ()  # mode and options that are governed or measured
        self._governors: dict[tuple, Governor] = {}
        self._passes: Generator[None, None, Governor] | None = None
        self._recorded: set[tuple] = set()
        self._governor: Governor | None = None
        self.decision: Decision | None = None
        self._in_play = InPlay()
        self._watch: Watch | None = None
        self._idle: IdleTime | None = None
        self._due = False  # the latest chunk is to be audited
        self._played, self._share = 0, 1.0  # of it: actions to play, visual tokens kept
        self._usual = 0.0  # share that the mode keeps by its own options; 0: not seen yet
        self._stamp = self._audited = 0  # ns, of it, and of the one audited last
        self._given_up = 0
        self._took = 0.0

    def load(self) -> None:
        """Another policy: what was measured does not count any more."""
        self._applied = self._governor = self.decision = self._passes = None
        self._governors.clear()
        self._recorded.clear()
        self.forget()

    def forget(self) -> None:
        """The history was emptied from outside."""
        from vla_prune_ros.pruning.controller import SpeedController, Thresholds

        self._motion, self._steps, self._thresholds = SpeedController(), 0, Thresholds()
        self._in_play.forget()
        self._due = False
        if self._watch is not None:
            self._watch.reset()

    def apply(self, policy: VLAPolicy, config: PolicyConfig, instruction: str) -> bool:
        """Follow the parameters.

        A mode that is governed for the first time is measured: `measure` does it pass by pass.

        Returns:
            Whether `info` changed.

        Raises:
            ValueError: the mode has no budget, and one is needed.
        """
        wanted = config.budgeting, config.pruning
        if wanted == self._applied:
            return False
        known, self._applied = self._applied, wanted  # even if it fails: not again at every tick
        before = self.info()
        if known is None or known[0] != config.budgeting:
            self._apply_audit(config)
        self._governor = self.decision = self._passes = None
        self._usual = 0.0
        if (config.governed or config.watched) and policy.budget_kind == 'none':
            mode = policy.settings.mode
            raise ValueError(f'pruning mode {mode!r} has no budget with these options')
        if config.governed:
            self._begin(policy, instruction)
        return self.info() != before

    def measure(self, policy: VLAPolicy) -> bool:
        """Make one pass of a measurement, if one is going on.

        Returns:
            Whether it was the last one: the governor begins.
        """
        if self._passes is None:
            return False
        passes, self._passes = self._passes, None
        try:
            next(passes)
        except StopIteration as done:
            self._governor = self._governors[self._key] = governor = done.value
        else:
            self._passes = passes
            return False
        model, rows = governor.model, [*governor.rows.values()]
        self._log.info(
            f'governor of {policy.settings.mode}: {1e3 * model.constant:.1f} ms and '
            f'{1e6 * model.per_row:.1f} us per row; dense {1e3 * model(rows[-1]):.1f} ms, '
            f'smallest {1e3 * model(rows[0]):.1f} ms'
        )
        return True

    @property
    def measuring(self) -> bool:
        """Whether a measurement is going on; until it is over the mode has its own budget."""
        return self._passes is not None

    def before(self, policy: VLAPolicy, config: PolicyConfig, tick: Tick, waited: float) -> None:
        """Choose the budget of an inference.

        Args:
            policy: that is about to answer.
            config: in force.
            tick: what it answers.
            waited: seconds since the observation was complete.
        """
        self._in_play.told(tick)
        moves = policy.config.action_kind == 'delta_pose'  # of joint positions nobody knows
        for event in tick.events():
            if moves and isinstance(event, np.ndarray):
                self._steps += len(event)
                self._motion.follow(list(event), self._steps, self._thresholds)
        own = config.pruning_options.get('budget')
        if own is None:  # the mode has none, and nobody asks for one
            return
        wanted = self._watch.floor if self._watch is not None else 0.0
        share = max(own, wanted)
        if not own and wanted <= self._usual:
            share = own  # which is more than what the audit asks for
        if self._governor is not None:
            fine = config.governor_floor_fine if self._motion.fine else 0.0
            deadline = self._deadline(config)
            left = None if deadline is None else deadline - waited
            floor = max(config.governor_floor, fine, wanted)
            self.decision = self._governor.decide(left, floor)
            share = self.decision.share
        if share != policy.settings.options['budget']:
            policy.set_budget(share)

    def after(self, answer: Answer, stamp: int, begun: float, left: bool, now: float) -> None:
        """Learn from an inference.

        Args:
            answer: what came of it.
            stamp: of its observation, ns.
            begun: s, when `before` was called.
            left: whether the chunk left for the robot.
            now: s.
        """
        chunk = answer.chunk
        if self._governor is not None and not answer.cold:
            self._governor.learn(now - begun, chunk.rows, dense=chunk.dense)
        if left:
            self._in_play.published(stamp, len(chunk.actions))
        if self._watch is not None and self._idle is not None:
            if chunk.reset_reason:
                self._watch.reset()
            self._idle.asked(answer.offered)
            self._idle.answered(now)
            self._due = left
            self._played, self._share = answer.requery, len(chunk.kept) / chunk.n_visual
            if not (chunk.dense or chunk.stats.get('budget')):
                self._usual = self._share
            self._stamp = stamp

    # -- audit ----------------------------------------------------------------------------------
    def audit(
        self,
        policy: VLAPolicy,
        give_up: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Run the latest observation dense if there seems to be time; once for every chunk."""
        if not self._due or self._watch is None or self._idle is None:
            return
        self._due = False
        started = clock()
        if not self._idle.fits(started):
            return
        found = policy.audit(give_up, self._played)
        if found is None:
            self._given_up += 1
            return
        self._took = clock() - started
        self._idle.took(self._took)
        self._watch.take(found, self._share)
        self._audited = self._stamp

    # -- what is said ---------------------------------------------------------------------------
    def values(self) -> dict[str, Any]:
        """For the statistics of a chunk."""
        values: dict[str, Any] = {}
        if self.measuring:
            values['governor.state'] = 'measuring'
        elif (decision := self.decision) is not None:
            values |= {
                'governor.deadline_ms': _ms(decision.deadline),
                'governor.budget': decision.share,
                'governor.predicted_p95_ms': _ms(decision.predicted),
                'governor.scale': round(decision.scale, 4),
                'governor.margin': round(decision.margin, 4),
                'governor.state': decision.state,
                'governor.changes': decision.changes,
            }
        if (watch := self._watch) is not None:
            values |= {'audit.count': watch.count, 'audit.given_up': self._given_up}
            if (found := watch.latest) is not None:
                values |= {f'audit.{name}': float(x) for name, x in found.groups.items()}
                values |= {
                    'audit.overall': found.overall,
                    'audit.smoothed': float(watch.smoothed),
                    'audit.stamp': self._audited,
                    'audit.pass_ms': _ms(self._took),
                    'audit.floor': watch.floor,
                }
        return values

    @property
    def deviation(self) -> float:
        """Smoothed, as the audit has it; NaN where nothing is known."""
        return float('nan') if self._watch is None else self._watch.smoothed

    def info(self) -> dict[str, Any]:
        """For the latched description of the policy."""
        if self._governor is None:
            return {}
        model, rows = self._governor.model, self._governor.rows
        return {
            'governor.constant_ms': _ms(model.constant),
            'governor.per_row_us': round(1e6 * model.per_row, 3),
            'governor.classes': ', '.join(f'{share:g}' for share in rows),
            'governor.rows': ', '.join(f'{n:.0f}' for n in rows.values()),
        }

    def _deadline(self, config: PolicyConfig) -> float | None:
        """Seconds from the complete observation to the chunk; None where nobody knows."""
        known = [config.governor_deadline] if config.governor_deadline else []
        if config.governor_auto and (left := self._in_play.left) is not None:
            known.append(left / config.control_rate - config.governor_reserve)
        return min(known, default=None)

    def _apply_audit(self, config: PolicyConfig) -> None:
        from vla_prune_ros.policy.audit import IdleTime, Watch

        self._watch = self._idle = None
        self._due = False
        if config.audit_enabled:
            self._watch = Watch(config.audit_threshold, config.audit_response)
            self._idle = IdleTime()

    def _begin(self, policy: VLAPolicy, instruction: str) -> None:
        """Take the governor of the mode in force, or begin to measure for one."""
        from vla_prune_ros.policy import SOME_INSTRUCTION
        from vla_prune_ros.policy.calibration import calibration
        from vla_prune_ros.pruning import CLASSES

        text = instruction or SOME_INSTRUCTION
        options = {k: v for k, v in policy.settings.options.items() if k != 'budget'}
        self._key = policy.settings.mode, tuple(sorted(options.items()))
        if policy.runtime_stats()['runtime'] != 'plain' and self._key not in self._recorded:
            policy.warm_up(instruction=text, budgets=CLASSES)
            self._recorded.add(self._key)
        self._governor = self._governors.get(self._key)
        if self._governor is None:
            self._passes = calibration(policy, text)


def _ms(seconds: float | None) -> float | str:
    return '' if seconds is None else round(1e3 * seconds, 3)
