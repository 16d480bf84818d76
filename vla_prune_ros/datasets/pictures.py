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
from vla_prune_ros.vla.pictures import decode_jpeg, encode_jpeg

JPEG = b'\xff\xd8'


class Frames:
    """Pictures of one camera, made when they are asked for: `make` begins anew each time."""

    def __init__(self, length: int, make: Callable[[], Iterator[Picture]]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Picture]:
        return self._make()


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


def as_jpeg(data: bytes, camera: str, turn: int = 0, **place: Any) -> bytes:
    """An encoded picture as upright JPEG: bytes as they are, if they are a JPEG and upright.

    Raises:
        DataError: they are no RGB picture, or not a whole one.
    """
    if data[:2] == JPEG and not turn:
        try:
            decode_jpeg(data)
        except ValueError as error:
            raise DataError(
                what=f'a picture of {camera} cannot be decoded: {error}',
                cure='copy the file again, or leave the episode out',
                **place,
            ) from error
        return data
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            what=f'{camera}: {len(data)} bytes are no whole picture: {error}',
            cure='copy it again',
            **place,
        ) from error
    if picture.mode != 'RGB':
        raise DataError(
            what=f'a picture of {camera} has the mode {picture.mode}, not RGB',
            cure='name a colour camera with --cameras',
            **place,
        )
    return encode_jpeg(turned(np.asarray(picture), turn))
