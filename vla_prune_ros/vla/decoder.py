# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bidirectional Llama whose set of live tokens may shrink between layers.

Every token attends to every token. Rows keep their absolute id and position id for life. Attention
is always the fused kernel; selectors get scores from a small side product of a few query rows.
Source: OpenVLA-OFT's parallel decoding (arXiv 2502.19645) on Llama 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vla_prune_ros.vla.config import LlamaConfig
from vla_prune_ros.vla.fusing import as_one_matrix, lay_side_by_side
from vla_prune_ros.vla.operations import TORCH, Operations, add, gated, rotate
from vla_prune_ros.vla.selection import TokenLayout, TokenSelector
from vla_prune_ros.vla.space import Mark, Rows, Run, Space, Stage, directly, unmarked
from vla_prune_ros.vla.walk import DecoderOutput, walk


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and cast back before the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last dimension; same shape and dtype."""
        if x.is_cuda:  # one kernel, which rounds once instead of twice
            return nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rope_table(position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of the rotary embedding.

    Args:
        position_ids: int64 [n] or [B, n].
        head_dim: even width of a head.
        theta: base of the frequencies.
        dtype: of the result; the angles are float32.

    Returns:
        [2, 1, 1, n, head_dim] or [2, B, 1, n, head_dim]: cosines, sines; both halves repeat, the
        first half of the sines is negative, as `rotate` needs it.
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64, device=position_ids.device)
    frequency = 1.0 / (theta ** (steps.float() / head_dim))
    angle = position_ids.float()[..., None] * frequency  # [..., n, head_dim/2]
    angle = angle.reshape(-1, 1, *angle.shape[-2:])  # [B or 1, 1, n, head_dim/2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).to(dtype)


class _Attention(nn.Module):
    GROUP = ('q_proj', 'k_proj', 'v_proj')
    ops: Operations = TORCH

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads = config.n_heads
        for name in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size, bias=False))
        self.packed: nn.Linear | None = None  # instead of the first three, see `Decoder.pack`

    @property
    def inward(self) -> list[nn.Linear]:
        """Layers that share their input."""
        return [getattr(self, name) for name in self.GROUP]

    def qkv(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project normed states [B, m, D] to rotated q, k and v, each [B, heads, m, head_dim]."""
        whole = _one_product(self, x)
        if whole is None:
            q, k, v = (
                linear(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
                for linear in self.inward
            )
            return rotate(q, rope), rotate(k, rope), v
        return self.ops.rotated(whole, rope, self.heads)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, live: Tensor | None = None
    ) -> Tensor:
        """Fused attention of live rows over the attended keys; [B, m, D]."""
        return self.o_proj(self.ops.attention(q, k, v, mask, live))


class _Mlp(nn.Module):
    GROUP = ('gate_proj', 'up_proj')
    ops: Operations = TORCH

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_hidden, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_hidden, bias=False)
        self.down_proj = nn.Linear(config.mlp_hidden, config.hidden_size, bias=False)
        self.packed: nn.Linear | None = None  # instead of the first two, see `Decoder.pack`

    @property
    def inward(self) -> list[nn.Linear]:
        """Layers that share their input."""
        return [getattr(self, name) for name in self.GROUP]

    def forward(self, x: Tensor) -> Tensor:
        whole = _one_product(self, x)
        if whole is None:
            return self.down_proj(gated(*(linear(x) for linear in self.inward)))
        return self.down_proj(self.ops.swiglu(whole, self.down_proj))


def _one_product(block: _Attention | _Mlp, x: Tensor) -> Tensor | None:
    """Outputs of the layers that share their input, next to each other, if weights allow it."""
    if block.packed is not None:
        return block.packed(x)
    whole = as_one_matrix(block.inward)
    return None if whole is None else nn.functional.linear(x, whole)


