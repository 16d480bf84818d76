# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scripted experts, one per task family, with privileged access to the scene.

They are functions of the current state alone: no phase counter, proportional commands. A policy
that sees one observation can therefore imitate them, and they can label any state a learner gets
into (DAgger, Ross et al. 2011).
"""

from __future__ import annotations

import numpy as np

from vla_prune_ros.sim.tabletop.controller import rotation_difference
from vla_prune_ros.sim.tabletop.tasks import (
    BLOCK_HALF,
    BLOCK_REST_HEIGHT,
    TABLE_HEIGHT,
    Scene,
    TabletopTask,
)

GAIN = 9.0  # action units per metre: an error of 0.1 m commands 0.9
TURN_GAIN = 2.0  # action units per radian
CARRY_HEIGHT = BLOCK_REST_HEIGHT + 0.115
LIFT_HEIGHT = BLOCK_REST_HEIGHT + 0.16
HOVER = 0.085  # m above the grasp while the hand is not yet over the block
OPEN, CLOSE = -1.0, 1.0


def expert_action(task: TabletopTask, scene: Scene) -> np.ndarray:
    """The expert's action [7] in the environment's convention."""
    if task.family == 'pick_up':
        target, gripper = _pick_up(task.colour, scene)
    else:
        target, gripper = _put_on_plate(task.colour, scene)
    move = np.clip(GAIN * (target - scene.hand), -1.0, 1.0)
    return np.concatenate([move, _level(scene), [gripper]])


class Demonstrator:
    """The expert with a drifting disturbance, so that others can learn how to get back.

    What is added is not seen in an observation, so the median of the actions at a state, which an
    L1 loss asks for, stays the expert's (Laskey et al. 2017, DART).
    """

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        """Take the standard deviation of one step's disturbance, in action units."""
        self._noise, self._rng = noise, np.random.default_rng(seed)
        self._sigma, self._drift = 0.0, np.zeros(6)
        self.reset()

    def reset(self) -> None:
        """Start an episode: some are disturbed more than others."""
        self._sigma, self._drift = self._rng.uniform(0.0, 2.0 * self._noise), np.zeros(6)

    def action(self, task: TabletopTask, scene: Scene) -> np.ndarray:
        """The next action [7] in the environment's convention, within -1..1."""
        action = expert_action(task, scene)
        fresh = self._rng.normal(0.0, self._sigma, 6) * [1, 1, 1, 0.15, 0.15, 0.15]
        self._drift = 0.8 * self._drift + 0.6 * fresh
        action[:6] = np.clip(action[:6] + self._drift, -1.0, 1.0)
        return action


def _pick_up(colour: str, scene: Scene) -> tuple[np.ndarray, float]:
    if _grasped(colour, scene):
        return np.array([*scene.hand[:2], LIFT_HEIGHT]), CLOSE
    return _approach(colour, scene)


def _put_on_plate(colour: str, scene: Scene) -> tuple[np.ndarray, float]:
    block, plate = scene.blocks[colour], scene.plate
    offset = plate[:2] - block[:2]
    distance = float(np.linalg.norm(offset))
    touching = block[2] - plate[2] - BLOCK_HALF < 0.016 and distance < 0.035
    if scene.on_plate(colour) and scene.gripper_open():
        return np.array([*scene.hand[:2], CARRY_HEIGHT]), OPEN  # leave upward
    if touching:
        return scene.hand, OPEN  # let go without lifting
    if not _grasped(colour, scene):
        return _approach(colour, scene)
    grip_height = scene.hand[2] - block[2]
    rest = TABLE_HEIGHT + 0.009 + (BLOCK_REST_HEIGHT - TABLE_HEIGHT) + grip_height - 0.004
    # a funnel again: down only near the plate's middle, and up before going sideways
    height = rest + (CARRY_HEIGHT - rest) * float(np.clip((distance - 0.012) / 0.05, 0.0, 1.0))
    lifted = float(np.clip((block[2] - BLOCK_REST_HEIGHT - 0.02) / 0.05, 0.0, 1.0))
    if distance < 0.065:
        lifted = 1.0
    return np.array([*(scene.hand[:2] + lifted * offset), height]), CLOSE


def _approach(colour: str, scene: Scene) -> tuple[np.ndarray, float]:
    """Over the block, down through a funnel, close when in place."""
    block = scene.blocks[colour]
    distance = float(np.linalg.norm(block[:2] - scene.hand[:2]))
    above = float(scene.hand[2] - block[2])
    in_place = distance < 0.011 and above < 0.012
    closing = not scene.gripper_open() and distance < 0.02 and above < 0.02
    if in_place or closing:
        return np.array([*block[:2], block[2]]), CLOSE
    height = block[2] + HOVER * float(np.clip((distance - 0.008) / 0.03, 0.0, 1.0))
    return np.array([*block[:2], height]), OPEN


def _grasped(colour: str, scene: Scene) -> bool:
    """Held, with the fingers at rest on the block's faces."""
    width = scene.fingers[0] - scene.fingers[1]
    return scene.held(colour) and bool(width < 0.0585)


def _level(scene: Scene) -> np.ndarray:
    """Turn [3] (action units, base frame) that points the hand straight down, yaw 0."""
    turn = rotation_difference(scene.hand_rotation, np.diag([1.0, -1.0, -1.0]))
    return np.clip(TURN_GAIN * turn, -0.5, 0.5)
