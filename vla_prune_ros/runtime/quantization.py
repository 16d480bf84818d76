# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Decoder weights in 8 bits: one scale per row of a weight, one per row of states at run time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.operations import TORCH, Operations

QUANTIZATIONS = ('none', 'int8', 'fp8')
# Type and largest number of a kind.
KINDS = {'int8': (torch.int8, 127.0), 'fp8': (torch.float8_e4m3fn, 448.0)}
_TINY = 1e-12


class Quantised(NamedTuple):
    """States in 8 bits.

    Attributes:
        values: [m, D] in 8 bits.
        scales: float32 [m, 1]; the states are values times scales.
        dtype: of the states.
        shape: of the states, [..., D].
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype
    shape: torch.Size


def quantised(x: Tensor, kind: str) -> Quantised:
    """Round each row to 8 bits, its largest number to the largest there is; x [..., D]."""
    dtype, most = KINDS[kind]
    rows = x.reshape(-1, x.shape[-1]).float()
    scales = rows.abs().amax(1, keepdim=True).clamp_(min=_TINY) / most
    rows = rows / scales
    rows = rows.round_() if dtype == torch.int8 else rows.clamp_(-most, most)
    return Quantised(rows.to(dtype), scales, x.dtype, x.shape)


class SmallLinear(nn.Module):
    """A layer without bias whose product is one of 8-bit numbers.

    Attributes:
        kind: int8 or fp8.
        weight: in 8 bits, [out, in].
        scales: float32 [out, 1].
    """

    ops: Operations = TORCH

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        weight = quantised(linear.weight.detach(), kind)
        self.kind = kind
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer('weight', weight.values)
        self.register_buffer('scales', weight.scales)

    def forward(self, x: Tensor | Quantised) -> Tensor:
        """Product of states [..., in], which may be quantised already; [..., out]."""
        if isinstance(x, Tensor):
            x = quantised(x, self.kind)
        if self.kind == 'fp8':
            out = torch._scaled_mm(
                x.values, self.weight.t(), x.scales, self.scales.t(), out_dtype=x.dtype
            )
        else:
            out = self.ops.rescaled(self._whole(x.values), x.scales, self.scales, x.dtype)
        return out.view(*x.shape[:-1], -1)

    def _whole(self, values: Tensor) -> Tensor:
        """The product of whole numbers, int32."""
        missing = 17 - len(values) if values.is_cuda else 0  # cuBLAS wants more than 16 rows
        if missing > 0:
            padded = nn.functional.pad(values, (0, 0, 0, missing))
            return torch._int_mm(padded, self.weight.t())[:-missing]
        return torch._int_mm(values, self.weight.t())


def quantize(model: OpenVLAOFT, kind: str) -> None:
    """Replace the weights of the decoder layers, in place. Towers, projectors and head stay.

    A layer at a time, so that no more than one layer is there twice.

    Args:
        model: in its final place and type; afterwards it cannot be saved or trained.
        kind: none; int8: weights and activations in 8 bit integers, the latter by row at run time;
            fp8: the same in float8 e4m3, on GPUs from compute capability 8.9 on.

    Raises:
        ValueError: unknown kind, or the device cannot do it.
    """
    if kind not in QUANTIZATIONS:
        raise ValueError(f'unknown quantization {kind!r}; valid: {", ".join(QUANTIZATIONS)}')
    if kind == 'none':
        return
    device = model.device
    if kind == 'fp8':
        if device.type != 'cuda' or torch.cuda.get_device_capability(device) < (8, 9):
            raise ValueError(
                f'quantization fp8 needs a GPU of compute capability 8.9 or higher, not {device}; '
                'use int8 or none'
            )
        if model.dtype != torch.bfloat16:
            raise ValueError('quantization fp8 needs dtype bfloat16')
    if not model.decoder.packed:
        model.decoder.pack()
    for layer in model.decoder.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in [*block.named_children()]:
                if type(linear) is nn.Linear and _fits(linear, kind, device):
                    setattr(block, name, SmallLinear(linear, kind))
        if device.type == 'cuda':
            torch.cuda.empty_cache()  # the wide weights, which nothing else fits into


def _fits(linear: nn.Linear, kind: str, device: torch.device) -> bool:
    """Whether the libraries multiply such sizes; others stay wide."""
    unit = 16 if kind == 'fp8' else 8 if device.type == 'cuda' else 1
    return linear.in_features % unit == linear.out_features % unit == 0
