# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A scripted expert for libero_spatial: put the black bowl that is meant on the plate.

It has privileged access: it is told where bowl and plate are. It answers with chunks that are
played open loop, as a policy's are, so it plans each against a model of the arm and corrects
itself at the next observation. Its purpose is to prove the way from state to success, with the
placeholder assets, whose bowl fits between the fingers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_prune_ros.sim.base import quaternion_to_axis_angle

BOWL, PLATE = 'akita_black_bowl_1', 'plate_1'  # the goal of all ten tasks: On(BOWL, PLATE)
OPEN, CLOSED = 1.0, 0.0  # raw gripper scale of a policy
POSITION_STEP = 0.05  # m per unit of action
STIFFNESS = 150.0  # of robosuite's OSC_POSE controller, critically damped
PHYSICS_STEP, SUBSTEPS = 0.002, 25
GAIN = 25.0  # action units per metre
TURN_GAIN = 2.0  # action units per radian
ABOVE = 0.09  # m over the bowl before going down
GRIP = 0.004  # m of the grip point over the middle of the bowl
LIFT = 0.11  # m
CARRY = 1.02  # m, lowest height of the hand over the table's things
RELEASE = 0.024  # m of the bowl's middle over the plate's, when let go
NEAR = 0.009  # m that count as there, sideways
LEVEL = 0.008  # m that count as there, in height
DOWN = np.diag([1.0, -1.0, -1.0])  # orientation of a hand that points straight down


@dataclass(frozen=True)
class Situation:
    """Positions in the world frame (m), orientation of the hand as a quaternion xyzw."""

    hand: np.ndarray
    orientation: np.ndarray
    bowl: np.ndarray
    plate: np.ndarray


class BowlExpert:
    """Eight phases, each over when its goal is reached at an observation."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self.phase = 'approach'
        self._height = 0.0  # of the hand when the bowl was gripped
        self._velocity = np.zeros(3)  # m/s, as the model has it after the last chunk
        self._lag = np.zeros(3)  # m by which the arm stays behind its goal at rest

    def chunk(self, now: Situation, length: int = 8) -> np.ndarray:
        """The next actions, float64 [length, 7], in the units of a policy."""
        before = self.phase
        self._advance(now)
        target, gripper = self._aim(now)
        miss = target - now.hand
        if self.phase != before:
            self._lag[:] = 0.0
        elif np.linalg.norm(miss) < 0.04:  # close by, and not there after a whole chunk
            self._lag = np.clip(self._lag + 0.5 * miss, -0.04, 0.04)
        target = target + self._lag
        position, actions = now.hand.copy(), np.zeros((length, 7))
        turn = np.clip(TURN_GAIN * _turn_down(now.orientation), -0.3, 0.3)
        for k in range(length):
            actions[k, :3] = np.clip(GAIN * (target - position), -1.0, 1.0)
            actions[k, 3:6] = turn * 0.8**k
            actions[k, 6] = gripper
            position, self._velocity = arm_model(position, self._velocity, actions[k, :3])
        return actions

    def _advance(self, now: Situation) -> None:
        """Go on to the next phase if this one's goal is reached, back if the bowl was lost."""
        rise = now.hand[2] - self._height
        held = abs(now.hand[2] - now.bowl[2]) < 0.04 and _distance(now.hand, now.bowl) < 0.04
        if self.phase == 'approach':
            there = abs(now.hand[2] - now.bowl[2] - ABOVE) < 0.02
            if there and _distance(now.hand, now.bowl) < NEAR:
                self.phase = 'down'
        elif self.phase == 'down':
            if abs(now.hand[2] - now.bowl[2] - GRIP) < LEVEL:
                self.phase, self._height = 'close', now.hand[2]
        elif self.phase == 'close':
            self.phase = 'lift'
        elif self.phase in ('lift', 'carry', 'lower') and not held:
            self.phase = 'approach'
        elif self.phase == 'lift':
            if rise > 0.8 * LIFT and now.hand[2] > CARRY - 0.02:
                self.phase = 'carry'
        elif self.phase == 'carry':
            if _distance(now.bowl, now.plate) < NEAR:
                self.phase = 'lower'
        elif self.phase == 'lower':
            if now.bowl[2] - now.plate[2] < RELEASE + LEVEL:
                self.phase = 'open'
        elif self.phase == 'open':
            self.phase = 'leave'
        elif self.phase == 'leave' and now.hand[2] > now.bowl[2] + ABOVE:
            self.phase = 'approach'  # it did not count: once more

    def _aim(self, now: Situation) -> tuple[np.ndarray, float]:
        """Where the hand is to go in this phase, and the gripper."""
        bowl, hand = now.bowl, now.hand
        over_plate = hand[:2] + now.plate[:2] - bowl[:2]
        aims = {
            'approach': (np.array([*bowl[:2], bowl[2] + ABOVE]), OPEN),
            'down': (np.array([*bowl[:2], bowl[2] + GRIP]), OPEN),
            'close': (hand, CLOSED),
            'lift': (np.array([*hand[:2], max(self._height + LIFT, CARRY)]), CLOSED),
            'carry': (np.array([*over_plate, max(self._height + LIFT, CARRY)]), CLOSED),
            'lower': (np.array([*over_plate, now.plate[2] + RELEASE + hand[2] - bowl[2]]), CLOSED),
            'open': (hand, OPEN),
            'leave': (np.array([*hand[:2], hand[2] + 0.15]), OPEN),
        }
        return aims[self.phase]


def arm_model(
    position: np.ndarray, velocity: np.ndarray, deltas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Position and velocity [3] after one control step of the position half of OSC_POSE.

    The goal is fixed at the beginning of the step; unit mass, critical damping.
    """
    goal = position + POSITION_STEP * deltas
    for _ in range(SUBSTEPS):
        force = STIFFNESS * (goal - position) - 2.0 * np.sqrt(STIFFNESS) * velocity
        velocity = velocity + PHYSICS_STEP * force
        position = position + PHYSICS_STEP * velocity
    return position, velocity


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Horizontal distance (m)."""
    return float(np.linalg.norm(a[:2] - b[:2]))


def _turn_down(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector [3] (rad, world frame) from an orientation to straight down, yaw 0."""
    x, y, z, w = quaternion
    # DOWN is half a turn about x, the quaternion (1, 0, 0, 0); times the inverse of the current.
    turn = np.array([w, z, -y, x])
    return quaternion_to_axis_angle(turn if turn[3] >= 0 else -turn)
