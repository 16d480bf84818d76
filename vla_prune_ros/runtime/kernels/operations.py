# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The operations between products as kernels; what a kernel cannot do, torch does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vla_prune_ros.runtime.kernels.attention import attention
from vla_prune_ros.runtime.kernels.compact import compact
from vla_prune_ros.runtime.kernels.gelu import bias_gelu
from vla_prune_ros.runtime.kernels.layer_norm import add_scale_layer_norm
from vla_prune_ros.runtime.kernels.linear_small import linear_small
from vla_prune_ros.runtime.kernels.mark_best import mark_best
from vla_prune_ros.runtime.kernels.rms_norm import add_rms_norm
from vla_prune_ros.runtime.kernels.rope import rope
from vla_prune_ros.runtime.kernels.small import add_rms_norm_small, rescaled, swiglu_small
from vla_prune_ros.runtime.kernels.swiglu import swiglu
from vla_prune_ros.runtime.quantization import Quantised, SmallLinear
from vla_prune_ros.vla.operations import Operations

_FEW = 64  # rows up to which 8 bits are multiplied here: one block of them, and weights read once


class TritonOperations(Operations):
    """See `Operations`; gradients and batches of several rotary tables go to torch."""

    name = 'triton'

    def add_norm(
        self, x: Tensor, delta: Tensor | None, norm: nn.Module, to: nn.Module | None = None
    ) -> tuple[Tensor, Any]:
        """See `Operations.add_norm`."""
        if torch.is_grad_enabled() or _watched(norm):
            return super().add_norm(x, delta, norm)
        if isinstance(to, SmallLinear):
            small = add_rms_norm_small(_rows(x), _place(delta), norm.weight, norm.eps, to.states)
            return (x if delta is None else delta), Quantised(*small, x.dtype, x.shape)
        normed = add_rms_norm(_rows(x), _place(delta), norm.weight, norm.eps).view(x.shape)
        return (x if delta is None else delta), normed

    def add_layer_norm(
        self,
        x: Tensor,
        delta: Tensor | None,
        sum_of: nn.Module | None,
        norm: nn.LayerNorm,
    ) -> tuple[Tensor, Tensor]:
        """See `Operations.add_layer_norm`."""
        if torch.is_grad_enabled() or type(norm) is not nn.LayerNorm:
            return super().add_layer_norm(x, delta, sum_of, norm)
        normed = add_scale_layer_norm(
            _rows(x), _place(delta), getattr(sum_of, 'scale_factor', None), norm.weight, norm.bias,
            norm.eps,
        )  # fmt: skip
        return (x if delta is None else delta), normed.view(x.shape)

    def rotated(self, qkv: Tensor, table: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `Operations.rotated`."""
        if torch.is_grad_enabled() or len(qkv) != 1:
            return super().rotated(qkv, table, heads)
        rope(_place(qkv), table, heads)
        parts = qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1], parts[2]

    def swiglu(self, gate_up: Tensor, to: nn.Module) -> Any:
        """See `Operations.swiglu`."""
        if torch.is_grad_enabled():
            return super().swiglu(gate_up, to)
        if isinstance(to, SmallLinear):
            shape = torch.Size((*gate_up.shape[:-1], gate_up.shape[-1] // 2))
            return Quantised(*swiglu_small(_rows(gate_up), to.states), gate_up.dtype, shape)
        return swiglu(_rows(gate_up)).view(*gate_up.shape[:-1], -1)

    def linear_gelu(self, x: Tensor, linear: nn.Module) -> Tensor:
        """See `Operations.linear_gelu`."""
        if torch.is_grad_enabled() or type(linear) is not nn.Linear or linear.bias is None:
            return super().linear_gelu(x, linear)
        product = nn.functional.linear(x, linear.weight)
        return bias_gelu(_place(product), linear.bias).view(product.shape)

    def rescaled(self, whole: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Operations.rescaled`."""
        return rescaled(whole, rows, columns, dtype)

    def linear_small(
        self, values: Tensor, rows: Tensor, weight: Tensor, columns: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """See `Operations.linear_small`; many rows in 8 bits are for the library."""
        if weight.dtype != torch.uint8 and len(values) > _FEW:
            return super().linear_small(values, rows, weight, columns, dtype)
        return linear_small(values, rows, weight, columns, dtype)

    def mark_best(self, values: Tensor, counts: Sequence[int]) -> Tensor:
        """See `Operations.mark_best`."""
        return mark_best(values, counts)

    def compact(
        self, keep: Tensor, x: Tensor, ids: Tensor, out_ids: Tensor, count: Tensor, filling: int
    ) -> Tensor:
        """See `Operations.compact`."""
        return compact(keep, x, ids, out_ids, count, filling)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, live: Tensor | None
    ) -> Tensor:
        """See `Operations.attention`; keys are cut by the count where there is one."""
        if live is None or torch.is_grad_enabled() or len(q) != 1:
            return super().attention(q, k, v, bias, live)
        return attention(q[0], k[0], v[0], live)[None]


def _rows(x: Tensor) -> Tensor:
    """[B, m, D] as [B m, D] to read; rows of one sample may be apart, numbers of a row not."""
    x = x[0] if len(x) == 1 else x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def _place(x: Tensor | None) -> Tensor | None:
    """[B, m, D] as [B m, D] to be written; the output of a product, which nobody else has."""
    return None if x is None else x.view(-1, x.shape[-1])


def _watched(module: nn.Module) -> bool:
    """Whether somebody wants to see what enters a module."""
    return bool(module._forward_pre_hooks or module._forward_hooks)
