# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera frames of data sets: turned upright, made JPEG once, refused if they are none."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from vla_prune_ros.datasets.base import DataError, Picture

JPEG = b'\xff\xd8'
PNG = b'\x89PNG\r\n\x1a\n'


class Frames:
    """Pictures of one camera, made when they are asked for: `make` begins anew each time."""

    def __init__(self, length: int, make: Callable[[], Iterator[Picture]]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Picture]:
        return self._make()


def encode_jpeg(frame: np.ndarray) -> bytes:
    """JPEG of quality 95, 4:2:0, as the authors' data sets and their evaluation have it."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, 'JPEG', quality=95, subsampling='4:2:0')
    return buffer.getvalue()


def turned(frame: np.ndarray, degrees: int) -> np.ndarray:
    """A frame [H, W, 3] turned by 0 or 180 degrees."""
    return np.ascontiguousarray(frame[::-1, ::-1]) if degrees == 180 else frame


def check_frame(frame: Any, **place: Any) -> np.ndarray:
    """A frame that is uint8 RGB [H, W, 3].

    Raises:
        DataError: it is not; `place` says where.
    """
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise DataError(
            what=f'a frame is {frame.dtype} {frame.shape}, not uint8 RGB [H, W, 3]',
            cure='name a colour camera with --cameras',
            **place,
        )
    return frame
