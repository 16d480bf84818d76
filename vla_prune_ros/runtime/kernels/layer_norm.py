# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scaled residual sum and layer norm of the vision towers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def add_scale_layer_norm_kernel(
    x, delta, scale, weight, bias, out, x_row, width, eps,
    HAS_DELTA: tl.constexpr, HAS_SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row; the sum goes into delta."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * x_row + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        place = delta + row * width + at
        change = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        if HAS_SCALE:
            change *= tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
        rounded = (value + change).to(delta.dtype.element_ty)
        tl.store(place, rounded, mask=inside)
        value = rounded.to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value, 0) / width, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    result = centred / deviation * factor + shift
    tl.store(out + row * width + at, result.to(out.dtype.element_ty), mask=inside)


def add_scale_layer_norm(
    x: Tensor,
    delta: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """Norm of x + scale * delta; `delta` becomes the sum, x stays.

    Args:
        x: [m, D], rows may be apart.
        delta: [m, D], or None for zeros.
        scale: [D] (LayerScale), or None for ones.
        weight: [D].
        bias: [D].
        eps: added to the variance.

    Returns:
        [m, D], rounded once.
    """
    rows, width = x.shape
    out = x.new_empty(rows, width)
    add_scale_layer_norm_kernel[(rows,)](
        x, x if delta is None else delta, weight if scale is None else scale, weight, bias, out,
        x.stride(0), width, eps, HAS_DELTA=delta is not None, HAS_SCALE=scale is not None,
        BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return out
