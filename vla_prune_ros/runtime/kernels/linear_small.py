# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Product of few rows in 8 bits with a weight in 8 or 4, which is read once.

Where outputs alone are too few programs for a GPU, the inner dimension is split, and the program
that arrives last adds the parts up, in their order: the same sum in every run.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from vla_prune_ros.vla.operations import GROUP

_OUT = 64  # outputs of a program
_TILES = 1 << 14  # most programs of which each waits for its parts


@triton.jit(do_not_specialize=['m', 'share'])
def linear_small_kernel(
    x, rows, weight, columns, out, parts, arrived, m, n, k, groups, share,
    BITS: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """One program per block of rows, of outputs, and share of the groups along the input."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :]
    to = tl.program_id(1) * OUT + tl.arange(0, OUT)[:, None]
    split, half = tl.program_id(2), tl.arange(0, HALF)
    kind: tl.constexpr = tl.float32 if BITS == 4 else tl.int32
    total = tl.zeros([OUT, ROWS], kind)
    for group in range(split * share, tl.minimum(split * share + share, groups)):
        at = 2 * HALF * group + half
        state = x + row * k + at[:, None]
        low_x = tl.load(state, mask=(row < m) & (at < k)[:, None], other=0)
        high_x = tl.load(state + HALF, mask=(row < m) & (at + HALF < k)[:, None], other=0)
        if BITS == 4:
            both = tl.load(
                weight + (to * groups + group) * HALF + half[None, :], mask=to < n, other=0
            )
            low, high = (both & 15).to(tl.int8) - 8, (both >> 4).to(tl.int8) - 8
            whole = tl.dot(low, low_x, out_dtype=tl.int32)
            whole = tl.dot(high, high_x, whole, out_dtype=tl.int32)
            scale = tl.load(columns + to * groups + group, mask=to < n, other=0.0)
            total += whole.to(tl.float32) * scale.to(tl.float32)
        else:
            place = weight + to * k + at[None, :]
            low = tl.load(place, mask=(to < n) & (at < k)[None, :], other=0)
            high = tl.load(place + HALF, mask=(to < n) & (at + HALF < k)[None, :], other=0)
            total = tl.dot(low, low_x, total, out_dtype=tl.int32)
            total = tl.dot(high, high_x, total, out_dtype=tl.int32)
    inside = (row < m) & (to < n)
    spot = row * n + to
    if SPLITS == 1:
        _finish(total, rows, columns, out, row, to, spot, m, n, inside, BITS)
    else:
        tl.store(parts + split * m * n + spot, total, mask=inside)
        tl.debug_barrier()  # all of it before this program says that it has arrived
        counter = arrived + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem='acq_rel') == SPLITS - 1:
            total = tl.zeros([OUT, ROWS], kind)
            for part in range(SPLITS):
                total += tl.load(parts + part * m * n + spot, mask=inside, cache_modifier='.cg')
            _finish(total, rows, columns, out, row, to, spot, m, n, inside, BITS)
            tl.store(counter, 0)


@triton.jit
def _finish(total, rows, columns, out, row, to, spot, m, n, inside, BITS: tl.constexpr):
    """Scale sums, in the order of `rescaled`, and leave them."""
    result = total.to(tl.float32) * tl.load(rows + row, mask=row < m, other=0.0)
    if BITS == 8:
        result = result * tl.load(columns + to, mask=to < n, other=0.0)
    tl.store(out + spot, result.to(out.dtype.element_ty), mask=inside)


def linear_small(
    x: Tensor,
    rows: Tensor,
    weight: Tensor,
    columns: Tensor,
    dtype: torch.dtype,
    splits: int | None = None,
) -> Tensor:
    """See `vla.operations.Operations.linear_small`; all contiguous.

    Args:
        x: int8 [m, K].
        rows: float32 [m, 1].
        weight: int8 [N, K], or uint8 [N, G * GROUP / 2].
        columns: float32 [N, 1], or [N, G].
        dtype: of the result.
        splits: parts of the inner dimension; default: as many as fill the device.
    """
    (m, k), n = x.shape, len(weight)
    bits, groups = 4 if weight.dtype == torch.uint8 else 8, triton.cdiv(k, GROUP)
    block = 128 if m > 256 else min(64, max(16, triton.next_power_of_2(m)))
    tiles = triton.cdiv(m, block), triton.cdiv(n, _OUT)
    programs = tiles[0] * tiles[1]
    if splits is None:
        splits = min(8, max(1, 2 * _processors(x.device) // programs), max(1, groups // 4))
    share = triton.cdiv(groups, splits)
    splits = triton.cdiv(groups, share) if programs <= _TILES else 1
    out = x.new_empty(m, n, dtype=dtype)
    kind = torch.float32 if bits == 4 else torch.int32
    parts = x.new_empty(splits, m, n, dtype=kind) if splits > 1 else out
    linear_small_kernel[(*tiles, splits)](
        x, rows, weight, columns, out, parts, _arrived(x.device), m, n, k, groups,
        share if splits > 1 else groups,
        BITS=bits, SPLITS=splits, ROWS=block, OUT=_OUT, HALF=GROUP // 2, num_warps=4,
        num_stages=3,
    )  # fmt: skip
    return out


@lru_cache(maxsize=8)
def _processors(device: torch.device) -> int:
    cuda = device.type == 'cuda'
    return torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1


@lru_cache(maxsize=8)
def _arrived(device: torch.device) -> Tensor:
    """Counters, one per program with parts; each launch leaves them at 0."""
    return torch.zeros(_TILES, dtype=torch.int32, device=device)
