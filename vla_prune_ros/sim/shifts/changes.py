# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Changes within an episode: what the robot is about to reach moves, or is not meant any more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vla_prune_ros.sim.shifts.base import Shift, World

NEAR = 0.12  # m between hand and target at which the target moves
REACHED = 0.04  # m between hand and target that count as there
ON_PLATE = 0.05  # m sideways between target and plate that count as there
LIFTED = 0.03  # m over its start that a target in the hand counts as grasped
SLIDE_STEPS = 10
PUSH_STEPS = 2
GRAVITY, PERIOD = 9.81, 0.05  # m/s2; s of a control step
_DIRECTIONS = 24  # that are tried
_BLOCKS_IN = np.array([[-0.22, -0.17], [0.12, 0.10]])  # corners of where blocks are seen, reached
_PLATE_IN = np.array([[-0.16, 0.08], [0.08, 0.21]])
_APART = 0.085  # m between the middles of two blocks
_FROM_PLATE = 0.10  # m between the middles of a block and the plate
_FROM_HAND = 0.045  # m sideways from a low hand


class Change(Shift):
    """Something happens once, as soon as the hand is near the target."""

    backends = ('tabletop',)
    within = True
    recovers = True
    unit = 'm'

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        self.happened = False
        self._first_angle = self.rng.uniform(0.0, 2.0 * np.pi)

    def before_step(self, step: int) -> str:
        """The change, once."""
        if self.happened:
            self.go_on()
        elif self.due():
            self.happened = True
            self.happen()
            return self.axis
        return ''

    def near(self) -> float:
        """Distance between hand and target, m, at which it is to happen."""
        return NEAR

    def due(self) -> bool:
        """Whether it is to happen now."""
        return self.world.reach(self.world.scene.target) < self.near()

    def happen(self) -> None:
        """Change the world, or begin to."""
        raise NotImplementedError

    def go_on(self) -> None:
        """The steps after that one."""

    def recovered(self) -> bool:
        """The hand is at the target."""
        return self.world.reach(self.world.scene.target) < REACHED

    def move(self, thing: str, way: np.ndarray) -> None:
        """Set a block elsewhere.

        Args:
            thing: its name.
            way: xy, m [2].
        """
        scene = self.world.scene
        pose = scene.pose(thing)
        pose[:2] += way
        scene.place(thing, pose)
        scene.refresh()

    def displacement(self) -> np.ndarray:
        """Where a block can go, xy [2] from where it is: the first drawn direction with room.

        Without any such direction it is that with most room.
        """
        scene, hand = self.world.scene, self.world.hand
        here = scene.position(scene.target)
        others = [scene.position(name)[:2] for name in scene.movable if name != scene.target]

        def room(there: np.ndarray) -> float:
            margins = [*(there - _BLOCKS_IN[0]), *(_BLOCKS_IN[1] - there)]
            margins += [np.linalg.norm(there - other) - _APART for other in others]
            plate = scene.data.xpos[scene.goal][:2]
            margins.append(np.linalg.norm(there - plate) - _FROM_PLATE)
            if hand[2] - here[2] < 0.07:
                margins.append(np.linalg.norm(there - hand[:2]) - _FROM_HAND)
            return float(min(margins))

        return self._choose(here[:2], room)

    def _choose(self, here: np.ndarray, room: Callable[[np.ndarray], float]) -> np.ndarray:
        angles = self._first_angle + np.arange(_DIRECTIONS) * 2.0 * np.pi / _DIRECTIONS
        steps = self.severity * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        rooms = [room(here + step) for step in steps]
        free = next((k for k, r in enumerate(rooms) if r >= 0.0), int(np.argmax(rooms)))
        return steps[free]


class Jump(Change):
    """The target is elsewhere from one step to the next."""

    axis = 'jump'
    summary = 'target set elsewhere once the hand is near'
    levels = (0.02, 0.04, 0.06, 0.09, 0.12)

    def happen(self) -> None:
        """Set it elsewhere."""
        self.move(self.world.scene.target, self.displacement())


class Slide(Change):
    """The target is pulled away, half a second long."""

    axis = 'slide'
    summary = 'target pulled away once the hand is near, within half a second'
    levels = (0.03, 0.045, 0.06, 0.075, 0.09)

    def happen(self) -> None:
        """Begin."""
        self._thing, self._left = self.world.scene.target, SLIDE_STEPS
        self._stride = self.displacement() / SLIDE_STEPS
        self.go_on()

    def go_on(self) -> None:
        """One of ten strides."""
        if self._left:
            self._left -= 1
            self.move(self._thing, self._stride)


