# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot in a shifted world: the same interface, the same tasks and initial states."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla_prune_ros.sim import backend_of
from vla_prune_ros.sim.base import Event, SimObservation, SimulatedRobot
from vla_prune_ros.sim.scene import MujocoScene
from vla_prune_ros.sim.shifts.axes import AXES, Plan, check_backend, parse_shift
from vla_prune_ros.sim.shifts.base import EXTRA_STEPS, Images, Shift, World

RECOVERED = 'recovered'
_MEMORY = 64  # frames that a late or dropped one can lie back


class ShiftedRobot(SimulatedRobot):
    """Wraps a robot; an empty shift is that robot itself, bit for bit.

    `events` has the changes within the episode, and `recovered` when the hand is, after one, at
    its target.
    """

    def __init__(self, robot: SimulatedRobot, shift: str = '', seed: int = 0) -> None:
        """Wrap a robot, which nobody else may use.

        Args:
            robot: is closed with this one.
            shift: as `parse_shift` takes it.
            seed: of everything that is drawn.

        Raises:
            ValueError: unknown axis or level, or an axis that this robot cannot have.
        """
        self.inner, self._seed = robot, seed
        for name in ('suite', 'control_hz', 'tasks', 'n_initial_states', 'joint_names', 'cameras',
                     'notice', 'slow_task_change'):  # fmt: skip
            setattr(self, name, getattr(robot, name))
        self._plan: Plan = ()
        self._next: tuple[Plan, int] = ((), seed)
        self.change(shift, seed)
        self._shifts: list[Shift] = []
        self._open: list[Shift] = []  # changes after which the hand is not yet at its target
        self._restore: Callable[[], None] = lambda: None
        self._model: Any = None
        self._frames: deque[Callable[[], Images]] = deque(maxlen=_MEMORY)
        self._step = 0
        self._start = 0.0  # the robot's time when the episode began

    def change(self, shift: str, seed: int | None = None) -> None:
        """Another shift, from the next reset on.

        Raises:
            ValueError: as the constructor; the old one stays.
        """
        plan = parse_shift(shift)
        check_backend(plan, backend_of(self.inner.suite))
        self._next = (plan, self._next[1] if seed is None else seed)

    # -- SimulatedRobot ------------------------------------------------------------------------
    @property
    def instruction(self) -> str:
        """As it is said now."""
        text = self.inner.instruction
        for shift in self._shifts:
            text = shift.words(text)
        return text

    def reset(self, task: int | str, initial_state: int, render: bool = True) -> SimObservation:
        """Start an episode in the shifted world."""
        self._restore()
        self._plan, self._seed = self._next
        self._shifts, self._open, self._step = [], [], 0
        self.events, self.extra_steps = (), 0
        self._frames.clear()
        if not self._plan:
            self._start = 0.0
            return self.inner.reset(task, initial_state, render)
        self.inner.reset(task, initial_state, render=False)
        self._keep_original()
        world = World(self.inner, self._seed, self.task_index(task), initial_state)
        for axis, level in self._plan:
            if applies(axis, self.tasks[world.task].family):
                self._shifts.append(AXES[axis](world, level))
        self._start = self.inner.observe(render=False).time
        if (scene := self.inner.mujoco_scene()) is not None:
            scene.refresh()
        self._remember()
        return self._packed(self.inner.observe(render=False), render)

    def step(self, action: np.ndarray, render: bool = True) -> SimObservation:
        """One control step, before which the world may change."""
        if not self._shifts:
            return self.inner.step(action, render)
        for shift in self._shifts:
            if kind := shift.before_step(self._step):
                self._happened(kind)
                if shift.recovers:
                    self._open.append(shift)
        observation = self.inner.step(action, render=False)
        self._step += 1
        self._remember()
        for shift in [shift for shift in self._open if shift.recovered()]:
            self._open.remove(shift)
            self._happened(RECOVERED)
        return self._packed(observation, render)

    def observe(self, render: bool = True) -> SimObservation:
        """The observation of the current instant."""
        if not self._shifts:
            return self.inner.observe(render)
        return self._packed(self.inner.observe(render=False), render)

    def snapshot(self) -> Callable[[], Images]:
        """The images of this instant as they are shown, drawn later."""
        frame = self.inner.snapshot()
        if not self._shifts:
            return frame
        step, shifts, frames = self._step, self._shifts, [*self._frames] or [frame]
        return lambda: _shown(shifts, step, frames)

    def success(self) -> bool:
        """That of the task in force."""
        return self.inner.success()

    def camera_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Where the camera really is."""
        return self.inner.camera_pose(name)

    def landmarks(self, camera: str) -> dict[str, np.ndarray]:
        """Where things really are, however late the frames."""
        return self.inner.landmarks(camera)

    def objects(self) -> dict[str, np.ndarray]:
        """True poses."""
        return self.inner.objects()

    def mujoco_scene(self) -> MujocoScene | None:
        """That of the robot."""
        return self.inner.mujoco_scene()

    def close(self) -> None:
        """Close the robot."""
        self.inner.close()

    # -- helpers -------------------------------------------------------------------------------
    def _keep_original(self) -> None:
        """Remember the model's fields; a backend may build another model for every episode."""
        scene = self.inner.mujoco_scene()
        if scene is not None and scene.model is not self._model:
            self._model, self._restore = scene.model, scene.save()

    def _happened(self, kind: str) -> None:
        self.events = (*self.events, Event(self._step / self.control_hz, kind))
        self.extra_steps = EXTRA_STEPS

    def _remember(self) -> None:
        """Keep what is needed to draw this instant later."""
        if any(shift.late for shift in self._shifts):
            self._frames.append(self.inner.snapshot())

    def _packed(self, observation: SimObservation, render: bool) -> SimObservation:
        """The observation as it is shown."""
        images: Images = {}
        if render:
            now = [lambda: self.inner.observe().images]
            images = _shown(self._shifts, self._step, [*self._frames] or now)
        return replace(observation, images=images, time=observation.time - self._start)


def _shown(shifts: Sequence[Shift], step: int, frames: Sequence[Callable[[], Images]]) -> Images:
    """The images that are shown after `step` steps, from the frames up to then."""
    lag = min(sum(shift.lag(step) for shift in shifts), len(frames) - 1)
    images = frames[-1 - lag]()
    for shift in shifts:
        images = shift.pictures(images, step - lag)
    return images


def applies(axis: str, family: str) -> bool:
    """Whether an axis has anything to change in a family of tasks."""
    return not AXES[axis].families or family in AXES[axis].families
