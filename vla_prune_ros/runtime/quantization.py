# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Decoder weights in 8 or 4 bits, states in 8.

A scale per row of states, at run time, and one per row of a weight; in 4 bits one for each
`GROUP` neighbours along the input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.operations import GROUP, TORCH, Operations

QUANTIZATIONS = ('none', 'int8', 'fp8', 'int4')
# Type and largest number of a kind of states and of weights in 8 bits.
KINDS = {'int8': (torch.int8, 127.0), 'fp8': (torch.float8_e4m3fn, 448.0)}
_TINY = 1e-12
_TRIED = 25  # scales of a group in 4 bits, from the whole range down to half of it
_PART = 1024  # rows of a weight that are converted to 4 bits at a time: little memory beside it


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


def quantised_to_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round the groups of a weight to the numbers -8..7, each with the best of some scales.

    The number farthest from 0 becomes -8 or, with a smaller scale, is cut off; what is left has
    the least squared error. Scales of either sign do about what zero points do with positive
    ones, and cost nothing.

    Args:
        weight: [N, K] of any floating-point type.

    Returns:
        weight: two numbers to a byte, uint8 [N, G * GROUP / 2], see `vla.operations.halves`.
        scales: bfloat16 [N, G].
    """
    parts = [_part_in_4_bits(part) for part in weight.split(_PART)]
    packed, scales = zip(*parts, strict=True)
    return torch.cat(packed), torch.cat(scales)


def small_weight(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Weight and scales of a `SmallLinear`; rows are independent of each other."""
    return quantised_to_4_bits(weight) if kind == 'int4' else quantised(weight, kind)[:2]


def _part_in_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    missing = -weight.shape[1] % GROUP
    groups = nn.functional.pad(weight.float(), (0, missing)).unflatten(1, (-1, GROUP))
    farthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    farthest = farthest.where(farthest.abs() > _TINY, _TINY)
    best = least = torch.full_like(farthest, torch.inf)
    for tried in range(_TRIED):
        scales = _held(farthest * (1 - 0.5 * tried / (_TRIED - 1)))
        numbers = (groups / scales).round_().clamp_(-8, 7)
        error = numbers.mul_(scales).sub_(groups).square_().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    numbers = (groups / best).round_().clamp_(-8, 7)
    low, high = numbers.add_(8).to(torch.uint8).chunk(2, -1)
    return (low | (high << 4)).flatten(1), best[..., 0].bfloat16()


def _held(scales: Tensor) -> Tensor:
    """Scales as they are stored, 8 bits of precision with the range of float32."""
    return scales.bfloat16().float()


class SmallLinear(nn.Module):
    """A layer without bias whose product is one of small numbers.

    Attributes:
        kind: int8, fp8 or int4.
        states: kind of the states that it multiplies.
        weight: in 8 bits, [out, in]; in 4, see `quantised_to_4_bits`.
        scales: float32 [out, 1]; in 4 bits bfloat16 [out, groups].
    """

    ops: Operations = TORCH

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        self.kind, self.states = kind, 'fp8' if kind == 'fp8' else 'int8'
        self.in_features, self.out_features = linear.in_features, linear.out_features
        wide = linear.weight.detach()
        weight, scales = small_weight(wide, kind)
        self.register_buffer('weight', weight)
        self.register_buffer('scales', scales)

    def forward(self, x: Tensor | Quantised) -> Tensor:
        """Product of states [..., in], which may be quantised already; [..., out]."""
        if isinstance(x, Tensor):
            x = quantised(x, self.states)
        if self.kind != 'fp8':
            out = self.ops.linear_small(x.values, x.scales, self.weight, self.scales, x.dtype)
        elif x.values.is_cuda:
            out = torch._scaled_mm(
                x.values, self.weight.t(), x.scales, self.scales.t(), out_dtype=x.dtype
            )
        else:  # the same numbers, for checks: in float32 their products are exact
            out = x.values.float() @ self.weight.float().t()
            out = out.mul_(x.scales).mul_(self.scales.t()).to(x.dtype)
        return out.view(*x.shape[:-1], -1)


def check_kind(kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Whether a model on a device, in a type, can have such weights; see `quantize`.

    Raises:
        ValueError: unknown kind, or the device cannot do it.
    """
    if kind not in QUANTIZATIONS:
        raise ValueError(f'unknown quantization {kind!r}; valid: {", ".join(QUANTIZATIONS)}')
    if kind == 'fp8' and device.type == 'cuda':
        if torch.cuda.get_device_capability(device) < (8, 9):
            raise ValueError(
                'quantization fp8 needs compute capability 8.9 or higher on a GPU; use int8'
            )
        if dtype != torch.bfloat16:
            raise ValueError('quantization fp8 needs dtype bfloat16 on a GPU')


def quantize(model: OpenVLAOFT, kind: str) -> None:
    """Replace the weights of the decoder layers, in place. Towers, projectors and head stay.

    A layer at a time, so that no more than one layer is there twice; what was loaded so already
    (see `loading`) stays as it is.

    Args:
        model: in its final place and type; afterwards it cannot be saved or trained.
        kind: none; int8: weights and activations in 8 bit integers, the latter by row at run time;
            fp8: the same in float8 e4m3, on GPUs from compute capability 8.9 on, on a CPU for
            checks; int4: weights in 4 bit integers by groups, activations as with int8.

    Raises:
        ValueError: unknown kind, or the device cannot do it.
    """
    check_kind(kind, model.device, model.dtype)
    if kind == 'none':
        return
    device = model.device
    for layer in model.decoder.layers:
        if not layer.packed:
            layer.pack()
        for block in (layer.self_attn, layer.mlp):
            for name, linear in [*block.named_children()]:
                if type(linear) is nn.Linear and fits(linear, kind, device):
                    setattr(block, name, SmallLinear(linear, kind))
        if device.type == 'cuda':
            torch.cuda.empty_cache()  # the wide weights, which nothing else fits into


def fits(linear: nn.Linear, kind: str, device: torch.device) -> bool:
    """Whether the libraries multiply such sizes; others stay wide."""
    unit = 16 if kind == 'fp8' else 8 if kind == 'int8' and device.type == 'cuda' else 1
    return linear.in_features % unit == linear.out_features % unit == 0
