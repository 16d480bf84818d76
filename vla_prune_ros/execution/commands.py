# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From an action to what is commanded of an arm: anchor, gain, limits, hold. Pure numpy.

An action is an offset of a soft goal, of which the arm of the training data covered a part (a
quarter, for robosuite's OSC_POSE) in one step. A controller that is as soft takes the offset as it
is, from the measured pose. A stiff one would do four times too much: it gets the part, from the
last command, or as a velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.execution.targets import Pose, rotation_matrix, rotation_vector

ANCHORS = ('measured', 'command', 'velocity')
SMALLEST_GAP = 0.2  # s between two commands to a gripper
OPEN_ABOVE, CLOSED_BELOW = 0.6, 0.4


@dataclass(frozen=True)
class Limits:
    """What no command may exceed; m, s, rad.

    Attributes:
        low, high: corners of the workspace [3], of the policy's grip point.
        speed, turn: of the motion that is to be expected.
        lead, lead_turn: how far a commanded target may be ahead of the measured pose.
    """

    low: np.ndarray
    high: np.ndarray
    speed: float = 0.25
    turn: float = 1.0
    lead: float = 0.05
    lead_turn: float = 0.3

    def __post_init__(self) -> None:
        """ValueError for a box without room or a limit that is not positive."""
        if not np.all(np.asarray(self.low) < np.asarray(self.high)):
            raise ValueError(
                'limits.box: x, y, z of the low corner, then of the high one (m); it is required'
            )
        for name in ('speed', 'turn', 'lead', 'lead_turn'):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'limits.{name}: {getattr(self, name)} is not positive')

    def outside(self, position: np.ndarray) -> float:
        """Distance (m) of a point from the box; 0 inside."""
        return float(np.linalg.norm(position - np.clip(position, self.low, self.high)))


@dataclass(frozen=True)
class Command:
    """What is commanded for one control step, of the policy's grip point in the base frame.

    Attributes:
        pose: the target, `twist`: m/s and rad/s [6] that lead there.
        expected: m [3], the motion that should come of it, if the arm follows.
        effective: what is left of the action's six deltas after gain, scale and limits.
        limited: names of the limits that counted.
    """

    pose: Pose
    twist: np.ndarray
    expected: np.ndarray
    effective: np.ndarray
    limited: tuple[str, ...] = ()


