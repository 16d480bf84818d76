# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Residual sum and root-mean-square norm in one pass over the rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def normed_row(x, delta, weight, row, at, inside, x_row, width, eps, HAS_DELTA: tl.constexpr):
    """Norm of one row of x + delta in float32; the sum goes into delta."""
    value = tl.load(x + row * x_row + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        place = delta + row * width + at
        value += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(delta.dtype.element_ty)
        tl.store(place, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    return value * scale * factor


@triton.jit
def add_rms_norm_kernel(
    x, delta, weight, out, x_row, width, eps, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr
):
    """One program per row; the sum goes into delta."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    result = normed_row(x, delta, weight, row, at, inside, x_row, width, eps, HAS_DELTA)
    tl.store(out + row * width + at, result.to(out.dtype.element_ty), mask=inside)


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Norm of x + delta; `delta` becomes the sum, x stays.

    Args:
        x: [m, D], rows may be apart.
        delta: [m, D], or None for zeros.
        weight: [D].
        eps: added to the mean square.

    Returns:
        [m, D], rounded once.
    """
    rows, width = x.shape
    out = x.new_empty(rows, width)
    block = triton.next_power_of_2(width)
    add_rms_norm_kernel[(rows,)](
        x, x if delta is None else delta, weight, out, x.stride(0), width, eps,
        HAS_DELTA=delta is not None, BLOCK=block, num_warps=8 if block >= 2048 else 4,
    )  # fmt: skip
    return out
