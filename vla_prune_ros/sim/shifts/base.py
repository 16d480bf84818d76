# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a shift is: one way in which the world differs from the suite, at a level of 1 to 5."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vla_prune_ros.sim.base import SimulatedRobot
from vla_prune_ros.sim.scene import MujocoScene

MAX_LEVEL = 5
EVERYWHERE = ('tabletop', 'libero')
EXTRA_STEPS = 80  # that an episode gets after a change within it
Images = dict[str, np.ndarray]


@dataclass(frozen=True)
class World:
    """The episode that a shift belongs to.

    Attributes:
        robot: the robot itself, already reset.
        seed: of the shifts.
        task, state: index of the task, initial state.
    """

    robot: SimulatedRobot
    seed: int
    task: int
    state: int

    @property
    def scene(self) -> MujocoScene:
        """The simulation as it is now."""
        scene = self.robot.mujoco_scene()
        assert scene is not None  # axes name the backends that they apply to
        return scene

    @property
    def hand(self) -> np.ndarray:
        """Position [3] of the hand."""
        return self.robot.observe(render=False).ee_position

    def reach(self, thing: str) -> float:
        """Metres from the hand to a movable thing."""
        return float(np.linalg.norm(self.hand - self.scene.position(thing)))


class Shift:
    """One shift in one episode; by itself it changes nothing.

    What it draws depends on seed, axis, level, task and initial state only, so every policy meets
    the same. It is made anew for every episode, when the robot has been reset; its constructor
    may change the scene.

    Attributes:
        axis: its name; `summary` and `unit` say what the severities are.
        levels: severity of levels 1 to 5.
        backends: robots that it applies to.
        families: families of tasks that it applies to; () for all.
        within: whether it comes and goes within the episode.
        recovers: whether `recovered` has a meaning.
        late: whether images may be older than the instant, see `lag`.
        severity: that of the level.
        rng: for everything that is drawn in the constructor.
    """

    axis: ClassVar[str]
    summary: ClassVar[str]
    unit: ClassVar[str]
    levels: ClassVar[tuple[float, ...]]
    backends: ClassVar[tuple[str, ...]] = EVERYWHERE
    families: ClassVar[tuple[str, ...]] = ()
    within: ClassVar[bool] = False
    recovers: ClassVar[bool] = False
    late: ClassVar[bool] = False

    def __init__(self, world: World, level: int) -> None:
        self.world, self.level = world, level
        self.severity = self.levels[level - 1]
        self._key = (
            world.seed,
            zlib.crc32(self.axis.encode()),
            level,
            world.task,
            world.state,
        )
        self.rng = np.random.default_rng(self._key)

    def draws(self, *more: int) -> np.random.Generator:
        """Random numbers of their own, for example of one picture."""
        return np.random.default_rng((*self._key, *more))

    def before_step(self, step: int) -> str:
        """Before control step `step`, from 0; the kind of event that happened, or ''."""
        return ''

    def recovered(self) -> bool:
        """Whether the robot is, after the event, where it was stopped."""
        return False

    def lag(self, step: int) -> int:
        """How many steps old the images are that are shown after `step` steps."""
        return 0

    def pictures(self, images: Images, step: int) -> Images:
        """The images as they are shown; `step` is when they were taken."""
        return images

    def words(self, instruction: str) -> str:
        """The instruction as it is given."""
        return instruction
