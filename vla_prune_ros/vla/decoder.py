# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bidirectional Llama whose set of live tokens may shrink between layers.

Every token attends to every token. Rows keep their absolute id and position id for life. Attention
is always the fused kernel; selectors get scores from a small side product of a few query rows.
Source: OpenVLA-OFT's parallel decoding (arXiv 2502.19645) on Llama 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla_prune_ros.vla.config import LlamaConfig
from vla_prune_ros.vla.fusing import as_one_matrix, lay_side_by_side
from vla_prune_ros.vla.selection import (
    LayerScores,
    PassPlan,
    ScoreRequest,
    TokenLayout,
    TokenSelector,
    TokenState,
)


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


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Apply rotary embedding in the half-split layout; x [..., n, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return torch.addcmul(x * rope[0], torch.cat([high, low], dim=-1), rope[1])


class _Attention(nn.Module):
    GROUP = ('q_proj', 'k_proj', 'v_proj')

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
        parts = whole.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(parts[:2], rope)  # at once; parts [3, B, heads, m, head_dim]
        return q, k, parts[2]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Fused attention of live rows over the attended keys; [B, m, D]."""
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    GROUP = ('gate_proj', 'up_proj')

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
            gate, up = (linear(x) for linear in self.inward)
        else:
            gate, up = whole.chunk(2, dim=-1)
        if torch.is_grad_enabled():
            return self.down_proj(nn.functional.silu(gate) * up)
        # In place: fresh memory for states this wide costs more than the arithmetic.
        return self.down_proj(nn.functional.silu(gate, inplace=True).mul_(up))


def _one_product(block: _Attention | _Mlp, x: Tensor) -> Tensor | None:
    """Outputs of the layers that share their input, next to each other, if weights allow it."""
    if block.packed is not None:
        return block.packed(x)
    whole = as_one_matrix(block.inward)
    return None if whole is None else nn.functional.linear(x, whole)


class DecoderLayer(nn.Module):
    """One pre-norm layer: attention over the attended keys, then a gated MLP."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = _Mlp(config)

    def qkv(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the states [B, m, D] that enter the layer."""
        return self.self_attn.qkv(self.input_layernorm(x), rope)

    def finish(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Complete the layer from its queries and the attended keys and values; [B, m, D]."""
        x = x + self.self_attn.attend(q, k, v, mask)
        rest = self.mlp(self.post_attention_layernorm(x))
        return x + rest if torch.is_grad_enabled() else x.add_(rest)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the layer with every row live; x [B, n, D]."""
        return self.finish(x, *self.qkv(x, rope), mask)


@dataclass
class DecoderOutput:
    """Result of a decoder pass.

    Attributes:
        hidden: states after the last layer, before the final norm, [B, m, D].
        ids: absolute ids of these rows, int64 [m].
        entered: absolute ids of the rows that entered the last layer, int64.
    """

    hidden: Tensor
    ids: Tensor
    entered: Tensor


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

    @property
    def packed(self) -> bool:
        """Whether `pack` was called."""
        return any(layer.mlp.packed is not None for layer in self.layers)

    @torch.no_grad()
    def pack(self) -> None:
        """Make one layer of q/k/v and one of gate/up, for good: for weights in other formats.

        The parameters lose their published names, so the model can no longer be saved.
        """
        for layer in self.layers:
            for block in (layer.self_attn, layer.mlp):
                weight = torch.cat([linear.weight for linear in block.inward])
                with torch.device('meta'):
                    block.packed = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                block.packed.weight = nn.Parameter(weight, requires_grad=False)
                for name in block.GROUP:
                    delattr(block, name)

    def forward(
        self,
        embeddings: Tensor,
        position_ids: Tensor | None = None,
        key_mask: Tensor | None = None,
        selector: TokenSelector | None = None,
        layout: TokenLayout | None = None,
    ) -> DecoderOutput:
        """Run all layers, without the final norm.

        Args:
            embeddings: assembled sequence [B, n, D].
            position_ids: int64 [n] or [B, n]; default 0..n-1.
            key_mask: bool [B, n], False hides a key from everyone (padding).
            selector: decides which rows stay live; needs batch 1, `layout` and no mask.
            layout: meaning of the rows, for the selector.
        """
        n = embeddings.shape[1]
        ids = torch.arange(n, device=embeddings.device)
        positions = ids if position_ids is None else position_ids
        rope = rope_table(
            positions, self.config.head_dim, self.config.rope_theta, embeddings.dtype
        )
        if selector is not None:
            if len(embeddings) != 1 or layout is None or key_mask is not None:
                raise ValueError('a token selector needs batch size 1, a layout and no mask')
            return self._selected(embeddings, ids, rope, selector, layout)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        x = embeddings
        for layer in self.layers:
            x = layer(x, rope, mask)
        return DecoderOutput(x, ids, ids)

    def _selected(
        self,
        x: Tensor,
        ids: Tensor,
        rope: Tensor,
        selector: TokenSelector,
        layout: TokenLayout,
    ) -> DecoderOutput:
        """The pass with a selector: cuts, scores, skipped layers, cached keys.

        Rows of `x` behind the live ones fill up a bucket; `mask` hides their keys.
        """
        complete, everything = rope, ids
        if layout.length != len(ids):
            raise ValueError(f'the layout has {layout.length} tokens, the sequence {len(ids)}')
        plan = selector.begin(layout, x[0])
        self.check_plan(plan, layout)
        scores: dict[int, LayerScores] = {}
        entered, mask = ids, None
        for index in range(len(self.layers) + 1):
            request = plan.scores.get(index)
            if request is not None and request.ahead:
                q, k, _ = self.layers[index].qkv(x, rope)
                scores[index] = side_product(q[0], k[0], request, ids, ids)
            if index in plan.points:
                live = x[0, : len(ids)]
                kept = selector.select(index, TokenState(layout, ids, live, scores))
                if kept is not None:
                    check_kept(kept, ids, layout)
                    x = x[:, torch.searchsorted(ids, kept)]
                    ids, rope, mask = kept, complete[..., kept, :], None
                    if filling := plan.rows(len(ids), layout) - len(ids):
                        x, rope = (nn.functional.pad(t, (0, 0, 0, filling)) for t in (x, rope))
                        rows = torch.arange(x.shape[1], device=x.device)
                        mask = (rows < len(ids))[None, None, None]  # [1, 1, 1, rows]
            if index == len(self.layers):
                break
            entered = ids
            if index in plan.skip_layers:
                continue
            layer = self.layers[index]
            q, k, v = layer.qkv(x, rope)
            key_ids = ids
            if plan.cache is not None:
                k, v = plan.cache.update(index, ids, k, v)
                key_ids = everything
            if request is not None and not request.ahead:
                scores[index] = side_product(q[0], k[0], request, ids, key_ids)
            x = layer.finish(x, q, k, v, mask)
        x = x[:, : len(ids)]
        selector.end(TokenState(layout, ids, x[0], scores))
        return DecoderOutput(x, ids, entered)

    def check_plan(self, plan: PassPlan, layout: TokenLayout) -> None:
        """Check what a selector wants.

        Raises:
            ValueError: cuts, scores, layers or cache do not go together or with this model.
        """
        depth, n = len(self.layers), layout.length
        if plan.points and not 0 <= min(plan.points) <= max(plan.points) <= depth:
            raise ValueError(f'cut points {sorted(plan.points)} are not within 0..{depth}')
        layers = {*plan.scores, *plan.skip_layers}
        if layers and not 0 <= min(layers) <= max(layers) < depth:
            raise ValueError(f'layers {sorted(layers)} are not within 0..{depth - 1}')
        if unscored := sorted({*plan.scores} & plan.skip_layers):
            raise ValueError(f'scores are requested from skipped layers {unscored}')
        if plan.cache is not None and plan.bucket:
            raise ValueError('a plan has either a cache or a bucket, not both')
        if plan.cache is not None and plan.cache.length != n:
            raise ValueError(f'the cache has {plan.cache.length} slots, the sequence {n} tokens')


def side_product(
    q: Tensor,
    k: Tensor,
    request: ScoreRequest,
    ids: Tensor,
    key_ids: Tensor,
    mask: Tensor | None = None,
) -> LayerScores:
    """Explicit attention of a few rows, beside the fused kernel.

    Args:
        q: rotated queries of the live rows [heads, m, head_dim]; more rows are ignored.
        k: rotated attended keys [heads, keys, head_dim]; more rows are ignored.
        request: the rows and columns wanted.
        ids: absolute ids of the live rows, ascending, int64 [m].
        key_ids: absolute ids of the keys, ascending, int64 [keys].
        mask: bool [keys], False hides a key; None shows all.
    """
    k = k[:, : len(key_ids)]
    rows, columns = (_as_ids(r, ids.device) for r in (request.rows, request.columns))
    row_at, row_present = _locate(rows, ids)
    column_at, column_present = _locate(columns, key_ids)
    logits = q[:, row_at].float() @ k.float().transpose(1, 2) / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    probs = logits.softmax(-1)  # [heads, rows, keys]
    entropy = None
    if request.entropy:
        each = torch.special.entr(probs).sum(-1).mean(0)  # [rows]
        entropy = each.masked_fill(~row_present, 0.0).sum() / row_present.sum()
    present = row_present[:, None] & column_present
    picked = probs[..., column_at].masked_fill(~present, -torch.inf)
    return LayerScores(picked, rows, columns, row_present, column_present, entropy)


def check_kept(kept: Tensor, ids: Tensor, layout: TokenLayout) -> None:
    """Check a selector's answer; values only on the CPU, where looking costs no device sync.

    Raises:
        ValueError: not int64, not ascending, not live, or a protected token is missing.
    """
    if kept.dtype != torch.int64 or kept.ndim != 1 or kept.device != ids.device:
        raise ValueError('a selector returns absolute ids as a vector of int64 on its device')
    if len(kept) > len(ids) or len(kept) < layout.length - layout.n_visual:
        raise ValueError(f'a selector returned {len(kept)} ids of {len(ids)} live tokens')
    if kept.device.type != 'cpu':
        return
    if bool((kept.diff() <= 0).any()):
        raise ValueError('a selector must return ascending ids without duplicates')
    if not bool(torch.isin(kept, ids).all()):
        raise ValueError('a selector returned ids that are not live')
    if int((kept >= layout.proprio).sum()) + int(kept[0] == 0) != layout.length - layout.n_visual:
        raise ValueError('a selector dropped a protected token')


def _as_ids(ids: range | Tensor, device: torch.device) -> Tensor:
    if isinstance(ids, range):
        return torch.arange(ids.start, ids.stop, ids.step, device=device)
    return ids.to(device)


def _locate(wanted: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Row of each wanted id among ascending ids (any row if absent), and whether it is there."""
    at = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
    return at, ids[at] == wanted
