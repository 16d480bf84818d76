# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The two vision towers and the projector.

Parameter names are those of the published checkpoints. The last block and the final norm of each
tower never reach the output, so they are not built (see `checkpoint.unused_shapes`).
Source: OpenVLA-OFT (arXiv 2502.19645) on timm's ViT.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from vla_prune_ros.vla.config import OpenVLAConfig, TowerConfig
from vla_prune_ros.vla.operations import TORCH, Operations


class _Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, change: Tensor) -> Tensor:
        return torch.addcmul(x, change, self.scale_factor)


class _Sum(nn.Module):
    def forward(self, x: Tensor, change: Tensor) -> Tensor:
        return x + change


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, n, head_dim]
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, dim))


class _Mlp(nn.Module):
    ops: Operations = TORCH

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ops.linear_gelu(x, self.fc1))  # exact (erf) GELU in both towers


class _Block(nn.Module):
    """Pre-norm transformer block with optional LayerScale and modulation by language (FiLM).

    It takes and leaves its states as a sum of two, `x` and `delta`, see `operations`.
    """

    ops: Operations = TORCH

    def __init__(self, config: TowerConfig, language_dim: int = 0) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, config.heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _Mlp(dim, config.mlp_hidden)
        self.ls1 = _Scale(dim) if config.layer_scale else _Sum()
        self.ls2 = _Scale(dim) if config.layer_scale else _Sum()
        if language_dim:
            self.scale = nn.Linear(language_dim, dim)
            self.shift = nn.Linear(language_dim, dim)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Map [B, n, dim] to the same; modulation [2, B, 1, dim]: factor and shift."""
        return self.ls2(*self.run(x, None, None, modulation))

    def run(
        self,
        x: Tensor,
        delta: Tensor | None,
        sum_of: nn.Module | None,
        modulation: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """X and delta behind the block, whose sum is `ls2` of them.

        Args:
            x: [B, n, dim].
            delta: what is to be added to x, or None.
            sum_of: adds them up, the `ls2` of the block before.
            modulation: see `forward`.
        """
        x, normed = self.ops.add_layer_norm(x, delta, sum_of, self.norm1)
        change = self.attn(normed)
        if modulation is None:
            x, normed = self.ops.add_layer_norm(x, change, self.ls1, self.norm2)
        else:  # behind the residual sum and in front of the second norm
            x = torch.addcmul(modulation[1], self.ls1(x, change), modulation[0])
            normed = self.norm2(x)
        return x, self.mlp(normed)


class _PatchEmbed(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)  # [B, n_patches, dim], row-major


class VisionTower(nn.Module):
    """A ViT up to its last block but one, where OpenVLA reads the patch features.

    With a `language_dim` its blocks are modulated by the mean of word embeddings of that width.
    """

    def __init__(self, config: TowerConfig, language_dim: int = 0) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embed = _PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.n_patches, dim))
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, dim))
        self.blocks = nn.ModuleList(_Block(config, language_dim) for _ in range(config.depth - 1))

    def modulation(self, language: Tensor) -> Tensor:
        """Factors 1 + scale and shifts of all blocks, [blocks, 2, B, 1, dim], for [B, D]."""
        return torch.stack(
            [torch.stack([1 + b.scale(language), b.shift(language)]) for b in self.blocks]
        )[:, :, :, None]

    def forward(self, pixels: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Map pixels [B, 3, size, size] to patch features [B, n_patches, dim].

        Args:
            pixels: normalised.
            modulation: see `modulation`; for a batch of 1 or of the pixels.
        """
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = []
        if self.config.class_token:
            prefix.append(self.cls_token.expand(len(x), -1, -1))
        if self.config.reg_tokens:
            prefix.append(self.reg_token.expand(len(x), -1, -1))
        if prefix:
            x = torch.cat([*prefix, x], dim=1)
        delta = sum_of = None
        for block, change in zip(self.blocks, _each(modulation, self.blocks), strict=True):
            x, delta = block.run(x, delta, sum_of, change)
            sum_of = block.ls2
        x = x if sum_of is None else sum_of(x, delta)
        return x[:, self.config.n_prefix :]


def _each(modulation: Tensor | None, blocks: nn.ModuleList) -> Iterable[Tensor | None]:
    return [None] * len(blocks) if modulation is None else modulation


Modulation = tuple[Tensor, Tensor]  # of the two towers, see `VisionTower.modulation`


class VisionBackbone(nn.Module):
    """DINOv2-like and SigLIP-like towers over the same images, features concatenated."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        language_dim = config.llama.hidden_size if config.film else 0
        self.film = config.film
        self.featurizer = VisionTower(config.featurizer, language_dim)
        self.fused_featurizer = VisionTower(config.fused_featurizer, language_dim)

    def modulation(self, language: Tensor) -> Modulation:
        """What the instruction does to both towers; the same for all pictures until another one.

        Args:
            language: mean of the raw word embeddings of BOS, prompt and EOS, [B, D].
        """
        return self.featurizer.modulation(language), self.fused_featurizer.modulation(language)

    def forward(self, pixel_values: Tensor, modulation: Modulation | None = None) -> Tensor:
        """Map pixels [B, 6*views, size, size] to features [B, views*n_patches, vision_dim].

        Per view, channels 0-2 carry the first tower's normalisation and 3-5 the second's. All
        views of a batch go through a tower in one call.

        Args:
            pixel_values: see above.
            modulation: see `modulation`; needed with FiLM, and only then.
        """
        if self.film is not (modulation is not None):
            raise ValueError('FiLM towers, and only they, need the modulation by the instruction')
        b, channels, height, width = pixel_values.shape
        if channels == 0 or channels % 6:
            raise ValueError(f'pixel_values needs 6 channels per view, got {channels}')
        images = pixel_values.reshape(b * (channels // 6), 6, height, width)
        first = second = None
        if modulation is not None:  # [blocks, 2, B, 1, dim] -> one for each picture
            first, second = (m.repeat_interleave(channels // 6, 2) for m in modulation)
        if images.is_cuda and not torch.is_grad_enabled():
            both = self._on_two_streams(images, first, second)
        else:
            both = [
                self.featurizer(images[:, :3], first),
                self.fused_featurizer(images[:, 3:], second),
            ]
        features = torch.cat(both, dim=-1)  # [B*views, n_patches, vision_dim]
        return features.reshape(b, -1, features.shape[-1])

    def _on_two_streams(
        self, images: Tensor, dino: Tensor | None, siglip: Tensor | None
    ) -> list[Tensor]:
        """Both towers at a time: neither fills a large GPU with two images."""
        main, side = torch.cuda.current_stream(images.device), _side_stream(images.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            second = self.fused_featurizer(images[:, 3:], siglip)
        first = self.featurizer(images[:, :3], dino)
        main.wait_stream(side)
        second.record_stream(main)
        for given in (images, siglip):
            if given is not None:
                given.record_stream(side)
        return [first, second]


@lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class VisionProjector(nn.Module):
    """Three-layer GELU network from patch features to token embeddings."""

    def __init__(self, vision_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., vision_dim] to [..., hidden_size]."""
        return self.fc3(nn.functional.gelu(self.fc2(nn.functional.gelu(self.fc1(features)))))
