# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From absolute joint positions to what is commanded of the joints: units, limits, hold.

Pure numpy. A trajectory controller gets the whole rest of a plan, so that it needs no further word
to play it and to stay at its end. What is commanded counts from the last command; it is never far
ahead of the measured joints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_prune_ros.execution.semantics import Semantics

ROUNDING = 1e-9


@dataclass(frozen=True)
class JointLimits:
    """What no command may exceed, for each of n joints; rad or m.

    Attributes:
        low, high: positions [n].
        speed: [n], per s.
        lead: how far a command may be ahead of the measured joint, [n].
        jump: how far the first position of a plan may be from the measured joint, [n].
    """

    low: np.ndarray
    high: np.ndarray
    speed: np.ndarray
    lead: np.ndarray
    jump: np.ndarray

    def __post_init__(self) -> None:
        """ValueError for joints without room or a limit that is not positive."""
        if not np.all(self.low < self.high):
            raise ValueError(
                'joints.low, joints.high: the lowest and the highest position of each joint; they '
                'are required'
            )
        for name in ('speed', 'lead', 'jump'):
            if not np.all(getattr(self, name) > 0.0):
                raise ValueError(f'limits.joint_{name}: not positive')

    def outside(self, position: np.ndarray) -> float:
        """How far the worst joint is out of its range; 0 inside."""
        return float(np.max(np.abs(position - np.clip(position, self.low, self.high))))


@dataclass(frozen=True)
class Joints:
    """Positions [n] of all joints."""

    position: np.ndarray


@dataclass(frozen=True)
class JointCommand:
    """What is commanded for one control step, and what follows unless something else comes.

    Attributes:
        pose: where the joints should be at the end of the step.
        path: [k, n], that and what follows, a control step apart.
        holds: whether it is to come to rest there.
        expected: [n], the motion that should come of it.
        effective: [n] what is left of the action, in units of the policy and in its order.
        limited: names of the limits that counted.
    """

    pose: Joints
    path: np.ndarray
    holds: bool
    expected: np.ndarray
    effective: np.ndarray
    limited: tuple[str, ...] = ()

    def follows(self, before: JointCommand | None) -> bool:
        """Whether a controller that plays `before` does this already."""
        if before is None or self.holds or before.holds or len(before.path) <= len(self.path):
            return False
        return bool(np.allclose(before.path[1 : 1 + len(self.path)], self.path, atol=ROUNDING))


class JointCommander:
    """Turns joint positions of a policy into commands, one per control step."""

    def __init__(
        self,
        semantics: Semantics,
        limits: JointLimits,
        period: float,
        names: Sequence[str],
        scale: np.ndarray,
        offset: np.ndarray,
    ) -> None:
        """Prepare.

        Args:
            semantics: of the actions; its joints are those of the robot, in any order.
            limits: in force in every step.
            period: control period, s.
            names: of the robot's joints.
            scale: rad or m per unit of the policy, [n].
            offset: of the robot at 0 of the policy, rad or m, [n].
        """
        self.semantics, self.limits, self.period = semantics, limits, period
        self._names = tuple(names)
        self._order = [semantics.joints.index(name) for name in names]
        self._scale, self._offset = scale, offset
        self.forget()

    def forget(self) -> None:
        """Nothing is commanded."""
        self._last: np.ndarray | None = None

    def too_far(self, action: np.ndarray, measured: Joints) -> str:
        """Why an action must not be the first one of a plan; '' if it may."""
        ahead = np.abs(self._scale * action[self._order] + self._offset - measured.position)
        worst = int(np.argmax(ahead / self.limits.jump))
        if ahead[worst] <= self.limits.jump[worst]:
            return ''
        return f'{self._names[worst]} would jump by {ahead[worst]:.3f}'

    def command(
        self, action: np.ndarray, measured: Joints, speed_scale: float, rest: np.ndarray
    ) -> JointCommand:
        """What an action [n] means for joints that are at `measured`; `rest` [k, n] follows it."""
        limited: set[str] = set()
        start = measured.position if self._last is None else self._last
        path: list[np.ndarray] = []
        at = start
        for row in np.vstack([action[None], rest]):
            at = self._step(row, at, speed_scale, limited)
            if not path:
                close = np.clip(
                    at, measured.position - self.limits.lead, measured.position + self.limits.lead
                )
                if np.any(np.abs(close - at) > ROUNDING):
                    limited.add('lead')
                    at = close
            path.append(at)
        self._last = path[0]
        effective = np.empty(len(path[0]))
        effective[self._order] = (path[0] - self._offset) / self._scale
        return JointCommand(
            Joints(path[0]), np.array(path), False, path[0] - start, effective,
            tuple(sorted(limited)),
        )  # fmt: skip

    def _step(
        self, action: np.ndarray, at: np.ndarray, speed_scale: float, limited: set[str]
    ) -> np.ndarray:
        """The next position on the way from `at` to an action."""
        limits, wish = self.limits, self._scale * action[self._order] + self._offset
        # What is outside already is not pulled back: that would be a motion nobody asked for.
        inside = np.clip(wish, np.minimum(limits.low, at), np.maximum(limits.high, at))
        most = limits.speed * speed_scale * self.period
        step = np.clip(inside - at, -most, most)
        if np.any(np.abs(inside - wish) > ROUNDING):
            limited.add('joint_range')
        if np.any(np.abs(step - (inside - at)) > ROUNDING):
            limited.add('joint_speed')
        return at + step

    def between(self, fraction: float) -> None:
        """A trajectory controller finds its way itself."""

    def freeze(self, measured: Joints) -> Joints:
        """Where to come to rest: the last command, within reach of the measured joints."""
        last = measured.position if self._last is None else self._last
        lead = self.limits.lead
        self._last = np.clip(last, measured.position - lead, measured.position + lead)
        return Joints(self._last)

    def hold(self, pose: Joints) -> JointCommand:
        """The command to come to rest there."""
        n = len(pose.position)
        return JointCommand(pose, pose.position[None], True, np.zeros(n), np.zeros(n))

    def executed(self, command: JointCommand, action: np.ndarray) -> np.ndarray:
        """What was executed of an action, in units of the policy."""
        return command.effective
