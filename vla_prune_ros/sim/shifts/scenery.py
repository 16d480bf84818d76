# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Shifts of the scene that last for the whole episode: cameras, light, colours, places."""

from __future__ import annotations

import colorsys

import numpy as np

from vla_prune_ros.sim.base import SimulatedRobot
from vla_prune_ros.sim.scene import Decoration, MujocoScene
from vla_prune_ros.sim.shifts.base import Shift, World

# Colours that no thing of a task has.
_FOREIGN = (
    (0.55, 0.15, 0.65), (0.95, 0.45, 0.05), (0.05, 0.70, 0.75), (0.95, 0.55, 0.75),
    (0.35, 0.20, 0.08), (0.08, 0.08, 0.10), (0.55, 0.58, 0.62), (0.45, 0.75, 0.20),
)  # fmt: skip
_SPREAD = 0.26  # m around the middle of the things in which foreign ones lie
_CLEAR = 0.055  # m between the middles of a foreign thing and one of the scene
_MIDDLE_COLOUR = np.array([0.5, 0.5, 0.5])
_START_STEPS = 150  # that the arm gets to reach another start
_ARRIVED = 0.004  # m
_POSITION_STEP = 0.05  # m per unit of action
_TABLE = np.array([[-0.26, -0.17], [0.14, 0.10]])  # corners of where blocks are seen, reached
_PLATE_GAP = 0.105  # m between the middles of a block and the plate


class CameraPose(Shift):
    """Cameras that stand still, turned about the vertical through the point they look at."""

    axis = 'camera'
    summary = 'third-person camera turned about the point it looks at'
    unit = 'degrees'
    levels = (6.0, 12.0, 18.0, 24.0, 30.0)

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        scene, angle = world.scene, np.radians(self.severity * self.rng.choice([-1.0, 1.0]))
        turn = np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])
        height = np.mean([scene.position(name)[2] for name in scene.movable])
        for camera in scene.cameras.values():
            place, quaternion = scene.model.cam_pos[camera], scene.model.cam_quat[camera]
            sight = _rotate(quaternion, np.array([0.0, 0.0, -1.0]))
            point = place + sight * (height - place[2]) / sight[2]
            place[:] = point + _rotate(turn, place - point)
            quaternion[:] = _product(turn, quaternion)
        scene.refresh()


class _Light(Shift):
    """All lights, the ambient one too, times a factor."""

    unit = 'factor on all lights'

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        model = world.scene.model
        for kind in ('ambient', 'diffuse', 'specular'):
            for light in (getattr(model, f'light_{kind}'), getattr(model.vis.headlight, kind)):
                light *= self.severity


class Dark(_Light):
    """Less light."""

    axis = 'light'
    summary = 'less light'
    levels = (0.8, 0.7, 0.62, 0.55, 0.48)


class Bright(_Light):
    """More light."""

    axis = 'bright'
    summary = 'more light'
    levels = (1.3, 1.6, 2.0, 2.5, 3.0)


class Texture(Shift):
    """Everything but the arm gets another colour, each thing one of its own."""

    axis = 'texture'
    summary = 'colours of table and things blended towards random ones'
    unit = 'share of the random colour'
    levels = (0.12, 0.25, 0.4, 0.6, 0.8)

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        model = world.scene.model
        of_arm = model.body_rootid[model.geom_bodyid] == model.body_rootid[world.scene.arm]
        arms_materials = set(model.geom_matid[of_arm].tolist())
        for geom in np.flatnonzero(~of_arm & (model.geom_matid < 0)):
            self._blend(model.geom_rgba[geom])
        for material in sorted(set(model.geom_matid[~of_arm].tolist()) - arms_materials - {-1}):
            self._blend(model.mat_rgba[material], _mean_colour(model, material))

    def _blend(self, rgba: np.ndarray, texture: np.ndarray | None = None) -> None:
        """Change rgba [4]; what is shown is its product with the texture."""
        texture = np.ones(3) if texture is None else np.maximum(texture, 0.05)
        wanted = np.array(colorsys.hsv_to_rgb(self.rng.random(), 0.9, self.rng.uniform(0.3, 1.0)))
        shown = (1.0 - self.severity) * rgba[:3] * texture + self.severity * wanted
        rgba[:3] = shown / texture


