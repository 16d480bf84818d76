# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Operational-space control of the arm: six pose deltas in, joint torques out.

The law is Khatib's, with the gains, scales and decoupled inertia of robosuite's OSC_POSE
controller, which LIBERO uses, so that an action means the same on both.
"""

from __future__ import annotations

import mujoco
import numpy as np

POSITION_SCALE = 0.05  # m per unit of action
ROTATION_SCALE = 0.5  # rad per unit of action, axis-angle in the base frame
STIFFNESS = 150.0  # 1/s2
POSTURE_STIFFNESS = 10.0
POSTURE_DAMPING = 6.3
_REGULARISER = 1e-6 * np.eye(6)  # keeps the inverse finite at a singular pose


def rotation_from_axis_angle(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix [3, 3] of an axis-angle vector [3] (rad)."""
    quaternion = np.empty(4)
    angle = float(np.linalg.norm(vector))
    axis = vector / angle if angle > 1e-12 else np.array([1.0, 0.0, 0.0])
    mujoco.mju_axisAngle2Quat(quaternion, axis, angle)
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def rotation_difference(current: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Small rotation vector [3] (rad) that turns `current` [3, 3] toward `goal` [3, 3]."""
    turn = goal @ current.T
    return 0.5 * np.array(
        [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]
    )


class OperationalSpaceController:
    """Tracks a goal pose of a site with the joints `dofs` of a MuJoCo model.

    Attributes:
        stiffness: 1/s2, critically damped.
        goal_position, goal_rotation: m, [3, 3].
        goal_velocity: m/s and rad/s [6].
    """

    def __init__(
        self, model: mujoco.MjModel, site: int, dofs: np.ndarray, posture: np.ndarray
    ) -> None:
        self._model, self._site, self._dofs = model, site, dofs
        self._posture = posture
        self._jacobian = np.zeros((6, model.nv))
        self._weighted = np.zeros((6, model.nv))
        self.stiffness = STIFFNESS
        self.goal_position = np.zeros(3)
        self.goal_rotation = np.eye(3)
        self.goal_velocity = np.zeros(6)

    def set_goal(self, data: mujoco.MjData, deltas: np.ndarray) -> None:
        """Goal = current pose plus deltas [6] in [-1, 1], scaled to 0.05 m and 0.5 rad."""
        rotation = data.site_xmat[self._site].reshape(3, 3)
        self.goal_position = data.site_xpos[self._site] + POSITION_SCALE * deltas[:3]
        self.goal_rotation = rotation_from_axis_angle(ROTATION_SCALE * deltas[3:]) @ rotation

    def torques(self, data: mujoco.MjData) -> np.ndarray:
        """Joint torques [7] (N m) toward the goal, bias forces included."""
        model, dofs = self._model, self._dofs
        jacobian = self._jacobian
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self._site)
        # rows of `weighted` are M^-1 J^T; mj_solveM exists in every MuJoCo version supported
        mujoco.mj_solveM(model, data, self._weighted, jacobian)
        j = jacobian[:, dofs]  # [6, 7]
        w = self._weighted[:, dofs]  # [6, 7]
        velocity = j @ data.qvel[dofs]

        rotation = data.site_xmat[self._site].reshape(3, 3)
        position_error = self.goal_position - data.site_xpos[self._site]
        error = np.concatenate([position_error, rotation_difference(rotation, self.goal_rotation)])
        damping = 2.0 * np.sqrt(self.stiffness)
        acceleration = self.stiffness * error - damping * (velocity - self.goal_velocity)

        inverse_inertia = j @ w.T + _REGULARISER  # [6, 6]
        # position and orientation decoupled, as in robosuite
        force = np.linalg.solve(inverse_inertia[:3, :3], acceleration[:3])
        moment = np.linalg.solve(inverse_inertia[3:, 3:], acceleration[3:])

        # Posture torque filtered by the dynamically consistent null space of the full task.
        joint_error = self._posture - data.qpos[dofs]
        posture = POSTURE_STIFFNESS * joint_error - POSTURE_DAMPING * data.qvel[dofs]
        posture -= j.T @ np.linalg.solve(inverse_inertia, w @ posture)
        return j[:3].T @ force + j[3:].T @ moment + posture + data.qfrc_bias[dofs]
