# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of the parts of a model: vision towers and language model."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

# A corrupt file must not fill the memory: no model has more of anything, or of these.
_LARGEST = 2**20
_FEW = ('depth', 'n_layers', 'chunk_len', 'action_dim', 'n_views')
_MAY_BE_0 = {
    *('vocab_size', 'reg_tokens', 'bos_id', 'eos_id', 'pad_id', 'padded_vocabulary'),
    *('proprio_dim', 'control_rate'),  # no state; not stated
}


def check_values(config: Any) -> None:
    """ValueError if a number is not one, or no size that a model can have."""
    for f in fields(config):
        value = getattr(config, f.name)
        low = 0 if f.name in _MAY_BE_0 else 1
        high = 1000 if f.name in _FEW else _LARGEST
        if f.type == 'int' and not (type(value) is int and low <= value <= high):
            raise ValueError(f'{f.name} {value!r:.60} is not a whole number in {low}..{high}')
        if f.type == 'float' and not (
            type(value) in (int, float)
            and (0 < value < math.inf or (value == 0 and f.name in _MAY_BE_0))
        ):
            raise ValueError(f'{f.name} {value!r:.60} is not a positive number')
        if f.type in ('bool', 'str') and type(value).__name__ != f.type:
            raise ValueError(f'{f.name} {value!r:.60} is not of type {f.type}')


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer. Its output is read after the last block but one."""

    dim: int
    depth: int
    heads: int
    mlp_hidden: int
    patch_size: int = 14
    image_size: int = 224
    reg_tokens: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attn_pool: bool = False

    def __post_init__(self) -> None:
        check_values(self)
        if self.depth < 2:
            raise ValueError(f'a vision tower needs at least 2 blocks, not {self.depth}')
        if self.dim % self.heads:
            raise ValueError(f'tower width {self.dim} is not a multiple of {self.heads} heads')
        if self.image_size % self.patch_size:
            raise ValueError(
                f'image size {self.image_size} is not a multiple of patch {self.patch_size}'
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        """Patches of one image."""
        return self.grid**2

    @property
    def n_prefix(self) -> int:
        """Tokens in front of the patches: class token and registers."""
        return int(self.class_token) + self.reg_tokens


@dataclass(frozen=True)
class LlamaConfig:
    """The language model; the defaults are Llama-2-7B as OpenVLA uses it."""

    hidden_size: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    mlp_hidden: int = 11008
    vocab_size: int = 32064
    # The published config.json does not say it; the library default 1e-6 is what was trained.
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        check_values(self)
        if self.hidden_size % (2 * self.n_heads):
            raise ValueError(
                f'hidden size {self.hidden_size} does not give {self.n_heads} heads of even width'
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.n_heads


DINO = TowerConfig(1024, 24, 16, 4096, reg_tokens=4, class_token=True, layer_scale=True)
SIGLIP = TowerConfig(1152, 27, 16, 4304, attn_pool=True)
