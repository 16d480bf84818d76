# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The JPEG round trip in whole numbers on the device; see `vla.jpeg` for the arithmetic.

Pictures are kept as blocks of 64 numbers: those of the brightness of a picture, then those of its
two colours. A lane has one row or one column of a block, so no pass needs its neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int16

_BLOCK = 256


@triton.jit
def _fdct(d0, d1, d2, d3, d4, d5, d6, d7, FIRST: tl.constexpr):
    shift: tl.constexpr = 11 if FIRST else 15
    half: tl.constexpr = 1 << (shift - 1)
    t0, t1, t2, t3 = d0 + d7, d1 + d6, d2 + d5, d3 + d4
    t4, t5, t6, t7 = d3 - d4, d2 - d5, d1 - d6, d0 - d7
    a, b, c, d = t0 + t3, t1 + t2, t1 - t2, t0 - t3
    if FIRST:
        o0, o4 = (a + b) << 2, (a - b) << 2
    else:
        o0, o4 = (a + b + 2) >> 2, (a - b + 2) >> 2
    z1 = (c + d) * 4433
    o2, o6 = (z1 + d * 6270 + half) >> shift, (z1 - c * 15137 + half) >> shift
    z5 = (t4 + t6 + t5 + t7) * 9633
    z1, z2 = (t4 + t7) * -7373 + half, (t5 + t6) * -20995 + half
    z3, z4 = (t4 + t6) * -16069 + z5, (t5 + t7) * -3196 + z5
    o7, o5 = (t4 * 2446 + z1 + z3) >> shift, (t5 * 16819 + z2 + z4) >> shift
    o3, o1 = (t6 * 25172 + z2 + z3) >> shift, (t7 * 12299 + z1 + z4) >> shift
    return o0, o1, o2, o3, o4, o5, o6, o7


@triton.jit
def _wrap(x):
    return ((x + 32768) & 65535) - 32768


@triton.jit
def _times(x, factor: tl.constexpr):
    return (_wrap(x << 2) * (factor * 64)) >> 16


@triton.jit
def _idct(v0, v1, v2, v3, v4, v5, v6, v7):
    a, b, d = v0 + v4, v0 - v4, v2 + v6
    c = _times(v2 - v6, 362) - d
    t0, t3, t1, t2 = a + d, a - d, b + c, b - c
    z13, z10, z11, z12 = v5 + v3, v5 - v3, v1 + v7, v1 - v7
    t7 = z11 + z13
    z5 = _times(z10 + z12, 473)
    t6 = _times(z10, -413) - z10 + z5 - t7
    t5 = _times(z11 - z13, 362) - t6
    t4 = _times(z12, 277) - z5 + t5
    return t0 + t7, t1 + t6, t2 + t5, t3 - t4, t3 + t4, t2 - t5, t1 - t6, t0 - t7


@triton.jit
def brightness_kernel(rgb, blocks, height, width, across, count, all_blocks, BLOCK: tl.constexpr):
    """Brightness minus 128 of every pixel; edges repeat."""
    view = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    block, inner = lane // 64, lane % 64
    y = tl.minimum(block // across * 8 + inner // 8, height - 1)
    x = tl.minimum(block % across * 8 + inner % 8, width - 1)
    here = block < count
    pixel = rgb + (view * height * width + y * width + x) * 3
    r = tl.load(pixel, mask=here, other=0).to(tl.int32)
    g = tl.load(pixel + 1, mask=here, other=0).to(tl.int32)
    b = tl.load(pixel + 2, mask=here, other=0).to(tl.int32)
    value = ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) - 128
    tl.store(blocks + view * all_blocks * 64 + lane, value.to(tl.int16), mask=here)


@triton.jit
def _colour(rgb, y, x, width, here, red, green, blue):
    pixel = rgb + (y * width + x) * 3
    r = tl.load(pixel, mask=here, other=0).to(tl.int32)
    g = tl.load(pixel + 1, mask=here, other=0).to(tl.int32)
    b = tl.load(pixel + 2, mask=here, other=0).to(tl.int32)
    return (red * r + green * g + blue * b + 8421375) >> 16


