# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How often a pruning mode kept the patch that shows a thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla_prune_ros.sim import SimulatedRobot

if TYPE_CHECKING:
    from vla_prune_ros.policy import ActionChunk


def add_counts(total: dict[str, list[int]], more: Mapping[str, Sequence[int]]) -> None:
    """Add [kept, seen] by name."""
    for name, counts in more.items():
        kept, seen = total.get(name, (0, 0))
        total[name] = [kept + counts[0], seen + counts[1]]


def count_landmarks(
    counts: dict[str, list[int]], robot: SimulatedRobot, views: Sequence[str], chunk: ActionChunk
) -> None:
    """Add [kept, seen] of the robot's landmarks in each view; the robot must not have moved."""
    from vla_prune_ros.pruning.overlay import kept_grid, patch_of_pixel  # the room imports torch

    per_view = chunk.n_visual // len(views)
    cameras = {camera.name: camera for camera in robot.cameras}
    for view, name in enumerate(views):
        camera = cameras[name]
        kept = kept_grid(chunk.kept, view, per_view)
        column_of = patch_of_pixel(camera.width, len(kept))
        row_of = patch_of_pixel(camera.height, len(kept))
        for thing, pixels in robot.landmarks(name).items():
            count = counts.setdefault(f'{thing}, {name}', [0, 0])
            for x, y in np.rint(pixels[np.isfinite(pixels).all(axis=1)]).astype(int):
                if not (0 <= x < camera.width and 0 <= y < camera.height):
                    continue
                row, column = row_of[y], column_of[x]
                if row >= 0 and column >= 0:
                    count[0] += int(kept[row, column])
                    count[1] += 1
