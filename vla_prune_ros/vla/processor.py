# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera frame, text and robot state to tensors; actions back to robot units.

The image pipeline is that of OpenVLA-OFT's evaluation code with Pillow and numpy in the place of
TensorFlow: JPEG, Lanczos resize, centre crop of 90 % area, truncation to uint8. It stays within
about one grey level of the original on average.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vla_prune_ros.vla.config import (
    DINO_MEAN,
    DINO_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    OpenVLAConfig,
)
from vla_prune_ros.vla.tokenizer import PromptTokenizer

_CROP_AREA = 0.9
_JPEG_QUALITY = 95
_EPS = 1e-8


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """Encode as JPEG (quality 95, 4:2:0) and decode; uint8 [H, W, 3] to the same."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=_JPEG_QUALITY, subsampling='4:2:0')
    return np.asarray(Image.open(buffer))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize with antialiased Lanczos; uint8 [H, W, 3] to uint8 [size, size, 3]."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


@lru_cache(maxsize=8)
def crop_table(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper sample, intp, and the fraction between them, float32, each [size].

    For each output row or column of the centre crop.
    """
    side = np.float32(np.sqrt(np.float32(_CROP_AREA)))
    low = (np.float32(1) - side) / np.float32(2)
    scale = side * np.float32(size - 1) / np.float32(max(size - 1, 1))
    at = low * np.float32(size - 1) + np.arange(size, dtype=np.float32) * scale
    floor = np.floor(at)
    upper = np.minimum(np.ceil(at), size - 1)
    return floor.astype(np.intp), upper.astype(np.intp), (at - floor).astype(np.float32)


def centre_crop(image: np.ndarray) -> np.ndarray:
    """Crop 90 % of the area and scale back, bilinear; uint8 [S, S, 3] to float32 in 0..1.

    Corners are aligned: the first and last output pixel sample the edges of the crop.
    """
    low, high, fraction = crop_table(len(image))
    pixels = image.astype(np.float32) * np.float32(1 / 255)
    left = pixels[:, low]
    rows = left + (pixels[:, high] - left) * fraction[:, None]
    top = rows[low]
    return top + (rows[high] - top) * fraction[:, None, None]


def preprocess_image(image: np.ndarray, size: int = 224) -> np.ndarray:
    """Turn an upright camera frame into the policy image.

    Args:
        image: uint8 RGB [H, W, 3].
        size: side of the policy image.

    Returns:
        uint8 RGB [size, size, 3].

    Raises:
        ValueError: not an RGB frame of bytes.
    """
    check_frame(image)
    cropped = centre_crop(resize(jpeg_round_trip(image), size))
    # Upstream converts by truncation of x * 255.5, not by rounding x * 255.
    return (cropped.clip(0.0, 1.0) * np.float32(255.5)).astype(np.uint8)


