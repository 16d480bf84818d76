# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Policy images, text and robot state to tensors; actions back to robot units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from vla_prune_ros.vla.pictures import preprocess_image
from vla_prune_ros.vla.tokenizer import PromptTokenizer

_EPS = 1e-8


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

    def frames(self, images: Sequence[np.ndarray], jpeg: bool = True) -> np.ndarray:
        """Turn camera frames into policy images, uint8 [views, S, S, 3]; `jpeg`: as published."""
        size = self.config.image_size
        return np.stack([preprocess_image(image, size, jpeg) for image in images])

    def prompt(self, instruction: str) -> tuple[Tensor, int]:
        """Return the prompt ids int64 [1, L] and the count of boilerplate tokens after BOS."""
        if self._prompt is None or self._prompt[0] != instruction:
            ids = torch.tensor([self.tokenizer.prompt_ids(instruction)])
            self._prompt = (instruction, ids, self.tokenizer.template_length(instruction))
        return self._prompt[1:]
