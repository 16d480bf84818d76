# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera frame to policy image, bit for bit as OpenVLA-OFT's evaluation and training code does.

Sources: openvla-oft `openvla_utils.py: resize_image_for_policy, crop_and_resize` and TensorFlow's
kernels `scale_and_translate`, `crop_and_resize` and `decode_jpeg` at their defaults there.

- JPEG is decoded with the fast inverse DCT and smooth upsampling. Pillow and OpenCV decode with
  other arithmetic: two thirds of the values differ, so `simplejpeg` does it. Without it frames go
  the same way in whole numbers (`jpeg`), to the last bit, in about six times the time.
- Resizing adds float32 products in the order of the samples, rows before columns. Product and sum
  are operations of their own on purpose: a fused one rounds once and gives other bits.

numpy does one operation at a time in IEEE float32, so the bits are the same on every machine.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image

from vla_prune_ros.vla.jpeg import QUALITY, round_trip

CROP_AREA = 0.9
JPEG_QUALITY = QUALITY
_RADIUS = np.float32(3)  # of the Lanczos kernel
_PI = np.float32(3.14159265359)


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as JPEG (quality 95, 4:2:0), decoded as TensorFlow's own would be."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=JPEG_QUALITY, subsampling='4:2:0')
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decode a JPEG as TensorFlow does; uint8 RGB [H, W, 3].

    Raises:
        ValueError: not a JPEG, or a damaged one.
        ModuleNotFoundError: the package simplejpeg is missing.
    """
    try:
        import simplejpeg
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'JPEG files need the package simplejpeg (pip install simplejpeg): other JPEG'
            ' decoders give other pictures than those that the published weights were trained on'
        ) from error
    try:
        return simplejpeg.decode_jpeg(data, 'RGB', fastdct=True, fastupsample=False)
    except ValueError as error:
        raise ValueError(f'not a complete JPEG: {error}') from error


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """Encode and decode; uint8 [H, W, 3] to the same."""
    if not has_decoder():
        return round_trip(torch.from_numpy(np.array(image))[None])[0].numpy()
    return decode_jpeg(encode_jpeg(image))


@lru_cache(maxsize=1)
def has_decoder() -> bool:
    """Whether simplejpeg is here."""
    return find_spec('simplejpeg') is not None


def check_frame(image: np.ndarray) -> None:
    """Check a camera frame.

    Raises:
        ValueError: not an RGB frame of bytes.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f'a camera frame is uint8 [H, W, 3], not {image.dtype} {image.shape}')


def preprocess_image(image: np.ndarray, size: int = 224, jpeg: bool = True) -> np.ndarray:
    """Turn an upright camera frame into the policy image.

    Args:
        image: uint8 RGB [H, W, 3].
        size: side of the policy image.
        jpeg: go through JPEG first, as the published training data did.

    Returns:
        uint8 RGB [size, size, 3].

    Raises:
        ValueError: not an RGB frame of bytes.
    """
    check_frame(image)
    return to_bytes(centre_crop(resize(jpeg_round_trip(image) if jpeg else image, size)))


def to_bytes(cropped: np.ndarray) -> np.ndarray:
    """Clip 0..1 and truncate x * 255.5, as upstream does; rounding x * 255 would differ."""
    return (cropped.clip(0.0, 1.0) * np.float32(255.5)).astype(np.uint8)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize with antialiased Lanczos; uint8 [H, W, 3] to uint8 [size, size, 3]."""
    height, width, _ = image.shape
    if height == width == size:
        return image
    # Whichever axis is filtered comes first: then its samples are rows of memory.
    x = _filter(image.astype(np.float32).reshape(height, -1), size).reshape(size, width, 3)
    x = _filter(x.swapaxes(0, 1).reshape(width, -1), size).reshape(size, size, 3)
    return np.rint(x).clip(0, 255).astype(np.uint8).swapaxes(0, 1)


def centre_crop(image: np.ndarray) -> np.ndarray:
    """Crop 90 % of the area and scale back, bilinear; uint8 [S, S, 3] to float32 in 0..1."""
    size = len(image)
    x = image.swapaxes(0, 1).reshape(size, -1) * np.float32(1 / 255)
    x = _between(x).reshape(size, size, 3).swapaxes(0, 1)  # columns first, then rows
    return _between(x.reshape(size, -1)).reshape(size, size, 3)


def _filter(x: np.ndarray, size: int) -> np.ndarray:
    """Weighted sums of the rows of float32 [before, n], in the order of the samples."""
    at, weights = lanczos_table(len(x), size)
    total = x.take(at[0], axis=0)
    total *= weights[0, :, None]
    term = np.empty_like(total)
    for tap, weight in zip(at[1:], weights[1:], strict=True):
        x.take(tap, axis=0, out=term, mode='clip')  # 'raise' would copy once more
        term *= weight[:, None]
        total += term
    return total


def _between(x: np.ndarray) -> np.ndarray:
    """Rows of the crop, interpolated from those of float32 [S, n]."""
    low, high, fraction = crop_table(len(x))
    lower, step = x.take(low, axis=0), x.take(high, axis=0)
    step -= lower
    step *= fraction[:, None]
    lower += step
    return lower


@lru_cache(maxsize=8)
def crop_table(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper sample, intp, and the fraction between them, float32, each [size].

    For each output row or column of the centre crop; corners are aligned: the first and last
    output pixel sample the edges of the crop.
    """
    side = np.float32(np.sqrt(np.float32(CROP_AREA)))
    low = (np.float32(1) - side) / np.float32(2)
    scale = side * np.float32(size - 1) / np.float32(max(size - 1, 1))
    at = low * np.float32(size - 1) + np.arange(size, dtype=np.float32) * scale
    floor = np.floor(at)
    upper = np.minimum(np.ceil(at), size - 1)
    return floor.astype(np.intp), upper.astype(np.intp), (at - floor).astype(np.float32)


@lru_cache(maxsize=32)
def lanczos_table(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples and weights of each output; intp and float32 [taps, after].

    In float32, operation by operation as TensorFlow's `ComputeSpans`. Outputs that need fewer taps
    than others (at the edges) have weights of 0 at the end, which add nothing.
    """
    one, half = np.float32(1), np.float32(0.5)
    inverse = np.float32(1.0 / float(np.float32(after) / np.float32(before)))
    stretch = max(inverse, one)  # when shrinking the kernel is stretched against aliasing
    centre = (np.arange(after, dtype=np.float32) + half) * inverse
    reach = _RADIUS * stretch
    first = np.ceil(centre - reach - half).astype(np.intp).clip(0, before - 1)
    last = np.floor(centre + reach - half).astype(np.intp).clip(0, before - 1)
    at = first + np.arange((last - first).max() + 1)[:, None]
    weights = _lanczos(np.abs((at.astype(np.float32) + half - centre) * (one / stretch)))
    weights[at > last] = 0
    total = np.zeros(after, np.float32)
    for tap in weights:
        total = total + tap
    return np.minimum(at, before - 1), weights * (one / total)


def _lanczos(x: np.ndarray) -> np.ndarray:
    inside = np.maximum(x, np.float32(1e-3))
    angle = _PI * inside
    value = _RADIUS * _sin(angle) * _sin(angle / _RADIUS) / (_PI * _PI * inside * inside)
    value[x <= np.float32(1e-3)] = 1
    value[x > _RADIUS] = 0
    return value


def _sin(x: np.ndarray) -> np.ndarray:
    """Correctly rounded, as the C library's; numpy's own sine of float32 depends on the CPU."""
    return np.array([math.sin(v) for v in x.flat], np.float32).reshape(x.shape)
