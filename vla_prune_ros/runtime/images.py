# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The image pipeline in torch: `processor.preprocess_image` behind the JPEG, on any device.

Pillow resizes in whole numbers, which are done here the same way; the crop is the same float32
arithmetic. So the pictures are the same to the last bit wherever float32 is IEEE. JPEG stays on
the host, because other decoders than Pillow's give other pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.runtime.pinned import Sender
from vla_prune_ros.vla.processor import (
    Processor,
    check_frame,
    crop_table,
    jpeg_round_trip,
    resize,
)

_BITS = 22  # of Pillow's coefficients behind the point
_SUPPORT = 3.0


class HostImages:
    """Camera frames to policy images on the host; on a GPU they follow at once, as bytes."""

    def __init__(self, processor: Processor, device: torch.device) -> None:
        self._processor, self._device = processor, device
        self._senders: dict[tuple[int, ...], Sender] = {}

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray | Tensor:
        """Map frames uint8 [H, W, 3] to policy images uint8 [views, S, S, 3].

        Raises:
            ValueError: not RGB frames of bytes.
        """
        frames = self._processor.frames(images)
        if self._device.type != 'cuda':
            return frames
        if frames.shape not in self._senders:
            self._senders[frames.shape] = Sender(frames.shape, torch.uint8, self._device)
        return self._senders[frames.shape].send(frames)


class DeviceImages:
    """Camera frames to policy images on a device."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size, self._device = size, device
        low, high, fraction = (torch.from_numpy(t).to(device) for t in crop_table(size))
        self._low, self._high, self._fraction = low, high, fraction[:, None]
        self._senders: dict[tuple[int, ...], Sender] = {}
        self._threads = ThreadPoolExecutor(4, 'jpeg')

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Map frames uint8 [H, W, 3] to policy images uint8 [views, S, S, 3] on the device.

        Raises:
            ValueError: not RGB frames of bytes.
        """
        for image in images:
            check_frame(image)
        decoded = self._threads.map(jpeg_round_trip, images)  # Pillow lets go of the interpreter
        return torch.stack([self._picture(view, image) for view, image in enumerate(decoded)])

    def _picture(self, view: int, decoded: np.ndarray) -> Tensor:
        axes = resize_order(*decoded.shape[:2], self._size)
        if axes is None:
            decoded, axes = resize(decoded, self._size), ()
        x = self._send(view, decoded)
        for axis in axes:
            x = resize_axis(x, axis, self._size)
        return self._crop(x)

    def _crop(self, image: Tensor) -> Tensor:
        """Centre crop and truncation; uint8 [S, S, 3] to the same."""
        x = image.float() * np.float32(1 / 255)
        left = x[:, self._low]
        rows = left + (x[:, self._high] - left) * self._fraction
        top = rows[self._low]
        x = top + (rows[self._high] - top) * self._fraction[:, None]
        return (x.clamp(0.0, 1.0) * 255.5).to(torch.uint8)

    def _send(self, view: int, image: np.ndarray) -> Tensor:
        key = (view, *image.shape)
        if key not in self._senders:
            self._senders[key] = Sender(image.shape, torch.uint8, self._device)
        return self._senders[key].send(image)


@lru_cache(maxsize=32)
def resize_order(height: int, width: int, size: int) -> tuple[int, ...] | None:
    """Axes in the order in which Pillow resizes such frames, found out on noise.

    Returns:
        (1, 0) or (0, 1), or None if this Pillow resizes in another way.
    """
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted = torch.from_numpy(resize(noise, size).copy())
    for axes in ((1, 0), (0, 1)):
        x = torch.from_numpy(noise)
        for axis in axes:
            x = resize_axis(x, axis, size)
        if torch.equal(x, wanted):
            return axes
    return None


def resize_axis(image: Tensor, axis: int, size: int) -> Tensor:
    """One of Pillow's two passes: uint8 [H, W, 3] along axis 0 or 1, rounded to uint8."""
    if image.shape[axis] == size:
        return image
    at, weights = _taps(image.shape[axis], size, image.device)  # [size, taps]
    shape = (size, -1, 1, 1) if axis == 0 else (size, -1, 1)
    picked = image.index_select(axis, at.flatten()).unflatten(axis, at.shape).int()
    total = (picked * weights.view(shape)).sum(axis + 1, dtype=torch.int32)
    return ((total + (1 << (_BITS - 1))) >> _BITS).clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _taps(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Samples and whole-numbered Lanczos weights of each output, int64 and int32 [after, taps]."""
    scale = before / after
    stretch = max(scale, 1.0)
    reach = _SUPPORT * stretch
    n_taps = math.ceil(reach) * 2 + 1
    at = np.zeros((after, n_taps), np.int64)
    weights = np.zeros((after, n_taps), np.int32)
    for i in range(after):
        centre = (i + 0.5) * scale
        first = max(0, int(centre - reach + 0.5))
        last = min(before, int(centre + reach + 0.5))
        raw = [_lanczos((k + first - centre + 0.5) / stretch) for k in range(last - first)]
        total = sum(raw)
        for k, value in enumerate(raw):
            fixed = value / total * (1 << _BITS)
            weights[i, k] = int(fixed - 0.5 if fixed < 0 else fixed + 0.5)
        at[i, : last - first] = np.arange(first, last)
    return torch.from_numpy(at).to(device), torch.from_numpy(weights).to(device)


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / _SUPPORT) if -_SUPPORT <= x < _SUPPORT else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)
