# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Chunks as absolute targets, so that they can be mixed. Pure numpy.

Chunks of joint positions are that already (`JointPlans`), end-effector deltas are not.

Deltas of different observations must not be averaged: each is relative to where the others would
have led. So a plan is integrated to absolute targets along the path of all commands, from the
point of that path at its observation; mixed there; and the command is the step from the path's
end to the mixed target. A compliant arm lags behind its commands, and anchoring at measured poses
would take that lag for a disagreement of the plans. Where the path begins cancels out.

Positions are in controller units. Rotations need the size of a unit in rad: axis-angle in the base
frame, by default as in robosuite's OSC_POSE and OpenVLA-OFT's data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

ROTATION_SCALE = 0.5  # rad per unit


@dataclass(frozen=True)
class Pose:
    """A point of the commanded path: position [3] in units, rotation [3, 3]."""

    position: np.ndarray
    rotation: np.ndarray

    @classmethod
    def origin(cls) -> Pose:
        """Where a path begins."""
        return cls(np.zeros(3), np.eye(3))

    def moved(self, deltas: np.ndarray, scale: float = ROTATION_SCALE) -> Pose:
        """After the first six numbers of an action, which the robot clips to [-1, 1]."""
        deltas = np.clip(deltas[:6], -1.0, 1.0)
        turn = rotation_matrix(scale * deltas[3:])
        return Pose(self.position + deltas[:3], turn @ self.rotation)

    def deltas_to(self, target: Pose, scale: float = ROTATION_SCALE) -> np.ndarray:
        """Six deltas in [-1, 1] that lead toward `target`; what is clipped off is still to do."""
        turn = rotation_vector(target.rotation @ self.rotation.T) / scale
        return np.clip(np.concatenate([target.position - self.position, turn]), -1.0, 1.0)


def integrate(start: Pose, actions: np.ndarray, scale: float = ROTATION_SCALE) -> list[Pose]:
    """Target after each action of a chunk [n, 7] that begins at `start`."""
    targets = []
    for action in actions:
        start = start.moved(action, scale)
        targets.append(start)
    return targets


def mix(targets: list[Pose], weights: np.ndarray) -> Pose:
    """Weighted mean of targets that lie near each other; the weights sum to 1."""
    position = np.tensordot(weights, [t.position for t in targets], axes=1)
    last = targets[-1].rotation
    turns = [rotation_vector(t.rotation @ last.T) for t in targets]
    return Pose(position, rotation_matrix(np.tensordot(weights, turns, axes=1)) @ last)


class DeltaPlans:
    """Plans of six deltas and a gripper, which is never mixed.

    A path is where the commands so far have led, a `Pose`.
    """

    width = 7

    def __init__(self, rotation_scale: float = ROTATION_SCALE) -> None:
        """`rotation_scale`: rad per unit of a delta."""
        self._scale = rotation_scale

    def origin(self) -> Pose:
        """Where a path begins."""
        return Pose.origin()

    def targets(self, path: Pose, actions: np.ndarray) -> list[Pose]:
        """What the actions [n, 7] of a chunk lead to from a point of the path."""
        return integrate(path, actions, self._scale)

    def mix(self, targets: list[Pose], weights: np.ndarray) -> Pose:
        """Weighted mean of targets."""
        return mix(targets, weights)

    def action(self, path: Pose, target: Pose, newest: np.ndarray) -> np.ndarray:
        """What leads to a mixed target; the rest is that of the newest plan's action."""
        return np.concatenate([path.deltas_to(target, self._scale), newest[6:]])

    def moved(self, path: Pose, action: np.ndarray) -> Pose:
        """The path with one more action."""
        return path.moved(action, self._scale)


class JointPlans:
    """Plans of absolute joint positions, grippers among them: every number is a target itself."""

    def __init__(self, width: int) -> None:
        """`width`: how many joints."""
        self.width = width

    def origin(self) -> None:
        """No path is needed."""

    def targets(self, path: None, actions: np.ndarray) -> list[np.ndarray]:
        """The rows of a chunk."""
        return list(actions)

    def mix(self, targets: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
        """Weighted mean of targets."""
        return np.tensordot(weights, targets, axes=1)

    def action(self, path: None, target: np.ndarray, newest: np.ndarray) -> np.ndarray:
        """The target."""
        return target

    def moved(self, path: Any, action: np.ndarray) -> None:
        """No path is needed."""


def fade_weights(first: int, end: int) -> np.ndarray:
    """Weights of the old plan for steps first..end-1 after the observation of the new one.

    The soft part of the mask of real-time chunking (arXiv 2506.07339, section 4), here as a
    cross-fade in time: c (e^c - 1) / (e - 1) with c falling evenly to 0 at `end`.
    """
    c = (end - np.arange(first, end)) / (end - first + 1)
    return c * np.expm1(c) / math.expm1(1.0)


def age_weights(n: int, decay: float) -> np.ndarray:
    """Weights exp(-decay * i) of n predictions, i = 0 the oldest, with sum 1 (ACT)."""
    weights = np.exp(-decay * np.arange(n))
    return weights / weights.sum()


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] of an axis-angle vector [3] (rad)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    first = math.sin(angle) / angle if angle > 1e-9 else 1.0
    second = 2.0 * (math.sin(angle / 2) / angle) ** 2 if angle > 1e-9 else 0.5
    return np.eye(3) + first * cross + second * cross @ cross


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis-angle [3] (rad) of a rotation [3, 3] by less than half a turn."""
    axis = 0.5 * np.array(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )
    sine, cosine = float(np.linalg.norm(axis)), (float(np.trace(matrix)) - 1.0) / 2.0
    if sine < 1e-9:
        return axis
    return axis * (math.atan2(sine, cosine) / sine)