class DecoderLayer(nn.Module):
    """One pre-norm layer: attention over the attended keys, then a gated MLP.

    It takes and leaves its states as a sum of two, `x` and `delta`, see `operations`.
    """

    ops: Operations = TORCH

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = _Mlp(config)

    def enter(
        self, x: Tensor, delta: Tensor | None, rope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States [B, m, D] of the layer, and its queries, keys and values."""
        x, normed = self.ops.add_norm(x, delta, self.input_layernorm, self.self_attn.packed)
        return x, *self.self_attn.qkv(normed, rope)

    def leave(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        live: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Complete the layer from its queries and the attended keys and values: x and delta.

        Args:
            x: from `enter`.
            q: queries.
            k: keys.
            v: values.
            mask: bias or bool, see `Operations.attention`.
            live: see there.
        """
        attended = self.self_attn.attend(q, k, v, mask, live)
        x, normed = self.ops.add_norm(x, attended, self.post_attention_layernorm, self.mlp.packed)
        return x, self.mlp(normed)

    @property
    def packed(self) -> bool:
        """Whether `pack` was called."""
        return self.mlp.packed is not None

    @torch.no_grad()
    def pack(self) -> None:
        """See `Decoder.pack`."""
        for block in (self.self_attn, self.mlp):
            weight = as_one_matrix(block.inward)
            if weight is None:
                weight = torch.cat([linear.weight for linear in block.inward])
            with torch.device('meta'):
                block.packed = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            block.packed.weight = nn.Parameter(weight, requires_grad=False)
            for name in block.GROUP:
                delattr(block, name)

    def qkv(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the states [B, m, D] that enter the layer."""
        return self.enter(x, None, rope)[1:]

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the layer with every row live; x [B, n, D]."""
        return add(*self.leave(*self.enter(x, None, rope), mask))


class Decoder(nn.Module):
    """Token embeddings, layers and final norm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        # Its own draw of weights would be overwritten, and on the meta device, where a checkpoint
        # is loaded, it imports for seconds.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def fuse(self) -> None:
        """Lay q/k/v and gate/up side by side: inference then takes one product for each group."""
        for layer in self.layers:
            for block in (layer.self_attn, layer.mlp):
                if block.packed is None:
                    lay_side_by_side(block.inward)
            if layer.mlp.down_proj.weight.is_cuda:
                torch.cuda.empty_cache()  # what they left: too small for anything else

    @property
    def decoder(self) -> Decoder:
        """Itself: a stage finds it in the whole network and here alike."""
        return self

    @property
    def packed(self) -> bool:
        """Whether `pack` was called."""
        return any(layer.packed for layer in self.layers)

    def pack(self) -> None:
        """Make one layer of q/k/v and one of gate/up, for good: for weights in other formats.

        The parameters lose their published names, so the model can no longer be saved.
        """
        for layer in self.layers:
            layer.pack()

    def forward(
        self,
        sequence: Tensor | Space,
        position_ids: Tensor | None = None,
        key_mask: Tensor | None = None,
        selector: TokenSelector | None = None,
        layout: TokenLayout | None = None,
        run: Run = directly,
        mark: Mark = unmarked,
        network: nn.Module | None = None,
        before: tuple[Stage, ...] = (),
        behind: Callable[[Rows, int], Stage] | None = None,
    ) -> DecoderOutput:
        """Run all layers, without the final norm.

        Args:
            sequence: assembled sequence [B, n, D], or a space that holds it.
            position_ids: int64 [n] or [B, n]; default 0..n-1. Of a tensor only.
            key_mask: bool [B, n], False hides a key from everyone (padding). Of a tensor only.
            selector: decides which rows stay live; needs batch 1, `layout` and no mask.
            layout: meaning of the rows; needed for a selector or a space.
            run: how stages are run.
            mark: called with 'decoder' and 'select' around the selector's work.
            network: whose decoder this is; what stages around the layers work with.
            before: see `walk`.
            behind: see `walk`.
        """
        space = self.space(sequence, position_ids, key_mask)
        states = space.states[0]
        length = states.shape[1] if layout is None else layout.length
        simple = len(states) == 1 and layout is not None and space.key_mask is None
        if selector is not None and not simple:
            raise ValueError('a token selector needs batch size 1, a layout and no mask')
        if isinstance(sequence, Tensor) and length != states.shape[1]:
            raise ValueError(f'the layout has {length} tokens, the sequence {states.shape[1]}')
        network = self if network is None else network
        return walk(network, space, length, selector, layout, run, mark, before, behind)

    def space(
        self,
        sequence: Tensor | Space,
        position_ids: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> Space:
        """Return the space of one pass over an assembled sequence; a space as it is."""
        if isinstance(sequence, Space):
            return sequence
        n, config = sequence.shape[1], self.config
        positions = position_ids
        if positions is None:
            positions = torch.arange(n, device=sequence.device)
        rope = rope_table(positions, config.head_dim, config.rope_theta, sequence.dtype)
        return Space(sequence, rope, key_mask)
