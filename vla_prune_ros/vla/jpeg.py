# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a JPEG round trip does to a picture, in whole numbers on any device, without a JPEG.

Huffman coding loses nothing, so encoding and decoding is: brightness and two colours, colours at
half the size, a whole-numbered cosine transform of blocks of 8 x 8, quantisation, the way back,
smooth upsampling, RGB. The bits are those of `pictures.jpeg_round_trip`: libjpeg's accurate
transform forwards (`jfdctint.c`) and its fast one back (`jidctfst.c`), as the processor's vector
units compute it, in 16 bits, where a product of extreme pictures may overflow.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

QUALITY = 95
_AAN = (1.0, 1.387039845, 1.306562965, 1.175875602, 1.0, 0.785694958, 0.541196100, 0.275899379)


@lru_cache(maxsize=8)
def tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Divisors of the way there and multipliers of the way back, int32 [2, 8, 8] each.

    For brightness and for the colours; quantisation and the scales of the two transforms.
    """
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8)).save(buffer, 'JPEG', quality=QUALITY, subsampling='4:2:0')
    buffer.seek(0)
    found = JpegImageFile(buffer).quantization  # in the order of rows
    steps = np.array([found[0], found[1]]).reshape(2, 8, 8)
    scales = np.array([[round(16384 * a * b) for b in _AAN] for a in _AAN])
    back = (steps * scales + (1 << 11)) >> 12
    divisors, multipliers = (
        torch.from_numpy(t).to(device, torch.int32) for t in (8 * steps, back)
    )
    return divisors, multipliers


def round_trip(rgb: Tensor) -> Tensor:
    """Encode and decode pictures; uint8 [V, H, W, 3] to the same, on their device."""
    _, height, width, _ = rgb.shape
    divisors, multipliers = tables(rgb.device)
    r, g, b = rgb.int().unbind(3)
    light = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16
    blue = (-11059 * r - 21709 * g + 32768 * b + 8421375) >> 16
    red = (32768 * r - 27439 * g - 5329 * b + 8421375) >> 16
    light = _coded(_extended(light, 8, 8), divisors[0], multipliers[0])[:, :height, :width]
    blue, red = (
        _doubled(_coded(_halved(c), divisors[1], multipliers[1]), height, width) - 128
        for c in (blue, red)
    )
    decoded = [
        light + ((91881 * red + 32768) >> 16),
        light + ((-22554 * blue - 46802 * red + 32768) >> 16),
        light + ((116130 * blue + 32768) >> 16),
    ]
    return torch.stack(decoded, 3).clamp_(0, 255).to(torch.uint8)


def _extended(x: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column of [V, H, W] up to multiples."""
    down, across = -x.shape[1] % rows, -x.shape[2] % columns
    if across:
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, across)], 2)
    if down:
        x = torch.cat([x, x[:, -1:].expand(-1, down, -1)], 1)
    return x.contiguous()


def _halved(x: Tensor) -> Tensor:
    """Means of 2 x 2, halves up and down in turn; then the last row of these repeats."""
    x = _extended(x, 2, 16)
    four = x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]
    turn = torch.arange(four.shape[2], dtype=torch.int32, device=x.device) % 2
    return _extended((four + 1 + turn) >> 2, 8, 8)


def _doubled(x: Tensor, height: int, width: int) -> Tensor:
    """Twice the size of the picture's part of [V, H', W']; 9 : 3 : 3 : 1 of the nearest four."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    x = x[:, :rows, :columns]
    if columns <= 2:  # libjpeg repeats them
        return x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]
    above, below = torch.cat([x[:, :1], x[:, :-1]], 1), torch.cat([x[:, 1:], x[:, -1:]], 1)
    x = torch.stack([3 * x + above, 3 * x + below], 2).flatten(1, 2)
    left, right = torch.cat([x[..., :1], x[..., :-1]], 2), torch.cat([x[..., 1:], x[..., -1:]], 2)
    x = torch.stack([(3 * x + left + 8) >> 4, (3 * x + right + 7) >> 4], 3).flatten(2)
    return x[:, :height, :width]


def _coded(x: Tensor, divisors: Tensor, multipliers: Tensor) -> Tensor:
    """Transform, quantise and go back; int32 [V, H, W] of multiples of 8, 0..255, to the same."""
    views, height, width = x.shape
    x = x.view(views, height // 8, 8, width // 8, 8) - 128
    x = torch.stack(_forward(x.unbind(4), first=True), 4)
    x = torch.stack(_forward(x.unbind(2), first=False), 2)
    divisors, multipliers = divisors[:, None], multipliers[:, None]  # [8, 1, 8]
    size = (x.abs() + (divisors >> 1)) // divisors
    x = _wrapped(torch.where(x < 0, -size, size) * multipliers)
    x = torch.stack(_back(x.unbind(2)), 2)
    x = torch.stack(_back(x.unbind(4)), 4)
    return ((x >> 5).clamp_(-128, 127) + 128).view(views, height, width)


def _forward(x: Sequence[Tensor], first: bool) -> list[Tensor]:
    """Eight samples to eight frequencies; rows come first and keep two bits more."""
    shift = 11 if first else 15
    half = 1 << (shift - 1)
    (t0, t7), (t1, t6), (t2, t5), (t3, t4) = ((x[i] + x[7 - i], x[i] - x[7 - i]) for i in range(4))
    a, b, c, d = t0 + t3, t1 + t2, t1 - t2, t0 - t3
    z1 = (c + d) * 4433
    z5 = (t4 + t6 + t5 + t7) * 9633
    z2, z3 = (t4 + t7) * -7373 + half, (t5 + t6) * -20995 + half
    z4, z5 = (t4 + t6) * -16069 + z5, (t5 + t7) * -3196 + z5
    return [
        (a + b) << 2 if first else (a + b + 2) >> 2,
        (t7 * 12299 + z2 + z5) >> shift,
        (z1 + d * 6270 + half) >> shift,
        (t6 * 25172 + z3 + z4) >> shift,
        (a - b) << 2 if first else (a - b + 2) >> 2,
        (t5 * 16819 + z3 + z5) >> shift,
        (z1 - c * 15137 + half) >> shift,
        (t4 * 2446 + z2 + z4) >> shift,
    ]


def _back(x: Sequence[Tensor]) -> list[Tensor]:
    """Eight frequencies to eight samples, in 16 bits."""
    a, b, d = x[0] + x[4], x[0] - x[4], x[2] + x[6]
    c = _times(x[2] - x[6], 362) - d
    t0, t3, t1, t2 = a + d, a - d, b + c, b - c
    z13, z10, z11, z12 = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    t7 = z11 + z13
    z5 = _times(z10 + z12, 473)
    t6 = _times(z10, -413) - z10 + z5 - t7
    t5 = _times(z11 - z13, 362) - t6
    t4 = _times(z12, 277) - z5 + t5
    every = (t0 + t7, t1 + t6, t2 + t5, t3 - t4, t3 + t4, t2 - t5, t1 - t6, t0 - t7)
    return [_wrapped(t) for t in every]


def _wrapped(x: Tensor) -> Tensor:
    """The lowest 16 bits, with their sign."""
    return ((x + 32768) & 65535) - 32768


def _times(x: Tensor, factor: int) -> Tensor:
    """Product with a factor of 256ths, rounded down."""
    return (_wrapped(x << 2) * (64 * factor)) >> 16
