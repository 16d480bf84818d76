# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The image pipeline on any device: `pictures.preprocess_image`, to the last bit.

The same float32 operations in the same order, each product and each sum rounded by itself, and
JPEG in whole numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.runtime.fast import operations_for
from vla_prune_ros.runtime.pinned import Sender
from vla_prune_ros.vla.jpeg import round_trip, tables
from vla_prune_ros.vla.pictures import (
    check_frame,
    crop_table,
    has_decoder,
    jpeg_round_trip,
    lanczos_table,
)
from vla_prune_ros.vla.processor import Processor

IMAGE_PIPELINES = ('exact', 'device')
_log = logging.getLogger(__name__)


class HostImages:
    """Camera frames to policy images on the host; on a GPU they follow at once, as bytes."""

    def __init__(self, processor: Processor, device: torch.device, jpeg: bool = True) -> None:
        self._processor, self._device, self._jpeg = processor, device, jpeg
        self._senders: dict[tuple[int, ...], Sender] = {}

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray | Tensor:
        """Map frames uint8 [H, W, 3] to policy images uint8 [views, S, S, 3].

        Raises:
            ValueError: not RGB frames of bytes.
        """
        frames = self._processor.frames(images, self._jpeg)
        if self._device.type != 'cuda':
            return frames
        if frames.shape not in self._senders:
            self._senders[frames.shape] = Sender(frames.shape, torch.uint8, self._device)
        return self._senders[frames.shape].send(frames)


class DeviceImages:
    """Camera frames to policy images on a device, those of one size at once.

    On a GPU the JPEG round trip is done there, too, in whole numbers, unless the decoder of this
    machine gives other pictures than these; on a CPU the decoder is faster.
    """

    def __init__(self, size: int, device: torch.device, jpeg: bool = True) -> None:
        self._size, self._device, self._jpeg = size, device, jpeg
        self._crop = tuple(torch.from_numpy(t).to(device) for t in crop_table(size))
        self._senders: dict[tuple[int, ...], Sender] = {}
        self._threads = ThreadPoolExecutor(4, 'jpeg')
        self._on_host = jpeg and device.type == 'cpu' and has_decoder()
        if jpeg and not self._on_host and not decoder_agrees():
            _log.warning('the JPEG decoder here gives other pictures: JPEG stays on the host')
            self._on_host = True
        self._steps: Any = _steps_of(device)

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Map frames uint8 [H, W, 3] to policy images uint8 [views, S, S, 3] on the device.

        Raises:
            ValueError: not RGB frames of bytes.
        """
        for image in images:
            check_frame(image)
        if self._on_host:  # without the interpreter
            images = [*self._threads.map(jpeg_round_trip, images)]
        if len({image.shape for image in images}) == 1:
            return self._pictures(0, np.stack(images))
        each = [self._pictures(view, image[None]) for view, image in enumerate(images)]
        return torch.cat(each)

    def _pictures(self, first: int, frames: np.ndarray) -> Tensor:
        """Frames of one size, the first of which is of that view."""
        x, size, steps = self._send(first, frames), self._size, self._steps
        if self._jpeg and not self._on_host:
            x = steps.jpeg_round_trip(x, *tables(self._device))
        if x.shape[1:3] != (size, size):
            rows, columns = (_taps(n, size, self._device) for n in x.shape[1:3])
            x = steps.resize(x, rows, columns)
        return steps.crop(x, *self._crop)

    def _send(self, first: int, frames: np.ndarray) -> Tensor:
        key = (first, *frames.shape)
        if key not in self._senders:
            self._senders[key] = Sender(frames.shape, torch.uint8, self._device)
        return self._senders[key].send(frames)


def make_images(
    pipeline: str, processor: Processor, device: torch.device, jpeg: bool = True
) -> HostImages | DeviceImages:
    """What turns camera frames into policy images.

    Args:
        pipeline: exact: on the host; device: where the model is.
        processor: for the checkpoint.
        device: where the model is.
        jpeg: frames go through JPEG, as those of the published training data did.

    Raises:
        ValueError: unknown pipeline.
    """
    if pipeline not in IMAGE_PIPELINES:
        raise ValueError(
            f'unknown image_pipeline {pipeline!r}; valid: {", ".join(IMAGE_PIPELINES)}'
        )
    if pipeline == 'device':
        return DeviceImages(processor.config.image_size, device, jpeg)
    return HostImages(processor, device, jpeg)


class TorchSteps:
    """The steps in torch; `runtime.kernels` has functions of the same names."""

    @staticmethod
    def jpeg_round_trip(x: Tensor, divisors: Tensor, multipliers: Tensor) -> Tensor:
        """Encode and decode uint8 [V, H, W, 3], see `vla.jpeg`."""
        return round_trip(x)

    @staticmethod
    def resize(x: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
        """Resize uint8 [V, H, W, 3] to [V, S, S, 3] by samples and weights [taps, S] per axis."""
        x = _filter(x.float(), *rows)
        x = _filter(x.transpose(1, 2), *columns).transpose(1, 2)
        return x.round_().clamp_(0, 255).to(torch.uint8)

    @staticmethod
    def crop(x: Tensor, low: Tensor, high: Tensor, fraction: Tensor) -> Tensor:
        """Crop uint8 [V, S, S, 3], columns first, see `vla.pictures.centre_crop`."""
        x = x.transpose(1, 2) * np.float32(1 / 255)
        x = _between(x, low, high, fraction).transpose(1, 2)
        x = _between(x, low, high, fraction)
        return x.clamp_(0.0, 1.0).mul_(255.5).to(torch.uint8)


def _filter(x: Tensor, at: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the rows of float32 [V, before, n, 3], in the order of the samples."""
    weights = weights[..., None, None]
    total = x.index_select(1, at[0]) * weights[0]
    for tap, weight in zip(at[1:], weights[1:], strict=True):
        total += x.index_select(1, tap) * weight
    return total


def _between(x: Tensor, low: Tensor, high: Tensor, fraction: Tensor) -> Tensor:
    """Rows of the crop, interpolated from those of float32 [V, S, n, 3]."""
    lower = x.index_select(1, low)
    return lower + (x.index_select(1, high) - lower) * fraction[:, None, None]


def _steps_of(device: torch.device) -> Any:
    """Kernels where the rest of the network has them, else torch."""
    if operations_for(device).name != 'triton':
        return TorchSteps
    from vla_prune_ros.runtime.kernels import pictures

    return pictures


@lru_cache(maxsize=1)
def decoder_agrees() -> bool:
    """Whether the JPEG library of this machine gives the pictures of `vla.jpeg`, on noise."""
    if not has_decoder():
        return True
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    found = round_trip(torch.from_numpy(noise)[None])[0]
    return np.array_equal(found.numpy(), jpeg_round_trip(noise))


@lru_cache(maxsize=32)
def _taps(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Samples int64 and weights float32 on a device, [taps, after]."""
    at, weights = (torch.from_numpy(t).to(device) for t in lanczos_table(before, after))
    return at, weights
