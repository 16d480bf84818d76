# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The budget of every inference: what the deadline allows and what the audit asks for.

Lives in the worker's thread, around `VLAPolicy.step`. Knows no ROS; times are in seconds of
whatever clock the caller has. What is decided here is written into the statistics of the chunk, so
a replay takes it from there and needs neither clock nor governor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.nodes.policy.trigger import Tick
from vla_prune_ros.pruning.controller import SpeedController, Thresholds

if TYPE_CHECKING:
    from vla_prune_ros.policy import ActionChunk, VLAPolicy
    from vla_prune_ros.policy.audit import IdleTime, Watch
    from vla_prune_ros.policy.governor import Decision, Governor

NANOSECONDS = 1_000_000_000


class InPlay:
    """How much of the published chunk the robot has left, as its reports say."""

    def __init__(self) -> None:
        self._stamp: int | None = None
        self._actions = self._played = 0

    def published(self, stamp: int, actions: int) -> None:
        """A chunk left for the robot; it replaces the one before."""
        self._stamp, self._actions, self._played = stamp, actions, 0

    def told(self, tick: Tick) -> None:
        """Take in what was executed before an observation."""
        if self._stamp is not None:
            self._played += sum(end > self._stamp for e in tick.executed for end in e.ends)

    def forget(self) -> None:
        """Nothing is in play."""
        self._stamp = None

    @property
    def left(self) -> int | None:
        """Actions left; None without a chunk, or where it has run dry already."""
        left = self._actions - self._played
        return left if self._stamp is not None and left > 0 else None


