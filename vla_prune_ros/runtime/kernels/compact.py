# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rows that stay, moved together; how many they are stays on the device."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, uint8


@triton.jit(do_not_specialize=['filling'])
def compact_kernel(
    keep, x, ids, out, out_ids, count, rows, capacity, filling, x_row, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row of the result, which looks for its source; the first one counts."""
    to = tl.program_id(0)
    at = tl.arange(0, ROWS)
    kept = tl.load(keep + at, mask=at < rows, other=0).to(tl.int32)
    total = tl.minimum(tl.sum(kept, 0), capacity)
    mine = (kept > 0) & (tl.cumsum(kept, 0) == to + 1)
    source = tl.sum(tl.where(mine, at, 0), 0).to(tl.int64)
    there = to < total
    column = tl.arange(0, BLOCK)
    inside = column < width
    row = tl.load(x + source * x_row + column, mask=inside & there, other=0.0)
    tl.store(out + to.to(tl.int64) * width + column, row, mask=inside)
    tl.store(out_ids + to, tl.where(there, tl.load(ids + source), filling))
    tl.store(count, total, mask=to == 0)


def compact(
    keep: Tensor, x: Tensor, ids: Tensor, out_ids: Tensor, count: Tensor, filling: int
) -> Tensor:
    """See `vla.operations.Operations.compact`; numbers of a row are contiguous."""
    (rows, width), capacity = x.shape, len(out_ids)
    out = x.new_empty(capacity, width)
    block = triton.next_power_of_2(width)
    compact_kernel[(capacity,)](
        keep.view(uint8), x, ids, out, out_ids, count, rows, capacity, filling, x.stride(0), width,
        ROWS=triton.next_power_of_2(rows), BLOCK=block, num_warps=8 if block >= 2048 else 4,
    )  # fmt: skip
    return out
