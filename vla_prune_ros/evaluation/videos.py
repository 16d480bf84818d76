# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Videos of failed episodes, made afterwards.

The simulators are deterministic, so the executed actions of an episode give the same frames again;
episodes that succeed cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_prune_ros.sim import SimulatedRobot, to_env_action

CODEC = 'mp4v'


def wants_video(folder: Path, entry: str, limit: int) -> bool:
    """Whether fewer than `limit` videos of an entry are there."""
    return sum(1 for _ in Path(folder).glob(f'{_plain(entry)}--*.mp4')) < limit


def write_video(
    folder: Path,
    robot: SimulatedRobot,
    entry: str,
    task: int,
    state: int,
    actions: Sequence[np.ndarray],
) -> Path:
    """Play the actions of an episode again and write what the cameras see, side by side.

    Args:
        folder: created if needed.
        robot: is reset.
        entry: line of the comparison, for the file's name.
        task: index of the task.
        state: initial state.
        actions: float64 [7] each, in a policy's units.

    Returns:
        The file.

    Raises:
        OSError: the video cannot be written.
    """
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{_plain(entry)}--task{task}-state{state}.mp4'
    observation = robot.reset(task, state)
    frame = _frame(robot, observation.images)
    writer = cv2.VideoWriter(
        str(path),
        cv2.VideoWriter_fourcc(*CODEC),
        robot.control_hz,
        (frame.shape[1], frame.shape[0]),
    )
    if not writer.isOpened():
        raise OSError(f'{path} cannot be written')
    try:
        writer.write(frame)
        for action in actions:
            images = robot.step(to_env_action(action)).images
            writer.write(_frame(robot, images))
    finally:
        writer.release()
    return path


def _frame(robot: SimulatedRobot, images: dict[str, np.ndarray]) -> np.ndarray:
    """All cameras side by side as people see them, uint8 BGR [H, W, 3]."""
    views = [images[c.name][:, ::-1] if c.mirrored else images[c.name] for c in robot.cameras]
    return np.ascontiguousarray(np.hstack(views)[..., ::-1])


def _plain(name: str) -> str:
    return re.sub(r'[^\w.-]+', '_', name)