class Budgeting:
    """See the module's text.

    Attributes:
        decision: of the governor for the latest inference; None while it is off.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._config: PolicyConfig | None = None  # that was applied last
        self._governors: dict[tuple, Governor] = {}
        self._recorded: set[tuple] = set()
        self._governor: Governor | None = None
        self.decision: Decision | None = None
        self._in_play = InPlay()
        self._thresholds = Thresholds()
        self._watch: Watch | None = None
        self._idle: IdleTime | None = None
        self._due = 0  # 1 + actions to compare of the chunk that is to be audited; 0: none
        self._given_up = 0
        self._took = 0.0
        self.forget()

    def load(self) -> None:
        """Another policy: what was measured does not count any more."""
        self._config, self._governor = None, None
        self._governors.clear()
        self._recorded.clear()
        self.forget()

    def forget(self) -> None:
        """The history was emptied from outside."""
        self._motion, self._steps = SpeedController(), 0
        self._in_play.forget()
        self._due = 0
        if self._watch is not None:
            self._watch.reset()

    def apply(self, policy: VLAPolicy, config: PolicyConfig, instruction: str) -> bool:
        """Follow the parameters; measures the classes of a mode the first time it is governed.

        Returns:
            Whether something changed that readers of `~/policy_info` should know.

        Raises:
            ValueError: the mode has no budget, and one is needed.
        """
        changed = self._config is None or config.budgeting != self._config.budgeting
        if changed:
            self._apply_audit(config)
        self._config = config
        before, self._governor = self._governor, None
        if config.governed:
            self._governor = self._governor_of(policy, instruction)
        elif before is not None:
            self.decision = None
        return changed or before is not self._governor

    def before(self, policy: VLAPolicy, tick: Tick, waited: float) -> None:
        """Choose the budget of an inference.

        Args:
            policy: that is about to answer.
            tick: what it answers.
            waited: seconds since the observation was complete.
        """
        config = self._config
        assert config is not None  # `apply` comes first
        self._in_play.told(tick)
        for event in tick.events():
            if isinstance(event, np.ndarray):
                self._steps += len(event)
                self._motion.follow(list(event), self._steps, self._thresholds)
        own = config.pruning_options.get('budget')
        if own is None:  # the mode has none, and nobody asks for one
            return
        wanted = self._watch.floor if self._watch is not None else 0.0
        share = max(own, wanted)
        if self._governor is not None:
            fine = config.governor_floor_fine if self._motion.fine else 0.0
            deadline = self._deadline(config)
            left = None if deadline is None else deadline - waited
            floor = max(config.governor_floor, fine, wanted)
            self.decision = self._governor.decide(left, floor)
            share = self.decision.share
        if share != policy.settings.options['budget']:
            policy.set_budget(share)

    def after(self, chunk: ActionChunk, seconds: float, *, cold: bool) -> None:
        """Learn from an inference.

        Args:
            chunk: what came of it.
            seconds: since `before`.
            cold: it is not like others.
        """
        if self._governor is not None and not cold:
            self._governor.learn(seconds, chunk.rows, dense=chunk.dense)
        if self._watch is not None and chunk.reset_reason:
            self._watch.reset()

    def published(self, stamp: int, chunk: ActionChunk, played: int, now: float) -> None:
        """A chunk left for the robot.

        Args:
            stamp: of its observation, ns.
            chunk: the chunk.
            played: how many of its actions are to be played; 0: all.
            now: s.
        """
        self._in_play.published(stamp, len(chunk.actions))
        if self._watch is not None:
            assert self._idle is not None
            self._idle.answered(now)
            self._due = 1 + played
            self._share = _share_of(chunk)

    # -- audit ----------------------------------------------------------------------------------
    def asked(self, now: float) -> None:
        """A request came."""
        if self._idle is not None:
            self._idle.asked(now)

    def audit(
        self, policy: VLAPolicy, give_up: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        """Run the latest observation dense if there seems to be time; once for every chunk."""
        if not self._due or self._watch is None or self._idle is None:
            return
        steps, self._due = self._due - 1, 0
        started = clock()
        if not self._idle.fits(started):
            return
        found = policy.audit(give_up, steps)
        if found is None:
            self._given_up += 1
            return
        self._took = clock() - started
        self._idle.took(self._took)
        self._watch.take(found, self._share)

    # -- what is said ---------------------------------------------------------------------------
    def values(self) -> dict[str, Any]:
        """For the statistics of a chunk."""
        values: dict[str, Any] = {}
        if (decision := self.decision) is not None and self._governor is not None:
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
                    'audit.stamp': round(found.stamp * NANOSECONDS),
                    'audit.pass_ms': _ms(self._took),
                    'audit.floor': watch.floor,
                }
        return values

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
        self._due = 0
        if config.audit_enabled:
            self._watch = Watch(config.audit_threshold, config.audit_response)
            self._idle = IdleTime()

    def _governor_of(self, policy: VLAPolicy, instruction: str) -> Governor:
        """The governor of the mode in force, with all that it may choose recorded."""
        from vla_prune_ros.policy.calibration import calibrate
        from vla_prune_ros.pruning import CLASSES

        options = {k: v for k, v in policy.settings.options.items() if k != 'budget'}
        key = policy.settings.mode, tuple(sorted(options.items()))
        text = instruction or 'pick up the object'
        records = policy.runtime_stats()['runtime'] != 'plain'
        tokens = policy.processor.prompt(text)[0].shape[1] if records else 0
        if (*key, tokens) not in self._recorded:
            policy.warm_up(instruction=text, budgets=CLASSES)
            self._recorded.add((*key, tokens))
        if key not in self._governors:
            self._governors[key] = governor = calibrate(policy, text)
            model = governor.model
            self._log.info(
                f'governor of {policy.settings.mode}: {1e3 * model.constant:.1f} ms and '
                f'{1e6 * model.per_row:.1f} us per row; dense '
                f'{1e3 * model(governor.rows[CLASSES[-1]]):.1f} ms, smallest '
                f'{1e3 * model(governor.rows[CLASSES[0]]):.1f} ms'
            )
        return self._governors[key]


def _ms(seconds: float | None) -> float | str:
    return '' if seconds is None else round(1e3 * seconds, 3)


def _share_of(chunk: ActionChunk) -> float:
    """Share of the visual tokens that entered the last layer."""
    return len(chunk.kept) / chunk.n_visual
