# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How a policy is fine-tuned: as the authors released it, or as this house does it.

Sources: openvla-oft `LIBERO.md`, `vla-scripts/finetune.py`; LightVLA `train_libero.sh`. What
`released` does otherwise than the release stands in doc/training.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vla_prune_ros.pruning.lightvla import NOISES
from vla_prune_ros.training.augment import CROPS

LARGE = 1_000_000_000  # weights from which on only adapters are trained by default


@dataclass(frozen=True)
class Recipe:
    """One stage of training.

    Attributes:
        steps: optimiser steps.
        batch_size: samples of a step, over all processes and parts.
        learning_rate: the highest.
        warmup: steps in which it rises.
        decay_at: step at which it falls to a tenth at once; 0: a cosine over the whole run.
        final_share: of the rate, that the cosine ends at.
        betas: of AdamW.
        weight_decay: of AdamW.
        decay_all: weight decay for vectors (norms, biases), too, not for matrices alone.
        clip: largest norm of the gradient; 0: not limited.
        ema: decay of the averaged weights that are saved; 0: the weights themselves.
        lora_rank: of the adapters; 0 trains all weights; None: 32 for a model of more than 1e9
            weights, else 0.
        lora_convolutions: adapters on the patch convolutions, too, as peft's `all-linear` has it.
        fresh_heads: new action head and state projector, normalised by the data's statistics.
        crop: of the pictures, 'diagonal' or 'free'.
        colour: whether the colours of the pictures change.
        clip_labels: normalised actions stay in -1..1.
        noise: on LightVLA's scores, 'uniform' (as released) or 'gumbel' (as the paper says).
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 5e-4
    warmup: int = 0
    decay_at: int = 0
    final_share: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    decay_all: bool = True
    clip: float = 0.0
    ema: float = 0.0
    lora_rank: int | None = 32
    lora_convolutions: bool = True
    fresh_heads: bool = True
    crop: str = 'diagonal'
    colour: bool = True
    clip_labels: bool = True
    noise: str = 'uniform'

    def __post_init__(self) -> None:
        for name, valid in (('noise', NOISES), ('crop', CROPS)):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f'unknown {name} {getattr(self, name)!r}; valid: {", ".join(valid)}'
                )
        for name in ('steps', 'batch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} {getattr(self, name)} is below 1')
        for name in ('warmup', 'decay_at', 'weight_decay', 'clip', 'lora_rank'):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:  # NaN fails
                raise ValueError(f'{name} {value} is not a number from 0 on')
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f'learning_rate {self.learning_rate} is not a number above 0')
        if not 0 <= self.ema < 1:
            raise ValueError(f'ema {self.ema} is not in 0 to below 1')

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.decay_at:
            return self.learning_rate * (0.1 if step >= self.decay_at else 1.0)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        share = self.final_share
        return self.learning_rate * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * done)))

    def rank(self, weights: int) -> int:
        """LoRA rank for a model of so many weights."""
        if self.lora_rank is None:
            return 32 if weights > LARGE else 0
        return self.lora_rank


_HOUSE = Recipe(
    steps=20_000,
    batch_size=32,
    learning_rate=3e-4,
    warmup=200,
    betas=(0.9, 0.95),
    weight_decay=0.02,
    decay_all=False,
    clip=1.0,
    ema=0.998,
    lora_rank=None,
    lora_convolutions=False,
    fresh_heads=False,
    crop='free',
)
RECIPES = {
    'oft': {'house': _HOUSE, 'released': Recipe(steps=150_000, decay_at=100_000)},
    'lightvla': {
        'house': replace(_HOUSE, steps=4000),
        'released': Recipe(steps=40_000, decay_at=30_000),
    },
}
