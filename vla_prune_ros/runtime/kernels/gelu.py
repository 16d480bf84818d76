# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bias and exact GELU behind a product."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def bias_gelu_kernel(x, bias, width, BLOCK: tl.constexpr):
    """One program per row and block of columns, in place."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    place = x + row * width + at
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    result = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    tl.store(place, result.to(x.dtype.element_ty), mask=inside)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias) in place; x [m, N] contiguous, bias [N]."""
    rows, width = x.shape
    bias_gelu_kernel[(rows, triton.cdiv(width, _BLOCK))](x, bias, width, BLOCK=_BLOCK, num_warps=4)
    return x
