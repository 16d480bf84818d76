# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `tabletop`: eight language tasks in two families over one distribution of scenes.

Four coloured blocks and a plate are always on the table, so only the instruction tells which
block is meant and whether to hold it up or to put it on the plate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_prune_ros.sim.base import Task

COLOURS = ('red', 'green', 'blue', 'yellow')
N_INITIAL_STATES = 50
TABLE_HEIGHT = 0.9
BLOCK_HALF = 0.025
BLOCK_REST_HEIGHT = TABLE_HEIGHT + BLOCK_HALF
LIFTED = 0.10  # a block whose centre is this far above its rest height counts as picked up

# Blocks lie near the corners of a 2 x 2 grid, so that open fingers fit between neighbours.
_SLOTS = tuple((x, y) for x in (-0.095, 0.025) for y in (-0.125, 0.005))
_SLOT_JITTER = np.array([0.018, 0.018])
_YAW = 0.12  # rad
_PLATE = np.array([-0.035, 0.165])
_PLATE_JITTER = np.array([0.06, 0.015])
_JOINT_NOISE = 0.02  # rad


@dataclass(frozen=True)
class Scene:
    """Positions in the world frame (m): hand [3], hand_rotation [3, 3], fingers [2], ..."""

    hand: np.ndarray
    hand_rotation: np.ndarray
    fingers: np.ndarray
    blocks: dict[str, np.ndarray]
    plate: np.ndarray

    def gripper_open(self) -> bool:
        """Both fingers further out than half a block and a margin."""
        return bool(self.fingers[0] > 0.030 and self.fingers[1] < -0.030)

    def held(self, colour: str) -> bool:
        """The block is between the fingers and the fingers are closed on it."""
        offset = np.abs(self.hand_rotation.T @ (self.blocks[colour] - self.hand))
        return bool((offset < (0.03, 0.03, 0.03)).all() and not self.gripper_open())

    def on_plate(self, colour: str) -> bool:
        """The block rests on the plate."""
        offset = self.blocks[colour] - self.plate
        above = offset[2] - BLOCK_HALF
        return bool(np.linalg.norm(offset[:2]) < 0.05 and 0.0 <= above < 0.03)


@dataclass(frozen=True)
class TabletopTask(Task):
    """A task about one block."""

    colour: str = ''

    def succeeded(self, scene: Scene) -> bool:
        """The goal predicate of the task's family."""
        if self.family == 'pick_up':
            height = scene.blocks[self.colour][2] - BLOCK_REST_HEIGHT
            return scene.held(self.colour) and bool(height > LIFTED)
        away = np.linalg.norm(scene.hand - scene.blocks[self.colour]) > 0.06
        return scene.on_plate(self.colour) and scene.gripper_open() and bool(away)


TASKS = (
    *(TabletopTask(f'pick_up_{c}', f'pick up the {c} block', 'pick_up', 120, c) for c in COLOURS),
    *(
        TabletopTask(
            f'put_{c}_on_plate', f'put the {c} block on the plate', 'put_on_plate', 200, c
        )
        for c in COLOURS
    ),
)


@dataclass(frozen=True)
class Layout:
    """Initial state: colour -> (x, y, yaw), plate (x, y), offsets of the seven joints."""

    blocks: dict[str, tuple[float, float, float]]
    plate: np.ndarray
    joint_noise: np.ndarray


def initial_layout(task: int, initial_state: int, split: str) -> Layout:
    """Layout `initial_state` of a task: 0..49 for split 'test', any index for 'train'."""
    if split not in ('test', 'train'):
        raise ValueError(f"split must be 'test' or 'train', got {split!r}")
    limit = N_INITIAL_STATES if split == 'test' else 1 << 30
    if not 0 <= initial_state < limit:
        raise ValueError(f'initial state {initial_state} is outside 0..{limit - 1}')
    rng = np.random.default_rng([split == 'train', task, initial_state])
    order = rng.permutation(len(_SLOTS))
    blocks = {}
    for colour, slot in zip(COLOURS, order, strict=True):
        x, y = np.array(_SLOTS[slot]) + rng.uniform(-1, 1, 2) * _SLOT_JITTER
        blocks[colour] = (float(x), float(y), float(rng.uniform(-_YAW, _YAW)))
    return Layout(
        blocks=blocks,
        plate=_PLATE + rng.uniform(-1, 1, 2) * _PLATE_JITTER,
        joint_noise=rng.uniform(-1, 1, 7) * _JOINT_NOISE,
    )
