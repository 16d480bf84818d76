# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera messages to arrays and back.

Works on anything with the fields of `sensor_msgs/Image`, so it imports no ROS. Unlike some
converters it honours `step` (rows may be padded) and `is_bigendian`. Where a full ROS 2 provides
cv_bridge a test holds the two against each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

MAX_SIDE = 16384  # pixels; a larger image is a corrupt message


class Encoding(NamedTuple):
    """Sample type and channel count of an encoding, and the order that makes it RGB."""

    dtype: str
    channels: int
    rgb: tuple[int, int, int] | None


ENCODINGS = {
    'rgb8': Encoding('u1', 3, (0, 1, 2)),
    'bgr8': Encoding('u1', 3, (2, 1, 0)),
    'rgba8': Encoding('u1', 4, (0, 1, 2)),
    'bgra8': Encoding('u1', 4, (2, 1, 0)),
    'mono8': Encoding('u1', 1, (0, 0, 0)),
    '8UC1': Encoding('u1', 1, None),
    '8UC3': Encoding('u1', 3, None),
    '16UC1': Encoding('u2', 1, None),
    'mono16': Encoding('u2', 1, None),
    '32FC1': Encoding('f4', 1, None),
    # Two bytes per pixel; the names with an underscore are the older ones.
    'uyvy': Encoding('u1', 2, None),
    'yuv422': Encoding('u1', 2, None),
    'yuyv': Encoding('u1', 2, None),
    'yuv422_yuy2': Encoding('u1', 2, None),
    'bayer_rggb8': Encoding('u1', 1, None),
    'bayer_bggr8': Encoding('u1', 1, None),
    'bayer_gbrg8': Encoding('u1', 1, None),
    'bayer_grbg8': Encoding('u1', 1, None),
}
# What OpenCV makes RGB of. It names a Bayer pattern by the second row and column.
OPENCV = {
    'uyvy': 'YUV2RGB_UYVY',
    'yuv422': 'YUV2RGB_UYVY',
    'yuyv': 'YUV2RGB_YUY2',
    'yuv422_yuy2': 'YUV2RGB_YUY2',
    'bayer_rggb8': 'BayerBG2RGB',
    'bayer_bggr8': 'BayerRG2RGB',
    'bayer_gbrg8': 'BayerGR2RGB',
    'bayer_grbg8': 'BayerGB2RGB',
}


class ImageError(ValueError):
    """A camera message that cannot be used; the text says why."""


def decode(message: Any) -> np.ndarray:
    """The pixels of a `sensor_msgs/Image` in their own encoding.

    Returns:
        [H, W] for one channel, else [H, W, C]; native byte order. A read-only view of the message
        where that is possible.

    Raises:
        ImageError: unknown encoding, empty or absurd size, step shorter than a row, or data of
            another length than height * step.
    """
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise ImageError(f'encoding {message.encoding!r}; supported: {", ".join(ENCODINGS)}')
    height, width, step = int(message.height), int(message.width), int(message.step)
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ImageError(f'size {width} x {height}')
    dtype = np.dtype(encoding.dtype).newbyteorder('>' if message.is_bigendian else '<')
    row = width * encoding.channels * dtype.itemsize
    if step < row:
        raise ImageError(f'step {step} is shorter than a row of {row} bytes')
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size != height * step:
        raise ImageError(f'{data.size} bytes of data, but height * step is {height * step}')
    rows = data.reshape(height, step)[:, :row]
    if step != row and dtype.itemsize > 1:
        rows = np.ascontiguousarray(rows)  # a view of another type needs whole rows
    pixels = rows.view(dtype) if dtype.itemsize > 1 else rows
    pixels = pixels.astype(dtype.newbyteorder('='), copy=False)
    return pixels if encoding.channels == 1 else pixels.reshape(height, width, encoding.channels)


def decode_rgb(message: Any) -> np.ndarray:
    """The colour picture of a `sensor_msgs/Image`: uint8 [H, W, 3], contiguous.

    Raises:
        ImageError: as `decode`, and for an encoding that is not a colour or grey picture.
    """
    encoding = ENCODINGS.get(message.encoding)
    if message.encoding in OPENCV:
        return _opencv_rgb(decode(message), message.encoding)
    if encoding is not None and encoding.rgb is None:
        valid = [n for n, e in ENCODINGS.items() if n in OPENCV or e.rgb is not None]
        raise ImageError(
            f'encoding {message.encoding!r} is no colour picture; supported: {", ".join(valid)}'
        )
    pixels = decode(message)
    if message.encoding == 'rgb8':
        return np.ascontiguousarray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    assert encoding is not None and encoding.rgb is not None  # or decode had refused it
    return np.ascontiguousarray(pixels[:, :, list(encoding.rgb)])


def _opencv_rgb(pixels: np.ndarray, encoding: str) -> np.ndarray:
    import cv2

    if pixels.shape[1] % 2 or (pixels.ndim == 2 and pixels.shape[0] % 2):
        raise ImageError(f'encoding {encoding!r} needs an even size, not {pixels.shape[1::-1]}')
    return cv2.cvtColor(np.ascontiguousarray(pixels), getattr(cv2, f'COLOR_{OPENCV[encoding]}'))


def decode_compressed_rgb(message: Any) -> np.ndarray:
    """The colour picture of a `sensor_msgs/CompressedImage`: uint8 [H, W, 3].

    Raises:
        ImageError: data that OpenCV cannot decode (JPEG and PNG always work).
    """
    import cv2

    data = np.frombuffer(message.data, dtype=np.uint8)
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        raise ImageError(f'compressed image {message.format!r}: {error}') from error
    if bgr is None:
        raise ImageError(f'{data.size} bytes are no image of format {message.format!r}')
    return np.ascontiguousarray(bgr[:, :, ::-1])


def fill_rgb(message: Any, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3] into a `sensor_msgs/Image` as rgb8; the header is left alone."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f'expected uint8 [H, W, 3], got {pixels.dtype} {pixels.shape}')
    message.height, message.width = pixels.shape[:2]
    message.encoding = 'rgb8'
    message.is_bigendian = 0
    message.step = pixels.shape[1] * 3
    message.data = pixels.tobytes()  # rclpy takes bytes a thousand times faster than an array
