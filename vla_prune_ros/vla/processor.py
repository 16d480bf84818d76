# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Policy images, text and robot state to tensors; actions back to robot units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.vla.config import (
    DINO_MEAN,
    DINO_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    OpenVLAConfig,
)
from vla_prune_ros.vla.normalisation import Normaliser, resolve_unnorm_key
from vla_prune_ros.vla.pictures import preprocess_image
from vla_prune_ros.vla.tokenizer import PromptTokenizer

__all__ = ['Normaliser', 'Processor', 'pixel_values', 'preprocess_image', 'resolve_unnorm_key']


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

    def frames(self, images: Sequence[np.ndarray], jpeg: bool = True) -> np.ndarray:
        """Turn camera frames into policy images, uint8 [views, S, S, 3]; `jpeg`: as published."""
        size = self.config.image_size
        return np.stack([preprocess_image(image, size, jpeg) for image in images])

    def state(self, proprio: np.ndarray | None) -> np.ndarray | None:
        """Return the normalised robot state [proprio_dim]; None for a model that takes none.

        Raises:
            ValueError: it has another size or is not finite.
        """
        dim = self.config.proprio_dim
        if not dim:
            return None
        proprio = np.asarray(proprio, dtype=np.float64)
        if proprio.shape != (dim,) or not np.isfinite(proprio).all():
            raise ValueError(f'proprio must be {dim} finite numbers')
        return self.normaliser.normalise_proprio(proprio)

    def prompt(self, instruction: str) -> tuple[Tensor, int]:
        """Return the prompt ids int64 [1, L] and the count of boilerplate tokens after BOS."""
        if self._prompt is None or self._prompt[0] != instruction:
            ids = torch.tensor([self.tokenizer.prompt_ids(instruction)])
            self._prompt = (instruction, ids, self.tokenizer.template_length(instruction))
        return self._prompt[1:]