class Push(Change):
    """The target is pushed at its foot for a tenth of a second; friction decides the rest.

    With friction mu, mass m and a force of m (a + mu g) for t seconds it slides for
    a t^2 (1 + a / (mu g)) / 2.
    """

    axis = 'push'
    summary = 'target pushed by a short force once the hand is near'
    levels = (0.03, 0.05, 0.07, 0.09, 0.12)

    def happen(self) -> None:
        """Let the force act."""
        scene = self.world.scene
        body, model = scene.movable[scene.target], scene.model
        geom = model.body_geomadr[body]
        friction = float(model.geom_friction[geom, 0]) * GRAVITY
        time = PUSH_STEPS * PERIOD
        wanted = 2.0 * self.severity / time**2
        a = 0.5 * friction * (np.sqrt(1.0 + 4.0 * wanted / friction) - 1.0)
        way = self.displacement() / self.severity
        force = float(model.body_mass[body]) * (a + friction) * np.array([*way, 0.0])
        arm = np.array([0.0, 0.0, -float(model.geom_size[geom, 2])])  # at the foot: no tumbling
        self._body, self._left = body, PUSH_STEPS
        scene.data.xfrc_applied[body] = [*force, *np.cross(arm, force)]

    def go_on(self) -> None:
        """Stop it after a while."""
        if self._left:
            self._left -= 1
            if not self._left:
                self.world.scene.data.xfrc_applied[self._body] = 0.0


class Plate(Change):
    """The goal is elsewhere when the target has been grasped."""

    axis = 'plate'
    summary = 'goal set elsewhere once the target is grasped'
    levels = (0.03, 0.05, 0.07, 0.09, 0.11)
    families = ('put_on_plate',)

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        self._rest = world.scene.position(world.scene.target)[2]

    def due(self) -> bool:
        """The target is in the hand, and lifted."""
        height = self.world.scene.position(self.world.scene.target)[2]
        return height > self._rest + LIFTED and super().recovered()

    def happen(self) -> None:
        """Set the goal elsewhere, away from the blocks that lie."""
        scene = self.world.scene
        place = scene.model.body_pos[scene.goal]
        others = [scene.position(name)[:2] for name in scene.movable if name != scene.target]

        def room(there: np.ndarray) -> float:
            margins = [*(there - _PLATE_IN[0]), *(_PLATE_IN[1] - there)]
            margins += [np.linalg.norm(there - other) - _FROM_PLATE for other in others]
            return float(min(margins))

        place[:2] += self._choose(place[:2].copy(), room)
        scene.refresh()

    def recovered(self) -> bool:
        """The target is over the goal."""
        scene = self.world.scene
        offset = scene.position(scene.target) - scene.data.xpos[scene.goal]
        return bool(np.linalg.norm(offset[:2]) < ON_PLATE)


class _AtDistance(Change):
    """Happens when the hand is as near as the level says."""

    levels = (0.16, 0.13, 0.10, 0.07, 0.05)

    def near(self) -> float:
        """That of the level."""
        return self.severity


class Swap(_AtDistance):
    """The target and another block change places."""

    axis = 'swap'
    summary = 'target and another block change places when the hand is that near'

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        scene = world.scene
        others = sorted(name for name in scene.movable if name != scene.target)
        self._other = others[self.rng.integers(len(others))]

    def happen(self) -> None:
        """Change their places."""
        scene = self.world.scene
        one, other = scene.pose(scene.target), scene.pose(self._other)
        scene.place(scene.target, other)
        scene.place(self._other, one)
        scene.refresh()


class Instruction(_AtDistance):
    """Another block is asked for."""

    axis = 'instruction'
    summary = 'another target is asked for when the hand is that near'

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        tasks = world.robot.tasks
        family = tasks[world.task].family
        others = [k for k, t in enumerate(tasks) if t.family == family and k != world.task]
        self._task = others[self.rng.integers(len(others))]

    def happen(self) -> None:
        """Ask for it."""
        self.world.robot.assign(self._task)  # type: ignore[attr-defined]  # of the tabletop
