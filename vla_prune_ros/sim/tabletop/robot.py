# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The embedded simulated robot: a Panda-like arm over a table of coloured blocks."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from importlib import resources

import numpy as np

from vla_prune_ros.sim import rendering

if 'MUJOCO_GL' not in os.environ:  # must be set before mujoco is imported
    rendering.choose()

import mujoco

from vla_prune_ros.sim.base import (
    Camera,
    SimObservation,
    SimulatedRobot,
    quaternion_to_axis_angle,
)
from vla_prune_ros.sim.scene import Decoration, MujocoScene, decorate
from vla_prune_ros.sim.tabletop.arm import FINGER_OPEN, Arm
from vla_prune_ros.sim.tabletop.tasks import (
    BLOCK_REST_HEIGHT,
    COLOURS,
    N_INITIAL_STATES,
    TASKS,
    Scene,
    initial_layout,
)

HOME = np.array([0.0, -0.161, 0.0, -2.4446, 0.0, 2.2268, np.pi / 4])


class TabletopRobot(SimulatedRobot):
    """Suite `tabletop`: 20 Hz control, 2 ms physics, two 256 x 256 cameras.

    The state after `reset(task, i)` depends on `task` and `i` only, and every step is
    deterministic. `split` chooses the family of initial states: 'test' are the fixed states of
    the suite, 'train' an unlimited set that shares none of them.
    """

    suite = 'tabletop'
    control_hz = 20.0
    tasks = TASKS
    n_initial_states = N_INITIAL_STATES
    joint_names = (*(f'joint{i}' for i in range(1, 8)), 'finger_joint1', 'finger_joint2')

    def __init__(self, image_size: int = 256, split: str = 'test', render: bool = True) -> None:
        if render:
            rendering.require()
        scene = resources.files('vla_prune_ros.sim.tabletop').joinpath('scene.xml')
        self.model = mujoco.MjModel.from_xml_string(scene.read_text())
        self.model.vis.global_.offwidth = self.model.vis.global_.offheight = image_size
        self.data = mujoco.MjData(self.model)
        self.split = split
        self._site = self.model.site('grip').id
        self._blocks = {c: self.model.body(f'{c}_block') for c in COLOURS}
        self._plate = self.model.body('plate').id
        self.arm = Arm(self.model, self.data, self._site, posture=HOME)
        self._substeps = round(1.0 / self.control_hz / self.model.opt.timestep)
        self._task = self.tasks[0]
        self._decorations: list[Decoration] = []
        self.cameras = tuple(
            Camera(n, image_size, image_size, float(self.model.camera(n).fovy[0]))
            for n in ('agentview', 'wrist')
        )
        self._renderer = mujoco.Renderer(self.model, image_size, image_size) if render else None

    # -- SimulatedRobot ------------------------------------------------------------------------
    @property
    def instruction(self) -> str:
        """That of the task."""
        return self._task.instruction

    def reset(self, task: int | str, initial_state: int, render: bool = True) -> SimObservation:
        """Start an episode; the arm is at rest, the blocks lie on the table."""
        index = self.task_index(task)
        self._task = self.tasks[index]
        layout = initial_layout(index, initial_state, self.split)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:7] = HOME + layout.joint_noise
        self.data.qpos[7:9] = FINGER_OPEN, -FINGER_OPEN
        self.model.body_pos[self._plate, :2] = layout.plate
        for colour, (x, y, yaw) in layout.blocks.items():
            address = self.model.jnt_qposadr[self._blocks[colour].jntadr[0]]
            self.data.qpos[address : address + 7] = (
                x, y, BLOCK_REST_HEIGHT, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2),
            )  # fmt: skip
        mujoco.mj_forward(self.model, self.data)
        self.arm.rest()
        return self.observe(render)

    def step(self, action: np.ndarray, render: bool = True) -> SimObservation:
        """Apply one action for 50 ms; values outside [-1, 1] are clipped."""
        self.advance(action)
        return self.observe(render)

    def success(self) -> bool:
        """The task's predicate on the physics state."""
        return self._task.succeeded(self.scene())

    def camera_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """World position and quaternion xyzw of the optical frame."""
        camera = self.model.camera(name).id
        rotation = self.data.cam_xmat[camera].reshape(3, 3) * [1.0, -1.0, -1.0]
        return self.data.cam_xpos[camera].copy(), _quaternion(rotation)

    def landmarks(self, camera: str) -> dict[str, np.ndarray]:
        """The instructed block, the three others and the plate."""
        scene, colour = self.scene(), self._task.colour
        others = [position for name, position in scene.blocks.items() if name != colour]
        points = {
            'instructed block': [scene.blocks[colour]],
            'other blocks': others,
            'plate': [scene.plate],
        }
        return {
            name: np.stack([self.project(point, camera) for point in group])
            for name, group in points.items()
        }

    def objects(self) -> dict[str, np.ndarray]:
        """Poses of the four blocks and the plate."""
        bodies = {f'{c}_block': b.id for c, b in self._blocks.items()} | {'plate': self._plate}
        data = self.data
        return {
            name: np.concatenate([data.xpos[body], data.xquat[body][[1, 2, 3, 0]]])
            for name, body in bodies.items()
        }

    def snapshot(self) -> Callable[[], dict[str, np.ndarray]]:
        """The images of this instant, drawn later."""
        data = copy.copy(self.data)
        return lambda: self._draw(data)

    def mujoco_scene(self) -> MujocoScene:
        """The simulation; the task's block is the target, the plate can be set elsewhere."""
        return MujocoScene(
            self.model,
            self.data,
            lambda: mujoco.mj_forward(self.model, self.data),
            self._decorations,
            cameras={'agentview': self.model.camera('agentview').id},
            arm=self.model.body('link0').id,
            movable={colour: body.id for colour, body in self._blocks.items()},
            target=self._task.colour,
            goal=self._plate,
        )

    def close(self) -> None:
        """Free the rendering context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # -- for the expert and for training -------------------------------------------------------
    def advance(self, action: np.ndarray) -> None:
        """`step` without an observation."""
        action = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f'action must be 7 finite numbers, got {action!r}')
        self.arm.move_by(action[:6])
        if action[6]:
            self.arm.grip(FINGER_OPEN if action[6] < 0 else 0.0)
        else:
            self.arm.grip(self.arm.opening)
        self.arm.run(self._substeps)

    def assign(self, task: int | str) -> None:
        """From now on another task is asked for; nothing moves."""
        self._task = self.tasks[self.task_index(task)]

    def scene(self) -> Scene:
        """Positions of everything that a task or an expert may ask about."""
        return Scene(
            hand=self.data.site_xpos[self._site].copy(),
            hand_rotation=self.data.site_xmat[self._site].reshape(3, 3).copy(),
            fingers=self.data.qpos[7:9].copy(),
            blocks={c: self.data.xpos[b.id].copy() for c, b in self._blocks.items()},
            plate=self.data.xpos[self._plate].copy(),
        )

    def save(self) -> tuple:
        """Everything `restore` needs to return to this instant."""
        plate = self.model.body_pos[self._plate].copy()
        return (
            self.data.qpos.copy(), self.data.qvel.copy(), self.data.time, self.arm.opening, plate
        )  # fmt: skip

    def restore(self, state: tuple) -> None:
        """Return to a saved instant, of this robot or of another one."""
        qpos, qvel, time, self.arm.opening, plate = state
        self.data.qpos[:], self.data.qvel[:], self.data.time = qpos, qvel, time
        self.model.body_pos[self._plate] = plate
        mujoco.mj_forward(self.model, self.data)

    def project(self, point: np.ndarray, camera: str) -> np.ndarray:
        """Pixel [2] (x, y) of a world point [3] in a camera image; NaN when behind it."""
        spec = next(c for c in self.cameras if c.name == camera)
        index = self.model.camera(camera).id
        rotation = self.data.cam_xmat[index].reshape(3, 3) * [1.0, -1.0, -1.0]
        x, y, z = rotation.T @ (np.asarray(point) - self.data.cam_xpos[index])
        if z <= 1e-6:
            return np.full(2, np.nan)
        centre = (spec.width - 1) / 2.0, (spec.height - 1) / 2.0
        return np.array([x, y]) / z * spec.focal_length + centre

    def observe(self, render: bool = True) -> SimObservation:
        """The observation of the current instant, with images if `render`."""
        position = self.data.site_xpos[self._site].copy()
        quaternion = _quaternion(self.data.site_xmat[self._site].reshape(3, 3))
        fingers = self.data.qpos[7:9].copy()
        return SimObservation(
            images=self._draw(self.data) if render else {},
            proprio=np.concatenate([position, quaternion_to_axis_angle(quaternion), fingers]),
            joint_positions=self.data.qpos[:7].copy(),
            finger_positions=fingers,
            ee_position=position,
            ee_quaternion=quaternion,
            time=float(self.data.time),
        )

    def _draw(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
        images: dict[str, np.ndarray] = {}
        if (renderer := self._renderer) is None:
            return images
        for camera in self.cameras:
            renderer.update_scene(data, camera.name)
            decorate(renderer.scene, self._decorations)
            images[camera.name] = renderer.render()
        return images


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """Quaternion xyzw [4] of a rotation matrix [3, 3]."""
    wxyz = np.empty(4)
    mujoco.mju_mat2Quat(wxyz, np.ascontiguousarray(rotation).ravel())
    return wxyz[[1, 2, 3, 0]]
