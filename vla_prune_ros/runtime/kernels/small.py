# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Norm and gated activation that leave 8 bits and a scale per row; see `runtime.quantization`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, dtype, float32

from vla_prune_ros.runtime.kernels.rms_norm import normed_row
from vla_prune_ros.runtime.quantization import KINDS

_BLOCK = 1024


@triton.jit
def _store_small(value, out, scales, row, at, inside, width, MOST: tl.constexpr):
    """Scale a row so that its largest number is the largest there is, and round."""
    largest = tl.maximum(tl.max(tl.abs(value), 0), 1e-12 * MOST)
    scale = largest / MOST
    value = tl.minimum(tl.maximum(value / scale, -MOST), MOST)
    if MOST == 127.0:
        value = (value + 12582912.0) - 12582912.0  # to the nearest, halves to even
    tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def add_rms_norm_small_kernel(
    x, delta, weight, out, scales, x_row, width, eps,
    HAS_DELTA: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row; the sum goes into delta."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    result = normed_row(x, delta, weight, row, at, inside, x_row, width, eps, HAS_DELTA)
    _store_small(result, out, scales, row, at, inside, width, MOST)


@triton.jit
def swiglu_small_kernel(gate_up, out, scales, width, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    _store_small(gate / (1.0 + tl.exp(-gate)) * up, out, scales, row, at, inside, width, MOST)


@triton.jit
def rescale_kernel(whole, rows, columns, out, width, BLOCK: tl.constexpr):
    """One program per row and block of columns."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(whole + row * width + at, mask=inside, other=0).to(tl.float32)
    value = value * tl.load(rows + row) * tl.load(columns + at, mask=inside, other=0.0)
    tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=inside)


def add_rms_norm_small(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, kind: str
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` whose result is quantised; [m, D] in 8 bits, float32 [m, 1]."""
    rows, width = x.shape
    type_, most = KINDS[kind]
    out = x.new_empty(rows, width, dtype=type_)
    scales = x.new_empty(rows, 1, dtype=float32)
    block = triton.next_power_of_2(width)
    add_rms_norm_small_kernel[(rows,)](
        x, x if delta is None else delta, weight, out, scales, x.stride(0), width, eps,
        HAS_DELTA=delta is not None, MOST=most, BLOCK=block, num_warps=8 if block >= 2048 else 4,
    )  # fmt: skip
    return out, scales


def swiglu_small(gate_up: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """`swiglu` whose result is quantised; [m, I] in 8 bits, float32 [m, 1]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    type_, most = KINDS[kind]
    out = gate_up.new_empty(rows, width, dtype=type_)
    scales = gate_up.new_empty(rows, 1, dtype=float32)
    block = triton.next_power_of_2(width)
    swiglu_small_kernel[(rows,)](
        gate_up, out, scales, width, MOST=most, BLOCK=block, num_warps=16 if block > 4096 else 4
    )
    return out, scales


def rescaled(whole: Tensor, rows: Tensor, columns: Tensor, kind: dtype) -> Tensor:
    """See `vla.operations.Operations.rescaled`; whole is contiguous."""
    count, width = whole.shape
    out = whole.new_empty(count, width, dtype=kind)
    rescale_kernel[(count, triton.cdiv(width, _BLOCK))](
        whole, rows, columns, out, width, BLOCK=_BLOCK, num_warps=4
    )
    return out
