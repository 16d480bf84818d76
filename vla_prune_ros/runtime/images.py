# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The image pipeline in torch: `pictures.preprocess_image` behind the JPEG, on any device.

The same float32 operations in the same order, each product and each sum rounded by itself, so the
pictures are the same to the last bit wherever float32 is IEEE. JPEG stays on the host, because
other decoders give other pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.runtime.pinned import Sender
from vla_prune_ros.vla.pictures import check_frame, crop_table, jpeg_round_trip, lanczos_table
from vla_prune_ros.vla.processor import Processor


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
        decoded = self._threads.map(jpeg_round_trip, images)  # without the interpreter
        return torch.stack([self._picture(view, image) for view, image in enumerate(decoded)])

    def _picture(self, view: int, decoded: np.ndarray) -> Tensor:
        x, size = self._send(view, decoded), self._size
        height, width, _ = x.shape
        if not height == width == size:
            x = self._filter(x.float().flatten(1)).view(size, width, 3)
            x = self._filter(x.transpose(0, 1).flatten(1)).view(size, size, 3)
            x = x.round_().clamp_(0, 255).transpose(0, 1)
        x = x.transpose(0, 1).flatten(1) * np.float32(1 / 255)
        x = self._between(x).view(size, size, 3).transpose(0, 1)
        x = self._between(x.flatten(1)).view(size, size, 3)
        return x.clamp_(0.0, 1.0).mul_(255.5).to(torch.uint8)

    def _filter(self, x: Tensor) -> Tensor:
        """Weighted sums of the rows of float32 [before, n], in the order of the samples."""
        at, weights = _taps(len(x), self._size, self._device)
        terms = x.index_select(0, at.flatten()).unflatten(0, at.shape) * weights
        total = terms[0]
        for term in terms[1:]:
            total += term
        return total

    def _between(self, x: Tensor) -> Tensor:
        """Rows of the crop, interpolated from those of float32 [S, n]."""
        lower = x.index_select(0, self._low)
        return lower + (x.index_select(0, self._high) - lower) * self._fraction

    def _send(self, view: int, image: np.ndarray) -> Tensor:
        key = (view, *image.shape)
        if key not in self._senders:
            self._senders[key] = Sender(image.shape, torch.uint8, self._device)
        return self._senders[key].send(image)


@lru_cache(maxsize=32)
def _taps(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Samples int64 [taps, after] and weights float32 [taps, after, 1] on a device."""
    at, weights = (torch.from_numpy(t).to(device) for t in lanczos_table(before, after))
    return at, weights[..., None]
