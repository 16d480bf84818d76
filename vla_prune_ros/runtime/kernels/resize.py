# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Resize and crop of `vla.pictures` on the device, bit for bit.

Each product and each sum is rounded by itself: the kernels are launched without fused
multiply-adds, and rows come before columns in the resize, columns before rows in the crop.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, float32

_BLOCK = 256


@triton.jit
def filter_kernel(
    x, at, weights, out, lines, cells, before, after, taps, x_line, x_sample, out_line, out_sample,
    ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weighted sums of samples along one axis; a cell is a run of neighbours, a line the rest."""
    view = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = lane < lines * after * cells
    cell, place = lane % cells, lane // cells
    line, to = place // after, place % after
    start = x + view * lines * before * cells + line * x_line + cell
    total = tl.zeros([BLOCK], tl.float32)
    for tap in range(taps):
        sample = tl.load(at + tap * after + to, mask=here, other=0)
        weight = tl.load(weights + tap * after + to, mask=here, other=0.0)
        value = tl.load(start + sample * x_sample, mask=here, other=0).to(tl.float32)
        total += value * weight
    if ROUND:  # to even; then a byte
        total = (total + 12582912.0) - 12582912.0
        total = tl.minimum(tl.maximum(total, 0.0), 255.0)
    spot = out + view * lines * after * cells + line * out_line + to * out_sample + cell
    tl.store(spot, total.to(out.dtype.element_ty), mask=here)


@triton.jit
def crop_kernel(x, low, high, fraction, out, size, BLOCK: tl.constexpr):
    """Centre crop of uint8 pictures, bilinear, columns first, then truncation."""
    view = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = lane < size * size * 3
    channel, place = lane % 3, lane // 3
    row, column = place // size, place % size
    left, right = tl.load(low + column, here, 0), tl.load(high + column, here, 0)
    top, bottom = tl.load(low + row, here, 0), tl.load(high + row, here, 0)
    across, down = tl.load(fraction + column, here, 0.0), tl.load(fraction + row, here, 0.0)
    picture = x + view * size * size * 3 + channel
    upper = _between(picture, top, left, right, across, size, here)
    lower = _between(picture, bottom, left, right, across, size, here)
    value = upper + (lower - upper) * down
    value = tl.minimum(tl.maximum(value, 0.0), 1.0) * 255.5
    tl.store(out + view * size * size * 3 + lane, value.to(tl.uint8), mask=here)


@triton.jit
def _between(picture, row, left, right, across, size, here):
    scale: tl.constexpr = 0.003921568859368563  # float32 of 1 / 255
    first = tl.load(picture + (row * size + left) * 3, here, 0).to(tl.float32) * scale
    second = tl.load(picture + (row * size + right) * 3, here, 0).to(tl.float32) * scale
    return first + (second - first) * across


def resize(x: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Resize pictures, rows first.

    Args:
        x: uint8 [V, H, W, 3], contiguous.
        rows: samples int64 and weights float32 [taps, S] for H, see `pictures.lanczos_table`.
        columns: the same for W.

    Returns:
        uint8 [V, S, S, 3].
    """
    views, height, width, _ = x.shape
    size = rows[0].shape[1]
    half = x.new_empty(views, size, width, 3, dtype=float32)
    out = x.new_empty(views, size, size, 3)
    filter_kernel[(triton.cdiv(size * width * 3, _BLOCK), views)](
        x, *rows, half, 1, width * 3, height, size, len(rows[0]), 0, width * 3, 0, width * 3,
        ROUND=False, BLOCK=_BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    filter_kernel[(triton.cdiv(size * size * 3, _BLOCK), views)](
        half, *columns, out, size, 3, width, size, len(columns[0]), width * 3, 3, size * 3, 3,
        ROUND=True, BLOCK=_BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def crop(x: Tensor, low: Tensor, high: Tensor, fraction: Tensor) -> Tensor:
    """Crop 90 % of the area and scale back; uint8 [V, S, S, 3] to the same.

    Args:
        x: contiguous.
        low: int64 [S], see `pictures.crop_table`.
        high: int64 [S].
        fraction: float32 [S].
    """
    size, out = x.shape[1], x.new_empty(x.shape)
    crop_kernel[(triton.cdiv(size * size * 3, _BLOCK), len(x))](
        x, low, high, fraction, out, size, BLOCK=_BLOCK, enable_fp_fusion=False
    )
    return out