class Commander:
    """Turns actions into commands, one per control step."""

    def __init__(
        self,
        semantics: Semantics,
        limits: Limits,
        period: float,
        anchor: str = 'measured',
        gains: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Prepare.

        Args:
            semantics: of the actions.
            limits: in force in every step.
            period: control period, s.
            anchor: measured, a target counts from the measured pose; command, from the last one;
                velocity, there is none, as only the twist is used.
            gains: of position and rotation; 0: 1 with the measured anchor, else the part that the
                arm of the training data covered.
        """
        if anchor not in ANCHORS:
            raise ValueError(f'anchor: {anchor!r} is not one of {", ".join(ANCHORS)}')
        self.semantics, self.limits, self.period, self.anchor = semantics, limits, period, anchor
        s, soft = semantics, anchor == 'measured'
        self.gains = (
            gains[0] or (1.0 if soft else s.step_position / s.scale_position),
            gains[1] or (1.0 if soft else s.step_rotation / s.scale_rotation),
        )
        # Of what is commanded an arm as soft as the one of the training data covers this part.
        self._covers = s.step_position / s.scale_position if soft else 1.0
        self._turns = s.step_rotation / s.scale_rotation if soft else 1.0
        self.forget()

    def forget(self) -> None:
        """Nothing is commanded."""
        self._last: Pose | None = None
        self._before: Pose | None = None

    def too_far(self, action: np.ndarray, measured: Pose) -> str:
        """Deltas never are: they count from where the arm is."""
        return ''

    def command(
        self,
        action: np.ndarray,
        measured: Pose,
        speed_scale: float = 1.0,
        rest: np.ndarray | None = None,
    ) -> Command:
        """What an action [7] means for an arm at `measured`; what follows it does not matter."""
        s, limits, period = self.semantics, self.limits, self.period
        units = np.clip(action[:6], -1.0, 1.0)
        shift = s.scale_position * units[:3] * self.gains[0] * speed_scale
        turn = s.scale_rotation * units[3:] * self.gains[1] * speed_scale
        if s.rotation == 'rpy':
            turn = rotation_vector(_from_rpy(turn))
        limited = []
        for name, vector, most in (
            ('speed', shift, limits.speed * period / self._covers),
            ('turn', turn, limits.turn * period / self._turns),
        ):
            size = float(np.linalg.norm(vector))
            if size > most * (1.0 + 1e-9):
                vector *= most / size
                limited.append(name)
        base = self._last if self.anchor == 'command' and self._last is not None else measured
        position = base.position + shift
        # What is outside already is not pulled back: that would be a motion nobody asked for.
        boxed = np.clip(
            position, np.minimum(limits.low, base.position), np.maximum(limits.high, base.position)
        )
        if np.any(boxed != position):
            position, limited = boxed, [*limited, 'box']
        target = Pose(position, rotation_matrix(turn) @ base.rotation)
        expected = (position - base.position) * self._covers  # or a stuck arm asks for nothing
        if self.anchor == 'command':
            target, leashed = self._leash(target, measured, limits.lead, limits.lead_turn)
            limited += leashed
        shift = target.position - base.position
        self._before, self._last = self._last, target
        effective = np.concatenate(
            [
                shift / (s.scale_position * self.gains[0]),
                turn / (s.scale_rotation * self.gains[1]),
            ]
        )
        return Command(
            target,
            np.concatenate([shift, turn]) / period,
            expected,
            np.clip(effective, -1.0, 1.0),
            tuple(limited),
        )

    def between(self, fraction: float) -> Pose | None:
        """Where a stiff arm should be so far through the step; a soft goal is a step."""
        start, end = self._before, self._last
        if self.anchor != 'command' or start is None or end is None or fraction >= 1.0:
            return end
        turn = rotation_vector(end.rotation @ start.rotation.T)
        return Pose(
            start.position + fraction * (end.position - start.position),
            rotation_matrix(fraction * turn) @ start.rotation,
        )

    def freeze(self, measured: Pose) -> Pose:
        """The target to repeat from now on, so that the arm comes to rest.

        The last target; of a soft arm's offset the part that a step would have covered, as this
        stops it the soonest. It is made once: a soft arm that is sent to where it is measured,
        again and again, creeps away.
        """
        last = measured if self._last is None or self.anchor == 'velocity' else self._last
        if self.anchor == 'measured':
            part = self._covers
            vector = self._turns * rotation_vector(last.rotation @ measured.rotation.T)
            self._last = Pose(
                measured.position + part * (last.position - measured.position),
                rotation_matrix(vector) @ measured.rotation,
            )
        else:
            limits = self.limits
            self._last, _ = self._leash(last, measured, limits.lead, limits.lead_turn)
        self._before = None
        return self._last

    def hold(self, pose: Pose) -> Command:
        """The command to stay at a frozen pose."""
        return Command(pose, np.zeros(6), np.zeros(3), np.zeros(6))

    def executed(self, command: Command, action: np.ndarray) -> np.ndarray:
        """What was executed of an action [7]: its deltas as they are left, and its gripper."""
        return np.concatenate([command.effective, action[6:]])

    @staticmethod
    def _leash(target: Pose, measured: Pose, lead: float, turn: float) -> tuple[Pose, list[str]]:
        """The target within reach of the measured pose, and what was shortened."""
        limited, position, rotation = [], target.position, target.rotation
        ahead = position - measured.position
        if (size := float(np.linalg.norm(ahead))) > lead:
            position, limited = measured.position + ahead * (lead / size), ['lead']
        vector = rotation_vector(rotation @ measured.rotation.T)
        if (size := float(np.linalg.norm(vector))) > turn:
            rotation = rotation_matrix(vector * (turn / size)) @ measured.rotation
            limited.append('lead_turn')
        return Pose(position, rotation), limited


@dataclass(frozen=True)
class Tool:
    """Where another point of the hand is, seen from the one that is known.

    Such as the point that the controller moves, seen from the policy's grip point.
    """

    offset: Pose

    @property
    def moves(self) -> bool:
        """Whether it is another point at all."""
        turned = np.any(self.offset.rotation != np.eye(3))
        return bool(turned or np.any(self.offset.position))

    def pose(self, grip: Pose) -> Pose:
        """Of the other point."""
        if not self.moves:
            return grip
        return Pose(
            grip.position + grip.rotation @ self.offset.position,
            grip.rotation @ self.offset.rotation,
        )

    def twist(self, twist: np.ndarray, grip: Pose) -> np.ndarray:
        """Of the other point [6], in the base frame."""
        lever = grip.rotation @ self.offset.position
        return np.concatenate([twist[:3] + np.cross(twist[3:], lever), twist[3:]])


class GripperLatch:
    """When a gripper is told something: on a clear change, not too often."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """It is not known what the gripper was told."""
        self.open: bool | None = None
        self._changed = -1e9

    def update(self, openness: float, now: float) -> bool | None:
        """Whether to open (True) or to close (False) now; None: nothing new."""
        wish = self.open
        if openness > OPEN_ABOVE:
            wish = True
        elif openness < CLOSED_BELOW:
            wish = False
        if wish is None or wish == self.open or now - self._changed < SMALLEST_GAP:
            return None
        self.open, self._changed = wish, now
        return wish


def _from_rpy(angles: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] of turns about the fixed x, then y, then z axis (rad)."""
    x, y, z = (
        rotation_matrix(angle * axis) for angle, axis in zip(angles, np.eye(3), strict=True)
    )
    return z @ y @ x
