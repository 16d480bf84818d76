# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Attention over the first keys, whose number is on the device."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor, float32

_ROWS, _KEYS = 64, 64


@triton.jit
def attention_kernel(
    q, k, v, out, count, q_head, q_row, k_head, k_row, v_head, v_row, out_head, out_row, rows,
    width, scale, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per head and block of rows; rows behind the count become zeros."""
    first, head = tl.program_id(0) * ROWS, tl.program_id(1).to(tl.int64)
    live = tl.load(count)
    row, column = first + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    there = (row < rows)[:, None] & (column < width)[None, :]
    place = q + head * q_head + row[:, None].to(tl.int64) * q_row + column[None, :]
    query = tl.load(place, mask=there, other=0.0)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    highest = tl.full([ROWS], -1e30, tl.float32)
    for start in range(0, tl.where(first < live, live, 0), KEYS):
        at = start + tl.arange(0, KEYS)
        shown = at < live
        both = shown[:, None] & (column < width)[None, :]
        far = at[:, None].to(tl.int64)
        key = tl.load(k + head * k_head + far * k_row + column[None, :], mask=both, other=0.0)
        value = tl.load(v + head * v_head + far * v_row + column[None, :], mask=both, other=0.0)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        logits = tl.where(shown[None, :], logits, -1e30)
        now = tl.maximum(highest, tl.max(logits, 1))
        shrink = tl.exp2(highest - now)
        probability = tl.exp2(logits - now[:, None])
        total = total * shrink[:, None]
        total += tl.dot(probability.to(value.dtype), value, input_precision=PRECISION)
        weight = weight * shrink + tl.sum(probability, 1)
        highest = now
    result = tl.where((row < live)[:, None], total / tl.maximum(weight, 1e-30)[:, None], 0.0)
    place = out + head * out_head + row[:, None].to(tl.int64) * out_row + column[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=there)


def attention(q: Tensor, k: Tensor, v: Tensor, count: Tensor) -> Tensor:
    """Softmax attention of all rows over the keys before the count; softmax in float32.

    Args:
        q: [heads, m, head_dim], the last dimension contiguous.
        k: [heads, keys, head_dim], the same.
        v: of the shape of k, the same.
        count: int32 [1], keys and rows that are live, at most m and at least 1.

    Returns:
        [m, heads * head_dim]; zeros in the rows behind the count, whatever these held.
    """
    heads, rows, width = q.shape
    out = q.new_empty(rows, heads, width)
    attention_kernel[(triton.cdiv(rows, _ROWS), heads)](
        q, k, v, out, count, q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0),
        v.stride(1), width, heads * width, rows, width, math.log2(math.e) / math.sqrt(width),
        ROWS=_ROWS, KEYS=_KEYS, WIDTH=max(16, triton.next_power_of_2(width)),
        PRECISION='ieee' if q.dtype == float32 else 'tf32', num_warps=8, num_stages=2,
    )  # fmt: skip
    return out.view(rows, heads * width)
