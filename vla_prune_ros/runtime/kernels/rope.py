# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding of q and k where a packed product left them."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rope_kernel(
    qkv, table, row_size, table_row, table_part, heads, half,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One program per row and per q or k; sines are read where they are positive."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (column < half)
    angle = table + row * table_row + column
    cos = tl.load(angle, mask=column < half, other=0.0).to(tl.float32)
    sin = tl.load(angle + table_part + half, mask=column < half, other=0.0).to(tl.float32)
    place = qkv + row * row_size + (part * heads + head) * 2 * half + column
    low = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    kind = qkv.dtype.element_ty
    tl.store(place, (low * cos - high * sin).to(kind), mask=inside)
    tl.store(place + half, (high * cos + low * sin).to(kind), mask=inside)


def rope(qkv: Tensor, table: Tensor, heads: int) -> None:
    """Rotate q and k in place.

    Args:
        qkv: [m, 3 * heads * head_dim], contiguous.
        table: [2, 1, 1, m, head_dim], see `vla.decoder.rope_table`; rows may be apart.
        heads: number of heads.
    """
    rows, width = qkv.shape
    half = width // (6 * heads)
    rope_kernel[(rows, 2)](
        qkv, table, width, table.stride(3), table.stride(0), heads, half,
        HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(half), num_warps=4,
    )  # fmt: skip