class Distractors(Shift):
    """Foreign things on the table that are seen and not felt."""

    axis = 'distractors'
    summary = 'foreign things on the table, without contact'
    unit = 'things'
    levels = (2.0, 4.0, 6.0, 8.0, 12.0)

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        scene = world.scene
        things = np.array([scene.position(name) for name in scene.movable])
        if scene.goal is not None:
            things = np.vstack([things, scene.data.xpos[scene.goal]])
        middle, floor = things.mean(0), things[:, 2].min() - 0.022
        taken = [*things[:, :2]]
        while len(scene.decorations) < self.severity:
            place = middle[:2] + self.rng.uniform(-_SPREAD, _SPREAD, 2)
            size = self.rng.uniform(0.014, 0.030)
            shape = ('box', 'sphere', 'cylinder')[self.rng.integers(3)]
            colour = _FOREIGN[self.rng.integers(len(_FOREIGN))]
            clear = _CLEAR if len(taken) < len(things) + 40 else 0.0  # a full table
            if min(np.linalg.norm(place - other) for other in taken) < clear:
                continue
            taken.append(place)
            half = (size, size, size)
            position = (float(place[0]), float(place[1]), float(floor + size))
            scene.decorations.append(Decoration(shape, half, position, colour))


class Layout(Shift):
    """The blocks lie further from each other than in any demonstration."""

    axis = 'layout'
    summary = 'blocks spread further'
    unit = 'factor on their distances'
    levels = (1.3, 1.7, 2.1, 2.5, 3.0)
    backends = ('tabletop',)

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        scene = world.scene
        middle = np.mean([scene.position(name)[:2] for name in scene.movable], axis=0)
        plate = scene.data.xpos[scene.goal]
        for name in scene.movable:
            pose = scene.pose(name)
            pose[:2] = middle + self.severity * (pose[:2] - middle)
            pose[:2] = np.clip(pose[:2], _TABLE[0], _TABLE[1])
            if np.linalg.norm(pose[:2] - plate[:2]) < _PLATE_GAP:
                pose[1] = plate[1] - _PLATE_GAP
            scene.place(name, pose)
        scene.refresh()


class Start(Shift):
    """The hand begins somewhere else, sideways and up; it is moved there by its own controller."""

    axis = 'start'
    summary = 'another start of the hand'
    unit = 'm'
    levels = (0.10, 0.16, 0.22, 0.30, 0.40)

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        side = self.rng.choice([-1.0, 1.0])
        azimuth, elevation = self.rng.uniform(-1.0, 1.0), self.rng.uniform(0.0, 0.7)
        offset = self.severity * np.array([
            np.sin(azimuth) * np.cos(elevation),
            side * np.cos(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ])  # fmt: skip
        move_hand(world.robot, world.hand + offset)


def move_hand(robot: SimulatedRobot, goal: np.ndarray) -> None:
    """Bring the open hand to a place [3] and to rest, as near as the arm gets."""
    for _ in range(_START_STEPS):
        miss = goal - robot.observe(render=False).ee_position
        if np.linalg.norm(miss) < _ARRIVED:
            break
        action = np.zeros(7)
        action[:3], action[6] = np.clip(miss / _POSITION_STEP, -1.0, 1.0), -1.0
        robot.step(action, render=False)
    robot.step(np.array([0.0, 0, 0, 0, 0, 0, -1.0]), render=False)


def _mean_colour(model: MujocoScene.model, material: int) -> np.ndarray:
    """Mean colour [3] of a material's texture; white without one."""
    textures = np.atleast_1d(model.mat_texid[material])
    texture = next((int(t) for t in textures if t >= 0), None)
    if texture is None:
        return np.ones(3)
    channels = int(model.tex_nchannel[texture])
    size = int(model.tex_height[texture]) * int(model.tex_width[texture]) * channels
    first = int(model.tex_adr[texture])
    pixels = model.tex_data[first : first + size].reshape(-1, channels)
    return pixels[:, :3].mean(0) / 255.0


def _rotate(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """A vector [3] turned by a quaternion wxyz [4]."""
    w, u = quaternion[0], quaternion[1:]
    return vector + 2.0 * np.cross(u, np.cross(u, vector) + w * vector)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Turn by b, then by a; quaternions wxyz [4]."""
    w = a[0] * b[0] - a[1:] @ b[1:]
    return np.array([w, *(a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:]))])
