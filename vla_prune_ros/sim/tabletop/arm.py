# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The arm as its own controller drives it: steps of 2 ms toward a goal, which may move.

A goal is a pose of the grip point, with a velocity or at rest. The stiffness says what kind of
interface this is: `SOFT` is robosuite's OSC_POSE, as in LIBERO, whose arm covers a quarter of an
offset in 50 ms; `STIFF` follows like a position controller.
"""

from __future__ import annotations

import mujoco
import numpy as np

from vla_prune_ros.sim.tabletop.controller import (
    STIFFNESS,
    OperationalSpaceController,
    rotation_from_axis_angle,
)

SOFT, STIFF = STIFFNESS, 3000.0  # 1/s2
FINGER_OPEN = 0.04
FINGER_SPEED = 0.4  # m/s, the speed at which the commanded opening moves


class Arm:
    """Seven joints and two fingers of a MuJoCo model; the first nine of its degrees of freedom."""

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, site: int, posture: np.ndarray
    ) -> None:
        self._model, self._data, self._site = model, data, site
        self.controller = OperationalSpaceController(model, site, np.arange(7), posture)
        self._turning = self._moving = False
        self.opening = FINGER_OPEN  # what is commanded of the fingers now
        self._opening_goal = FINGER_OPEN

    @property
    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and rotation [3, 3] of the grip point."""
        return (
            self._data.site_xpos[self._site].copy(),
            self._data.site_xmat[self._site].reshape(3, 3).copy(),
        )

    def rest(self, opening: float = FINGER_OPEN) -> None:
        """Hold still here, with the fingers as they are commanded."""
        self.follow(*self.pose)
        self.opening = self._opening_goal = opening

    def move_by(self, deltas: np.ndarray) -> None:
        """Goal: the pose of now plus deltas [6] in controller units, as OSC_POSE takes them."""
        self.drive(np.zeros(6))
        self.controller.set_goal(self._data, deltas)

    def follow(self, position: np.ndarray, rotation: np.ndarray) -> None:
        """Goal: this pose, at rest."""
        self.drive(np.zeros(6))
        self.controller.goal_position, self.controller.goal_rotation = position, rotation

    def drive(self, twist: np.ndarray) -> None:
        """The goal moves on from where it is; m/s and rad/s [6] in the base frame."""
        self.controller.goal_velocity = np.array(twist, dtype=np.float64)
        self._moving = bool(np.any(twist))
        self._turning = bool(np.any(twist[3:]))

    def grip(self, opening: float) -> None:
        """The fingers move to this commanded opening (m each)."""
        self._opening_goal = float(np.clip(opening, 0.0, FINGER_OPEN))

    def run(self, steps: int) -> None:
        """Let so many steps of physics pass."""
        controller, data, dt = self.controller, self._data, self._model.opt.timestep
        stride = FINGER_SPEED * dt
        turn = None
        if self._turning:
            turn = rotation_from_axis_angle(dt * controller.goal_velocity[3:])
        for _ in range(steps):
            if self.opening < self._opening_goal:
                self.opening = min(self.opening + stride, self._opening_goal)
            else:
                self.opening = max(self.opening - stride, self._opening_goal)
            if self._moving:
                controller.goal_position = (
                    controller.goal_position + dt * controller.goal_velocity[:3]
                )
            if turn is not None:
                controller.goal_rotation = turn @ controller.goal_rotation
            data.ctrl[:7] = controller.torques(data)
            data.ctrl[7:9] = self.opening, -self.opening
            mujoco.mj_step(self._model, data)
        mujoco.mj_forward(self._model, data)
