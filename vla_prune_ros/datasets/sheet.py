# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""First frames of some episodes as one picture: whether they are upright only a person can see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, TEXT, GAP = 160, 26, 4  # pixels


def save_sheet(
    first: Sequence[tuple[str, str, dict[str, np.ndarray]]], cameras: Sequence[str], path: Path
) -> Path:
    """One row per episode, one column per camera, with names; PNG.

    Args:
        first: episode, instruction, and camera -> frame uint8 [H, W, 3].
        cameras: in order.
        path: of the picture; folders are created.
    """
    width = max(len(cameras) * (SIDE + GAP) + GAP, 360)
    sheet = Image.new('RGB', (width, len(first) * (SIDE + TEXT + GAP) + TEXT), 'white')
    draw = ImageDraw.Draw(sheet)
    for column, camera in enumerate(cameras):
        draw.text((GAP + column * (SIDE + GAP), 6), camera, fill='black')
    for row, (episode, instruction, frames) in enumerate(first):
        top = TEXT + row * (SIDE + TEXT + GAP)
        draw.text((GAP, top + 6), f'{episode}: {instruction}'[: width // 6], fill='black')
        for column, camera in enumerate(cameras):
            if camera in frames:
                small = Image.fromarray(frames[camera])
                small.thumbnail((SIDE, SIDE))
                sheet.paste(small, (GAP + column * (SIDE + GAP), top + TEXT))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, 'PNG')
    return path
