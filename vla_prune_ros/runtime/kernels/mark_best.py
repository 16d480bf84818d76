# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The best of each view, marked without sorting: a place is as good as few are better."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor, bool, float32, float64, uint8

_PLACES, _OTHERS = 32, 128


@triton.jit(do_not_specialize=['count', 'first'])
def mark_best_kernel(
    values, out, count, first, tables, views, width,
    PLACES: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """One program per block of places and per view; NaN is the largest number, as in a sort."""
    view = first + tl.program_id(1)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    marked = tl.zeros([PLACES], tl.int32)
    for table in range(tables):
        line = values + (table * views + view).to(tl.int64) * width
        own = tl.load(line + place, mask=place < width, other=-float('inf'))[:, None]
        before = tl.zeros([PLACES], tl.int32)
        for start in range(0, width, OTHERS):
            at = (start + tl.arange(0, OTHERS))[None, :]
            other = tl.load(line + at, mask=at < width, other=-float('inf'))
            better = (other > own) | ((other != other) & (own == own))
            equal = (other == own) | ((other != other) & (own != own))
            better = better | (equal & (at < place[:, None]))
            before += tl.sum((better & (at < width)).to(tl.int32), 1)
        best = (before[:, None] < count) & (own > -float('inf'))
        marked = tl.maximum(marked, tl.max(best.to(tl.int32), 1))
    tl.store(out + view * width + place, marked.to(tl.uint8), mask=place < width)


def mark_best(values: Tensor, counts: Sequence[int]) -> Tensor:
    """See `vla.operations.Operations.mark_best`."""
    views, width = values.shape[-2:]
    # Narrower types hold no number that float32 does not.
    values = values.to(float64 if values.dtype == float64 else float32).contiguous()
    out = values.new_empty(views, width, dtype=bool)
    runs = [(0, views)] if len({*counts}) == 1 else [(view, 1) for view in range(views)]
    for first, many in runs:
        mark_best_kernel[(triton.cdiv(width, _PLACES), many)](
            values, out.view(uint8), counts[first], first, values.numel() // (views * width),
            views, width, PLACES=_PLACES, OTHERS=_OTHERS, num_warps=4,
        )  # fmt: skip
    return out