@triton.jit
def colour_kernel(
    rgb, blocks, height, width, across, count, before, all_blocks, BLOCK: tl.constexpr
):
    """Both colours at half the size minus 128, means of four pixels; edges repeat."""
    view, kind = tl.program_id(1).to(tl.int64), tl.program_id(2)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    block, inner = lane // 64, lane % 64
    here = block < count
    y = tl.minimum(block // across * 8 + inner // 8, (height + 1) // 2 - 1)
    x = block % across * 8 + inner % 8
    top, bottom = 2 * y, tl.minimum(2 * y + 1, height - 1)
    left, right = tl.minimum(2 * x, width - 1), tl.minimum(2 * x + 1, width - 1)
    red = tl.where(kind == 0, -11059, 32768)
    green = tl.where(kind == 0, -21709, -27439)
    blue = tl.where(kind == 0, 32768, -5329)
    picture = rgb + view * height * width * 3
    total = _colour(picture, top, left, width, here, red, green, blue)
    total += _colour(picture, top, right, width, here, red, green, blue)
    total += _colour(picture, bottom, left, width, here, red, green, blue)
    total += _colour(picture, bottom, right, width, here, red, green, blue)
    value = ((total + 1 + x % 2) >> 2) - 128
    place = (view * all_blocks + before + kind * count) * 64
    tl.store(blocks + place + lane, value.to(tl.int16), mask=here)


@triton.jit
def _get(place, STEP: tl.constexpr, here):
    v0 = tl.load(place, mask=here, other=0).to(tl.int32)
    v1 = tl.load(place + STEP, mask=here, other=0).to(tl.int32)
    v2 = tl.load(place + 2 * STEP, mask=here, other=0).to(tl.int32)
    v3 = tl.load(place + 3 * STEP, mask=here, other=0).to(tl.int32)
    v4 = tl.load(place + 4 * STEP, mask=here, other=0).to(tl.int32)
    v5 = tl.load(place + 5 * STEP, mask=here, other=0).to(tl.int32)
    v6 = tl.load(place + 6 * STEP, mask=here, other=0).to(tl.int32)
    v7 = tl.load(place + 7 * STEP, mask=here, other=0).to(tl.int32)
    return v0, v1, v2, v3, v4, v5, v6, v7


@triton.jit
def _put(place, v0, v1, v2, v3, v4, v5, v6, v7, STEP: tl.constexpr, here):
    tl.store(place, v0.to(tl.int16), mask=here)
    tl.store(place + STEP, v1.to(tl.int16), mask=here)
    tl.store(place + 2 * STEP, v2.to(tl.int16), mask=here)
    tl.store(place + 3 * STEP, v3.to(tl.int16), mask=here)
    tl.store(place + 4 * STEP, v4.to(tl.int16), mask=here)
    tl.store(place + 5 * STEP, v5.to(tl.int16), mask=here)
    tl.store(place + 6 * STEP, v6.to(tl.int16), mask=here)
    tl.store(place + 7 * STEP, v7.to(tl.int16), mask=here)


@triton.jit
def rows_forward_kernel(blocks, lanes, BLOCK: tl.constexpr):
    """First pass of the transform, along rows."""
    lane = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    here = lane < lanes
    v0, v1, v2, v3, v4, v5, v6, v7 = _get(blocks + lane * 8, 1, here)
    v0, v1, v2, v3, v4, v5, v6, v7 = _fdct(v0, v1, v2, v3, v4, v5, v6, v7, True)
    _put(blocks + lane * 8, v0, v1, v2, v3, v4, v5, v6, v7, 1, here)


@triton.jit
def _coded(value, divisors, multipliers, at, here):
    """Quantise, rounding halves away from 0, and back; in 16 bits."""
    divisor = tl.load(divisors + at, mask=here, other=1)
    size = (tl.abs(value) + (divisor >> 1)) // divisor
    return _wrap(tl.where(value < 0, -size, size) * tl.load(multipliers + at, mask=here, other=0))


@triton.jit
def columns_kernel(blocks, divisors, multipliers, lanes, before, all_blocks, BLOCK: tl.constexpr):
    """Second pass, quantisation, and the first pass back, along columns."""
    lane = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    here = lane < lanes
    block, column = lane // 8, lane % 8
    at = column + tl.where(block % all_blocks < before, 0, 64)
    place = blocks + block * 64 + column
    v0, v1, v2, v3, v4, v5, v6, v7 = _get(place, 8, here)
    v0, v1, v2, v3, v4, v5, v6, v7 = _fdct(v0, v1, v2, v3, v4, v5, v6, v7, False)
    v0 = _coded(v0, divisors, multipliers, at, here)
    v1 = _coded(v1, divisors, multipliers, at + 8, here)
    v2 = _coded(v2, divisors, multipliers, at + 16, here)
    v3 = _coded(v3, divisors, multipliers, at + 24, here)
    v4 = _coded(v4, divisors, multipliers, at + 32, here)
    v5 = _coded(v5, divisors, multipliers, at + 40, here)
    v6 = _coded(v6, divisors, multipliers, at + 48, here)
    v7 = _coded(v7, divisors, multipliers, at + 56, here)
    v0, v1, v2, v3, v4, v5, v6, v7 = _idct(v0, v1, v2, v3, v4, v5, v6, v7)
    _put(place, v0, v1, v2, v3, v4, v5, v6, v7, 8, here)


@triton.jit
def _byte(x):
    return tl.minimum(tl.maximum(_wrap(x) >> 5, -128), 127) + 128


@triton.jit
def rows_back_kernel(blocks, lanes, BLOCK: tl.constexpr):
    """Second pass back, along rows, to 0..255."""
    lane = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    here = lane < lanes
    v0, v1, v2, v3, v4, v5, v6, v7 = _get(blocks + lane * 8, 1, here)
    v0, v1, v2, v3, v4, v5, v6, v7 = _idct(v0, v1, v2, v3, v4, v5, v6, v7)
    _put(
        blocks + lane * 8, _byte(v0), _byte(v1), _byte(v2), _byte(v3), _byte(v4), _byte(v5),
        _byte(v6), _byte(v7), 1, here,
    )  # fmt: skip


@triton.jit
def _at(plane, y, x, across, here):
    place = plane + (y // 8 * across + x // 8) * 64 + y % 8 * 8 + x % 8
    return tl.load(place, mask=here, other=0).to(tl.int32)


@triton.jit
def _smooth(plane, y, x, height, width, across, here):
    """Colour of a pixel from the four nearest of half the size, 9 : 3 : 3 : 1; minus 128."""
    cy, cx = y // 2, x // 2
    if width > 2:
        oy = tl.minimum(tl.maximum(cy + y % 2 * 2 - 1, 0), height - 1)
        ox = tl.minimum(tl.maximum(cx + x % 2 * 2 - 1, 0), width - 1)
        near = 3 * _at(plane, cy, cx, across, here) + _at(plane, oy, cx, across, here)
        far = 3 * _at(plane, cy, ox, across, here) + _at(plane, oy, ox, across, here)
        value = (3 * near + far + 8 - x % 2) >> 4
    else:
        value = _at(plane, cy, cx, across, here)
    return value - 128


@triton.jit
def _store_byte(place, value, here):
    tl.store(place, tl.minimum(tl.maximum(value, 0), 255).to(tl.uint8), mask=here)


@triton.jit
def rgb_kernel(
    blocks, out, height, width, across, colour_across, before, colours, all_blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Blocks to pixels."""
    view = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = lane < height * width
    y, x = lane // width, lane % width
    picture = blocks + view * all_blocks * 64
    value = _at(picture, y, x, across, here)
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    first = picture + before * 64
    cb = _smooth(first, y, x, half_height, half_width, colour_across, here)
    second = first + colours * 64
    cr = _smooth(second, y, x, half_height, half_width, colour_across, here)
    place = out + (view * height * width + lane) * 3
    _store_byte(place, value + ((91881 * cr + 32768) >> 16), here)
    _store_byte(place + 1, value + ((-22554 * cb - 46802 * cr + 32768) >> 16), here)
    _store_byte(place + 2, value + ((116130 * cb + 32768) >> 16), here)


def jpeg_round_trip(rgb: Tensor, divisors: Tensor, multipliers: Tensor) -> Tensor:
    """Encode and decode pictures.

    Args:
        rgb: uint8 [V, H, W, 3], contiguous.
        divisors: int32 [2, 8, 8] for brightness and colours, see `vla.jpeg.tables`.
        multipliers: int32 [2, 8, 8], see there.

    Returns:
        Of the shape and type of rgb.
    """
    views, height, width, _ = rgb.shape
    across, down = triton.cdiv(width, 8), triton.cdiv(height, 8)
    colour_across, colour_down = triton.cdiv(width, 16), triton.cdiv(height, 16)
    before, colours = across * down, colour_across * colour_down
    all_blocks = before + 2 * colours
    blocks = rgb.new_empty(views, all_blocks, 64, dtype=int16)
    out, size = rgb.new_empty(rgb.shape), _BLOCK
    brightness_kernel[(triton.cdiv(before * 64, size), views)](
        rgb, blocks, height, width, across, before, all_blocks, BLOCK=size
    )
    colour_kernel[(triton.cdiv(colours * 64, size), views, 2)](
        rgb, blocks, height, width, colour_across, colours, before, all_blocks, BLOCK=size
    )
    lanes = views * all_blocks * 8
    grid = (triton.cdiv(lanes, size),)
    rows_forward_kernel[grid](blocks, lanes, BLOCK=size)
    columns_kernel[grid](blocks, divisors, multipliers, lanes, before, all_blocks, BLOCK=size)
    rows_back_kernel[grid](blocks, lanes, BLOCK=size)
    rgb_kernel[(triton.cdiv(height * width, size), views)](
        blocks, out, height, width, across, colour_across, before, colours, all_blocks, BLOCK=size
    )
    return out
