# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What happens between the matrix products of a layer, in torch: the place of faster versions.

Residual sums travel as a pair: a layer hands `(x, delta)` to the next one, whose norm adds them,
so that a sum and a norm can be one pass over memory. Modules call the operations of their `ops`;
`runtime.kernels` has the same in Triton. Only inference uses what is here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GROUP = 128  # neighbours along the input that share a scale, in 4 bits


class Operations:
    """Torch as it stands; the result is that of the modules, bit for bit.

    Attributes:
        name: for statistics.
    """

    name = 'torch'

    def add_norm(
        self, x: Tensor, delta: Tensor | None, norm: nn.Module, to: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add a delta, whose memory the sum may take, and norm it.

        Args:
            x: states [B, m, D]; they stay as they are.
            delta: [B, m, D], or None for zeros.
            norm: `RMSNorm`.
            to: the only layer that takes the norm, if there is one: may get what only it knows.

        Returns:
            The sum and its norm, both of the shape of x.
        """
        x = add(x, delta)
        return x, norm(x)

    def add_layer_norm(
        self,
        x: Tensor,
        delta: Tensor | None,
        sum_of: nn.Module | None,
        norm: nn.LayerNorm,
    ) -> tuple[Tensor, Tensor]:
        """The same with a layer norm and a sum that may scale its delta.

        Args:
            x: states [B, m, D]; they stay as they are.
            delta: [B, m, D], or None for zeros.
            sum_of: adds them up; a `scale_factor` [D] of it scales the delta. None without delta.
            norm: of the sum.
        """
        x = x if delta is None or sum_of is None else sum_of(x, delta)
        return x, norm(x)

    def rotated(self, qkv: Tensor, rope: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rotary embedding of a packed product, which may be changed in place.

        Args:
            qkv: [B, m, 3 D].
            rope: of its rows, see `decoder.rope_table`.
            heads: number of heads.

        Returns:
            q, k, v: each [B, heads, m, head_dim].
        """
        parts = qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(parts[:2], rope)  # at once; parts [3, B, heads, m, head_dim]
        return q, k, parts[2]

    def swiglu(self, gate_up: Tensor, to: nn.Module) -> Tensor:
        """silu(gate) * up of a packed product [B, m, 2 I], which may be changed; [B, m, I].

        `to`: the layer that takes it, see `add_norm`.
        """
        return gated(*gate_up.chunk(2, dim=-1))

    def linear_gelu(self, x: Tensor, linear: nn.Module) -> Tensor:
        """gelu(linear(x)), the exact one."""
        return nn.functional.gelu(linear(x))

    def rescaled(self, whole: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """Product of 8-bit numbers [m, N] int32 times float32 scales [m, 1] and [N, 1]."""
        return whole.float().mul_(rows).mul_(columns.t()).to(dtype)

    def linear_small(
        self, values: Tensor, rows: Tensor, weight: Tensor, columns: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Product of states in 8 bits and a weight in 8 or 4, in the numbers they stand for.

        Args:
            values: int8 [m, K].
            rows: float32 [m, 1]; the states are values times rows.
            weight: int8 [N, K], or uint8 [N, G * GROUP / 2] with two numbers in a byte, see
                `halves`.
            columns: scales of the weight: float32 [N, 1], or for 4 bits [N, G] of any type.
            dtype: of the result.

        Returns:
            [m, N]. With 8 bits the sums are exact and rounded as in `rescaled`.
        """
        if weight.dtype == torch.uint8:
            wide = wide_weight(weight, columns, values.shape[1])
            return (values.float() @ wide.t()).mul_(rows).to(dtype)
        missing = 17 - len(values) if values.is_cuda else 0  # cuBLAS wants more than 16 rows
        if missing > 0:
            padded = nn.functional.pad(values, (0, 0, 0, missing))
            whole = torch._int_mm(padded, weight.t())[:-missing]
        else:
            whole = torch._int_mm(values, weight.t())
        return self.rescaled(whole, rows, columns, dtype)

    def mark_best(self, values: Tensor, counts: Sequence[int]) -> Tensor:
        """Mark the best places of each view in a table, or in any of several.

        Args:
            values: [..., views, patches]; equal ones in the order of their places, -inf is never
                chosen. NaN is not either, but leaves one place less.
            counts: places wanted of each view, more than there are mean all.

        Returns:
            bool [views, patches].
        """
        order = values.argsort(dim=-1, descending=True, stable=True)
        marked = torch.zeros_like(values, dtype=torch.bool)
        for view, count in enumerate(counts):
            marked[..., view, :].scatter_(-1, order[..., view, :count], True)
        marked &= values > -torch.inf
        return marked.flatten(0, -3).any(0) if values.ndim > 2 else marked

    def compact(
        self, keep: Tensor, x: Tensor, ids: Tensor, out_ids: Tensor, count: Tensor, filling: int
    ) -> Tensor:
        """Move rows that stay to the front, in their order; no shape depends on how many stay.

        Args:
            keep: bool [n], contiguous.
            x: states [n, D].
            ids: absolute ids of the rows, int64 [n].
            out_ids: int64 [capacity], takes the ids of those that stay; what is beyond goes.
            count: int32 [1], takes how many these are.
            filling: id of the rows behind them.

        Returns:
            [capacity, D], zeros behind the rows that stay.
        """
        capacity = len(out_ids)
        front = (~keep).to(torch.uint8).argsort(stable=True)
        front = nn.functional.pad(front, (0, max(0, capacity - len(keep))))[:capacity]
        count.copy_(keep.sum(dtype=torch.int32).clamp_(max=capacity))
        behind = torch.arange(capacity, device=x.device) >= count
        out_ids.copy_(ids[front].masked_fill_(behind, filling))
        return x[front].masked_fill_(behind[:, None], 0)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, live: Tensor | None
    ) -> Tensor:
        """Softmax attention; [B, m, heads * head_dim].

        Args:
            q: [B, heads, m, head_dim].
            k: [B, heads, keys, head_dim].
            v: of the shape of k.
            bias: added to the logits, [B, 1, 1, keys], -inf hides a key; None: all are seen.
            live: int32 [1]: the bias hides all keys from that one on, and no more; else None.
        """
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).flatten(2)


def halves(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves of every group of a weight in 4 bits, numbers in -8..7.

    Args:
        weight: uint8 [N, G * GROUP / 2]. A byte holds a number of the first half of its group in
            its low bits, and the one at the same place of the second half in its high bits.

    Returns:
        Twice int8 [N, G, GROUP / 2].
    """
    both = weight.unflatten(1, (-1, GROUP // 2))
    return (both & 15).to(torch.int8) - 8, (both >> 4).to(torch.int8) - 8


def wide_weight(weight: Tensor, scales: Tensor, inner: int) -> Tensor:
    """What a weight of 4 bits stands for; float32 [N, inner], see `Operations.linear_small`."""
    whole = torch.cat(halves(weight), -1).float()
    return whole.mul_(scales.float()[..., None]).flatten(1)[:, :inner]


def add(x: Tensor, delta: Tensor | None) -> Tensor:
    """Sum of both; without gradients in the memory of the delta, which nobody else has."""
    if delta is None:
        return x
    return x + delta if torch.is_grad_enabled() else delta.add_(x)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Apply rotary embedding in the half-split layout; x [..., n, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return torch.addcmul(x * rope[0], torch.cat([high, low], dim=-1), rope[1])


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if torch.is_grad_enabled():
        return nn.functional.silu(gate) * up
    # In place: fresh memory for states this wide costs more than the arithmetic.
    return nn.functional.silu(gate, inplace=True).mul_(up)


TORCH = Operations()
_IN_USE: dict[torch.device, Operations] = {}


def use(model: nn.Module, operations: Operations) -> None:
    """Let all modules of a model that have `ops` use these, and what selects where it is."""
    for module in model.modules():
        if hasattr(type(module), 'ops'):
            module.ops = operations  # type: ignore[assignment]
    _IN_USE[next(model.parameters()).device] = operations


def in_use(device: torch.device) -> Operations:
    """What the latest model on a device uses; for those who have only its tensors."""
    return _IN_USE.get(device, TORCH)