def check_frame(image: np.ndarray) -> None:
    """Check a camera frame.

    Raises:
        ValueError: not an RGB frame of bytes.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f'a camera frame is uint8 [H, W, 3], not {image.dtype} {image.shape}')


def pixel_values(frames: np.ndarray, device: torch.device | str = 'cpu') -> Tensor:
    """Normalise policy images for both towers.

    Args:
        frames: uint8 [views, S, S, 3], third-person camera first.
        device: where the result goes; frames travel there as bytes.

    Returns:
        float32 [1, 6*views, S, S]: per view three channels for DINOv2, three for SigLIP.
    """
    return PixelScale(device)(torch.from_numpy(np.ascontiguousarray(frames)).to(device))


class PixelScale:
    """Bytes to the pixel values of both towers; its constants stay on a device."""

    def __init__(self, device: torch.device | str = 'cpu') -> None:
        self._mean, self._std = (
            torch.tensor(values, device=device).view(2, 3, 1, 1)
            for values in ((DINO_MEAN, SIGLIP_MEAN), (DINO_STD, SIGLIP_STD))
        )

    def __call__(self, frames: Tensor) -> Tensor:
        """Map uint8 [views, S, S, 3] to float32 [1, 6*views, S, S], see `pixel_values`."""
        pixels = frames.permute(0, 3, 1, 2).float().div(255)  # [views, 3, S, S]
        both = (pixels[:, None] - self._mean) / self._std  # [views, 2, 3, S, S]
        return both.reshape(1, -1, *pixels.shape[2:])


def resolve_unnorm_key(norm_stats: Mapping[str, Any], key: str | None) -> str:
    """Find the statistics to use: the key, the key with `_no_noops`, or the only ones there.

    Raises:
        ValueError: the key is unknown, or none was given and there are several.
    """
    known = ', '.join(sorted(norm_stats)) or 'none'
    if key is None:
        if len(norm_stats) == 1:
            return next(iter(norm_stats))
        raise ValueError(f'unnorm_key must be given; the checkpoint has: {known}')
    for name in (key, f'{key}_no_noops'):
        if name in norm_stats:
            return name
    raise ValueError(f'unknown unnorm_key {key!r}; the checkpoint has: {known}')


class Normaliser:
    """Scales robot state and actions by the 1 % and 99 % quantiles of the training data."""

    def __init__(self, statistics: Mapping[str, Any], action_dim: int, proprio_dim: int) -> None:
        """Take the statistics of one data set.

        Args:
            statistics: `action` and `proprio` blocks with `q01`, `q99` and perhaps `mask`.
            action_dim: numbers per action.
            proprio_dim: numbers in the robot state.
        """
        self.action = _Quantiles(statistics, 'action', action_dim)
        self.proprio = _Quantiles(statistics, 'proprio', proprio_dim)

    def normalise_proprio(self, proprio: np.ndarray) -> np.ndarray:
        """Map the robot state float64 [..., proprio_dim] into -1..1; all of it is clipped."""
        return self.proprio.scale(proprio).clip(-1.0, 1.0)

    def unnormalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """Map normalised actions [..., action_dim] to robot units, float64; not clipped."""
        q, actions = self.action, np.asarray(actions, dtype=np.float64)
        return np.where(q.mask, 0.5 * (actions + 1) * q.span + q.low, actions)

    def normalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """Invert `unnormalise_actions`, for training; float64, not clipped."""
        return self.action.scale(actions)


class _Quantiles:
    def __init__(self, statistics: Mapping[str, Any], kind: str, dim: int) -> None:
        if kind not in statistics:
            raise ValueError(f'the normalisation statistics have no {kind!r} block')
        block = statistics[kind]
        self.low, high = (np.asarray(block[name], dtype=np.float64) for name in ('q01', 'q99'))
        self.mask = np.asarray(block.get('mask', [True] * dim), dtype=bool)
        if not self.low.shape == high.shape == self.mask.shape == (dim,):
            raise ValueError(f'the {kind} statistics do not have {dim} numbers each')
        self.span = high - self.low + _EPS

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Map the quantiles to -1 and 1; numbers that the mask leaves out stay as they are."""
        values = np.asarray(values, dtype=np.float64)
        return np.where(self.mask, 2 * (values - self.low) / self.span - 1, values)


class Processor:
    """Everything between an observation and the network's tensors, for one checkpoint."""

    def __init__(
        self, config: OpenVLAConfig, tokenizer: PromptTokenizer, unnorm_key: str | None = None
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.unnorm_key = resolve_unnorm_key(config.norm_stats, unnorm_key)
        self.normaliser = Normaliser(
            config.norm_stats[self.unnorm_key], config.action_dim, config.proprio_dim
        )
        self._prompt: tuple[str, Tensor, int] | None = None  # of the latest instruction

    @classmethod
    def from_directory(
        cls, directory: str | Path, config: OpenVLAConfig, unnorm_key: str | None = None
    ) -> Processor:
        """Load the tokenizer of a checkpoint directory; see `PromptTokenizer` for the errors."""
        tokenizer = PromptTokenizer.from_directory(
            directory, config.bos_id, config.llama.vocab_size
        )
        return cls(config, tokenizer, unnorm_key)

    def frames(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Turn camera frames into policy images, uint8 [views, S, S, 3]."""
        return np.stack([preprocess_image(image, self.config.image_size) for image in images])

    def prompt(self, instruction: str) -> tuple[Tensor, int]:
        """Return the prompt ids int64 [1, L] and the count of boilerplate tokens after BOS."""
        if self._prompt is None or self._prompt[0] != instruction:
            ids = torch.tensor([self.tokenizer.prompt_ids(instruction)])
            self._prompt = (instruction, ids, self.tokenizer.template_length(instruction))
        return self._prompt[1:]
