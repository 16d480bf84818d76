# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The MuJoCo simulation behind a robot, for what changes scenes without knowing the robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# What may be written; `MujocoScene.save` keeps it.
_FIELDS = (
    'cam_pos', 'cam_quat', 'light_ambient', 'light_diffuse', 'light_specular', 'geom_rgba',
    'mat_rgba', 'body_pos',
)  # fmt: skip
_HEADLIGHT = ('ambient', 'diffuse', 'specular')


@dataclass(frozen=True)
class Decoration:
    """A thing that is only drawn: shape box, sphere or cylinder, half sizes and place in m."""

    shape: str
    size: tuple[float, float, float]
    position: tuple[float, float, float]
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class MujocoScene:
    """Model and data of a robot's simulation, and what is what in it.

    Attributes:
        model, data: of mujoco; may be written.
        refresh: to be called after writing, so that the next pictures show it.
        decorations: drawn into every picture; the list may be changed.
        cameras: camera of an observation -> its id, of those that stand still.
        arm: body that carries the whole arm.
        movable: thing -> body with a free joint.
        target: the thing that the task is about, a key of `movable`; '' where it is not known.
        goal: body to which the target is to be brought, if it can be set elsewhere, else None.
    """

    model: Any
    data: Any
    refresh: Callable[[], None]
    decorations: list[Decoration]
    cameras: dict[str, int]
    arm: int
    movable: dict[str, int]
    target: str = ''
    goal: int | None = None

    def position(self, thing: str) -> np.ndarray:
        """World position [3] of a movable thing."""
        return self.data.xpos[self.movable[thing]].copy()

    def pose(self, thing: str) -> np.ndarray:
        """Position and quaternion wxyz [7] of a movable thing."""
        address = self.model.jnt_qposadr[self.model.body_jntadr[self.movable[thing]]]
        return self.data.qpos[address : address + 7].copy()

    def place(self, thing: str, pose: np.ndarray) -> None:
        """Set a thing somewhere, at rest; pose [7] as `pose` gives it."""
        joint = self.model.body_jntadr[self.movable[thing]]
        address, speed = self.model.jnt_qposadr[joint], self.model.jnt_dofadr[joint]
        self.data.qpos[address : address + 7] = pose
        self.data.qvel[speed : speed + 6] = 0.0

    def save(self) -> Callable[[], None]:
        """What undoes all later changes of the model's fields, and of the decorations."""
        model, light = self.model, self.model.vis.headlight
        fields = {name: getattr(model, name).copy() for name in _FIELDS}
        lights = {name: getattr(light, name).copy() for name in _HEADLIGHT}

        def restore() -> None:
            for name, value in fields.items():
                getattr(model, name)[:] = value
            for name, value in lights.items():
                getattr(light, name)[:] = value
            self.decorations.clear()

        return restore


def decorate(scene: Any, decorations: Sequence[Decoration]) -> None:
    """Add decorations to an updated `mujoco.MjvScene`."""
    import mujoco

    kinds = {
        'box': mujoco.mjtGeom.mjGEOM_BOX,
        'sphere': mujoco.mjtGeom.mjGEOM_SPHERE,
        'cylinder': mujoco.mjtGeom.mjGEOM_CYLINDER,
    }
    for thing in decorations:
        if scene.ngeom == scene.maxgeom:
            raise RuntimeError(f'a scene holds {scene.maxgeom} shapes and no more')
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            kinds[thing.shape],
            np.array(thing.size, dtype=np.float64),
            np.array(thing.position, dtype=np.float64),
            np.eye(3).ravel(),
            np.array([*thing.colour, 1.0], dtype=np.float32),
        )
        scene.ngeom += 1
