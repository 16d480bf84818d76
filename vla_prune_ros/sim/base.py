# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every simulated robot offers, whatever simulates it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_prune_ros.sim.scene import MujocoScene


@dataclass(frozen=True)
class Task:
    """One language task of a suite; `max_steps` counts control steps."""

    name: str
    instruction: str
    family: str
    max_steps: int


@dataclass(frozen=True)
class Camera:
    """A fixed or mounted pinhole camera; `fovy` in degrees.

    The columns of a mirrored camera's image run from right to left, as LIBERO's policies saw them.
    """

    name: str
    width: int
    height: int
    fovy: float
    mirrored: bool = False

    @property
    def focal_length(self) -> float:
        """Focal length in pixels; pixels are square."""
        return 0.5 * self.height / math.tan(math.radians(self.fovy) / 2)


@dataclass(frozen=True)
class SimObservation:
    """What the robot's sensors say at one instant.

    images: camera name -> uint8 [H, W, 3], as the policy was trained on.
    proprio: float64 [8] = end-effector position (m), axis-angle (rad), two finger joints (m).
    joint_positions: float64 [7] rad; finger_positions: float64 [2] m.
    ee_position: float64 [3] m; ee_quaternion: float64 [4] xyzw; time: s since the reset.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    joint_positions: np.ndarray
    finger_positions: np.ndarray
    ee_position: np.ndarray
    ee_quaternion: np.ndarray
    time: float


@dataclass(frozen=True)
class Event:
    """Something that happened within an episode, `time` seconds after the reset."""

    time: float
    kind: str


class SimulationError(RuntimeError):
    """The simulator failed. It says nothing about the policy; the next `reset` starts anew."""


class SimulatedRobot(ABC):
    """A robot, its cameras and a suite of tasks.

    Create, use and close one object in one thread: it owns a rendering context.

    Attributes:
        notice: what every print and file with results must say; empty if there is nothing to say.
        slow_task_change: whether episodes of one task had better follow each other.
        events: what happened in this episode that the policy did not cause.
        extra_steps: control steps that are allowed beyond the limit of the task, for that.
    """

    notice: str = ''
    slow_task_change: bool = False
    events: tuple[Event, ...] = ()
    extra_steps: int = 0
    suite: str
    control_hz: float
    tasks: tuple[Task, ...]
    n_initial_states: int
    joint_names: tuple[str, ...]
    cameras: tuple[Camera, ...]

    def task_index(self, task: int | str) -> int:
        """Index of a task given by index or name; ValueError lists the valid names."""
        names = [t.name for t in self.tasks]
        if isinstance(task, str) and not task.lstrip('-').isdigit():
            if task not in names:
                raise ValueError(f'unknown task {task!r}; suite {self.suite!r} has {names}')
            return names.index(task)
        index = int(task)
        if not 0 <= index < len(names):
            raise ValueError(
                f'task index {index} is outside 0..{len(names) - 1} of suite {self.suite!r}'
            )
        return index

    @property
    @abstractmethod
    def instruction(self) -> str:
        """What is asked of the robot now."""

    @abstractmethod
    def reset(self, task: int | str, initial_state: int, render: bool = True) -> SimObservation:
        """Start an episode from fixed initial state `initial_state` of `task`."""

    @abstractmethod
    def step(self, action: np.ndarray, render: bool = True) -> SimObservation:
        """Apply one action for one control period.

        action: float64 [7], environment convention: six deltas in [-1, 1], then the gripper,
        -1 opens and +1 closes. Without `render` the observation has no images, which is faster.
        """

    @abstractmethod
    def observe(self, render: bool = True) -> SimObservation:
        """The observation of the current instant, with images if `render`."""

    @abstractmethod
    def snapshot(self) -> Callable[[], dict[str, np.ndarray]]:
        """The images of this instant, drawn when they are asked for, even much later."""

    @abstractmethod
    def success(self) -> bool:
        """Whether the current state satisfies the task."""

    @abstractmethod
    def camera_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """World position [3] and quaternion xyzw [4] of a camera's optical frame.

        Optical convention (REP-103): z forward, x right, y down.
        """

    def landmarks(self, camera: str) -> dict[str, np.ndarray]:
        """Where things that matter to the task are seen, for analyses: name -> pixels [K, 2].

        Pixels are (x, y) with the first pixel's centre at 0; they may lie outside the picture and
        are NaN behind the camera. Empty where a simulator does not say.
        """
        return {}

    def objects(self) -> dict[str, np.ndarray]:
        """Privileged: world poses float64 [7] (m; quaternion xyzw) of the things of the scene.

        For scripted experts, never for a policy. Empty where a simulator does not say.
        """
        return {}

    def mujoco_scene(self) -> MujocoScene | None:
        """The simulation of the running episode, where it is one of MuJoCo."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the rendering context. Call it in the thread that created the robot."""


def to_env_action(policy_action: np.ndarray) -> np.ndarray:
    """Policy action [..., 7] in robot units to the environment's convention.

    The six deltas pass unchanged; the raw gripper (1 open, 0 closed) becomes its sign with
    -1 = open and +1 = close (OpenVLA-OFT's LIBERO evaluation).
    """
    action = np.array(policy_action, dtype=np.float64)
    action[..., 6] = -np.sign(2.0 * action[..., 6] - 1.0)
    return action


def to_policy_gripper(env_gripper: np.ndarray) -> np.ndarray:
    """Environment gripper command (-1 open, +1 close) to the raw scale (1 open, 0 closed)."""
    return (1.0 - np.asarray(env_gripper, dtype=np.float64)) / 2.0


def quaternion_to_axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Axis-angle [3] (rad) of a unit quaternion xyzw [4], as robosuite computes it.

    w is clipped to [-1, 1]; near angle 0 the result is the zero vector.
    """
    x, y, z, w = (float(v) for v in quaternion)
    w = min(1.0, max(-1.0, w))
    den = math.sqrt(1.0 - w * w)
    if math.isclose(den, 0.0):
        return np.zeros(3)
    return np.array([x, y, z]) * 2.0 * math.acos(w) / den  # in robosuite's order, bit for bit


def quaternion_from_matrix(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion xyzw [4] with w >= 0 of a rotation matrix [3, 3].

    From the eigenvector of a symmetric 4 x 4 matrix, which is stable at every angle
    (Bar-Itzhack 2000).
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.asarray(rotation, dtype=np.float64)
    k = np.array([
        [xx - yy - zz, 0.0, 0.0, 0.0],
        [yx + xy, yy - xx - zz, 0.0, 0.0],
        [zx + xz, zy + yz, zz - xx - yy, 0.0],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ])  # fmt: skip
    _, vectors = np.linalg.eigh(k)  # reads the lower triangle
    quaternion = vectors[:, -1]
    return quaternion if quaternion[3] >= 0 else -quaternion
