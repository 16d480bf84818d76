# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera frame, text and robot state to tensors; actions back to robot units.

The image pipeline is that of OpenVLA-OFT's evaluation code with Pillow and numpy in the place of
TensorFlow: JPEG, Lanczos resize, centre crop of 90 % area, truncation to uint8. It stays within
about one grey level of the original on average.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

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
from vla_prune_ros.vla.normalisation import Normaliser, resolve_unnorm_key
from vla_prune_ros.vla.tokenizer import PromptTokenizer

__all__ = ['Normaliser', 'Processor', 'resolve_unnorm_key']
_CROP_AREA = 0.9
_JPEG_QUALITY = 95


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


class Processor:
    """Everything between an observation and the network's tensors, for one checkpoint."""

    def __init__(
        self, config: OpenVLAConfig, tokenizer: PromptTokenizer, unnorm_key: str | None = None
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.unnorm_key = resolve_unnorm_key(config.norm_stats, unnorm_key)
        self.normaliser = Normaliser(
            config.norm_stats[self.unnorm_key],
            config.action_dim,
            config.proprio_dim,
            config.normalisation,
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
