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

# A larger picture is a corrupt message, or one that was made to fill the memory: a PNG of 0.2 MB
# can unfold into a gigabyte. 8K cameras (7680 x 4320) pass, with 100 MB of RGB.
MAX_SIDE, MAX_PIXELS = 16384, 2**25
PNG, JPEG, JPEG_END = b'\x89PNG\r\n\x1a\n', b'\xff\xd8', b'\xff\xd9'


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
    _check_size(width, height)
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


def check_rgb(message: Any) -> np.ndarray:
    """As `decode`, of a message that `decode_rgb` can make a picture of; copies nothing of it.

    Raises:
        ImageError: as `decode_rgb`.
    """
    encoding = ENCODINGS.get(message.encoding)
    if encoding is not None and encoding.rgb is None and message.encoding not in OPENCV:
        valid = [n for n, e in ENCODINGS.items() if n in OPENCV or e.rgb is not None]
        raise ImageError(
            f'encoding {message.encoding!r} is no colour picture; supported: {", ".join(valid)}'
        )
    pixels = decode(message)
    odd = pixels.shape[1] % 2 or (pixels.ndim == 2 and pixels.shape[0] % 2)
    if message.encoding in OPENCV and odd:
        raise ImageError(
            f'encoding {message.encoding!r} needs an even size, not {pixels.shape[1::-1]}'
        )
    return pixels


def _check_size(width: int, height: int) -> None:
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and width * height <= MAX_PIXELS):
        limits = f'1 to {MAX_SIDE} pixels, all together {MAX_PIXELS}'
        raise ImageError(f'size {width} x {height}; a side may have {limits}')


def decode_rgb(message: Any) -> np.ndarray:
    """The colour picture of a `sensor_msgs/Image`: uint8 [H, W, 3], contiguous.

    Raises:
        ImageError: as `decode`, for an encoding that is not a colour or grey picture, and when the
            memory does not suffice.
    """
    try:
        return _rgb(message)
    except MemoryError as error:
        raise ImageError(f'not enough memory: {error}') from error


def _rgb(message: Any) -> np.ndarray:
    pixels = check_rgb(message)
    if message.encoding in OPENCV:
        import cv2

        way = getattr(cv2, f'COLOR_{OPENCV[message.encoding]}')
        return cv2.cvtColor(np.ascontiguousarray(pixels), way)
    if message.encoding == 'rgb8':
        return np.ascontiguousarray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    rgb = ENCODINGS[message.encoding].rgb
    assert rgb is not None  # or check_rgb had refused it
    return np.ascontiguousarray(pixels[:, :, list(rgb)])


def check_compressed(message: Any) -> None:
    """What can be said of a compressed picture without unpacking it.

    Raises:
        ImageError: it is no JPEG or PNG, too large, or a JPEG that is cut off.
    """
    data = memoryview(message.data).cast('B')
    size = _compressed_size(data)
    if size is None:
        raise ImageError(f'{len(data)} bytes of format {message.format!r} are no JPEG or PNG')
    _check_size(*size)
    if data[:2] == JPEG and not data.tobytes().rstrip(b'\0').endswith(JPEG_END):
        raise ImageError(f'{len(data)} bytes of a JPEG that is cut off')  # its rest would be grey


def decode_compressed_rgb(message: Any) -> np.ndarray:
    """The colour picture of a `sensor_msgs/CompressedImage`: uint8 [H, W, 3].

    Raises:
        ImageError: as `check_compressed`, and for what OpenCV cannot decode or has no memory for.
    """
    import cv2

    check_compressed(message)
    try:
        bgr = cv2.imdecode(np.frombuffer(message.data, dtype=np.uint8), cv2.IMREAD_COLOR)
        if bgr is None:
            raise ImageError(f'{len(message.data)} bytes of {message.format!r} cannot be decoded')
        return np.ascontiguousarray(bgr[:, :, ::-1])
    except (cv2.error, MemoryError) as error:
        reason = str(error).strip() or 'not enough memory'
        raise ImageError(f'compressed image {message.format!r}: {reason}') from error


def _compressed_size(data: memoryview) -> tuple[int, int] | None:
    """Width and height that a PNG or JPEG claims in its header; None for anything else."""

    def number(at: int, length: int) -> int:
        return int.from_bytes(data[at : at + length], 'big')

    if data[:8] == PNG and data[12:16] == b'IHDR':
        return number(16, 4), number(20, 4)
    at = 2 if data[:2] == JPEG else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:  # segments: FF, marker, length, content
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of a frame
            return number(at + 7, 2), number(at + 5, 2)
        at += 1 if marker == 0xFF else 2 + number(at + 2, 2)
    return None


def fill_rgb(message: Any, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3] into a `sensor_msgs/Image` as rgb8; the header is left alone."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f'expected uint8 [H, W, 3], got {pixels.dtype} {pixels.shape}')
    message.height, message.width = pixels.shape[:2]
    message.encoding = 'rgb8'
    message.is_bigendian = 0
    message.step = pixels.shape[1] * 3
    message.data = pixels.tobytes()  # rclpy takes bytes a thousand times faster than an array
