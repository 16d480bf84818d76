# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera messages become exactly the pixels that were sent, or an error that says why not."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from vla_prune_ros.ros.images import (
    ENCODINGS,
    ImageError,
    decode,
    decode_compressed_rgb,
    decode_rgb,
    fill_rgb,
)

H, W = 5, 7


def pixels(encoding: str) -> np.ndarray:
    """Random pixels of an encoding: [H, W] or [H, W, C]."""
    kind = ENCODINGS[encoding]
    shape = (H, W) if kind.channels == 1 else (H, W, kind.channels)
    values = np.random.default_rng(3).integers(0, 256, shape)
    return (values * 201 if kind.dtype == 'u2' else values).astype(kind.dtype)


def message(array: np.ndarray, encoding: str, padding: int = 0, bigendian: bool = False):
    """An image message, with `padding` bytes of noise after every row."""
    wire = array.astype(array.dtype.newbyteorder('>' if bigendian else '<'))
    rows = np.frombuffer(wire.tobytes(), np.uint8).reshape(H, -1)
    noise = np.full((H, padding), 0xAB, np.uint8)
    data = np.concatenate([rows, noise], axis=1)
    return SimpleNamespace(
        height=H, width=W, encoding=encoding, is_bigendian=int(bigendian),
        step=data.shape[1], data=data.tobytes(),
    )  # fmt: skip


@pytest.mark.parametrize('padding', [0, 1, 5, 16])
@pytest.mark.parametrize('bigendian', [False, True])
@pytest.mark.parametrize('encoding', list(ENCODINGS))
def test_every_encoding_comes_back_with_any_step_and_byte_order(encoding, bigendian, padding):
    sent = pixels(encoding)
    got = decode(message(sent, encoding, padding, bigendian))
    assert got.dtype == sent.dtype
    np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize('padding', [0, 3])
def test_colour_orders_agree(padding):
    rgb = pixels('rgb8')
    alpha = np.full((H, W, 1), 9, np.uint8)
    sent = {
        'rgb8': rgb,
        'bgr8': rgb[:, :, ::-1],
        'rgba8': np.concatenate([rgb, alpha], 2),
        'bgra8': np.concatenate([rgb[:, :, ::-1], alpha], 2),
    }
    for encoding, array in sent.items():
        got = decode_rgb(message(np.ascontiguousarray(array), encoding, padding))
        np.testing.assert_array_equal(got, rgb, err_msg=encoding)
        assert got.flags.c_contiguous


def test_grey_becomes_three_equal_channels():
    grey = pixels('mono8')
    got = decode_rgb(message(grey, 'mono8'))
    for channel in range(3):
        np.testing.assert_array_equal(got[:, :, channel], grey)


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1', '8UC3', 'mono16'])
def test_what_is_no_colour_picture_is_refused_as_one(encoding):
    with pytest.raises(ImageError, match=encoding):
        decode_rgb(message(pixels(encoding), encoding))


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'encoding': '32FC1'}, '32FC1.*supported.*rgb8'),
        ({'data': b'123'}, '3 bytes'),
        ({'data': b''}, '0 bytes'),
        ({'step': W * 3 - 1}, 'shorter than a row'),
        ({'height': 0}, 'size'),
        ({'width': 10**6}, 'size'),
        ({'height': H + 1}, 'bytes of data'),
    ],
)
def test_a_broken_message_is_refused_with_its_reason(change, reason):
    broken = message(pixels('rgb8'), 'rgb8')
    vars(broken).update(change)
    with pytest.raises(ImageError, match=reason):
        decode_rgb(broken)


@pytest.mark.parametrize(
    ('width', 'height'), [(16385, 1), (1, 16385), (16000, 5000), (2**31, 2**31)]
)
def test_a_size_that_no_camera_has_is_refused_whatever_the_data_says(width, height):
    huge = SimpleNamespace(
        height=height, width=width, encoding='mono8', is_bigendian=0, step=width, data=b''
    )
    with pytest.raises(ImageError, match=f'size {width} x {height}; a side may have'):
        decode_rgb(huge)


def test_a_picture_survives_the_round_trip_bit_for_bit():
    sent = pixels('rgb8')
    image = SimpleNamespace()
    fill_rgb(image, sent)
    np.testing.assert_array_equal(decode_rgb(image), sent)


def test_only_rgb_bytes_can_be_sent():
    with pytest.raises(ImageError, match='float32'):
        fill_rgb(SimpleNamespace(), np.zeros((H, W, 3), np.float32))


def test_a_png_comes_back_exactly_and_in_rgb_order():
    cv2 = pytest.importorskip('cv2')
    rgb = pixels('rgb8')
    png = cv2.imencode('.png', rgb[:, :, ::-1])[1].tobytes()
    got = decode_compressed_rgb(SimpleNamespace(format='png', data=png))
    np.testing.assert_array_equal(got, rgb)


@pytest.mark.parametrize('data', [b'', b'no image', b'\xff\xd8\xff\xe0' + b'\0' * 50])
def test_compressed_rubbish_is_refused(data):
    pytest.importorskip('cv2')
    with pytest.raises(ImageError, match='jpeg'):
        decode_compressed_rgb(SimpleNamespace(format='jpeg', data=data))


def claiming(width: int, height: int, kind: str) -> bytes:
    """A small picture whose header claims another size."""
    cv2 = pytest.importorskip('cv2')
    data = bytearray(cv2.imencode(f'.{kind}', pixels('rgb8'))[1].tobytes())
    if kind == 'png':
        data[16:24] = struct.pack('>II', width, height)
        data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    else:
        at = data.index(b'\xff\xc0')
        data[at + 5 : at + 9] = struct.pack('>HH', height, width)
    return bytes(data)


@pytest.mark.parametrize('kind', ['png', 'jpg'])
@pytest.mark.parametrize(('width', 'height'), [(16000, 5000), (60000, 1), (1, 65535)])
def test_a_compressed_picture_is_measured_before_it_is_unpacked(kind, width, height):
    data = claiming(width, height, kind)
    with pytest.raises(ImageError, match=f'size {width} x {height}; a side may have'):
        decode_compressed_rgb(SimpleNamespace(format=kind, data=data))


def test_a_bomb_costs_neither_memory_nor_the_process():
    """A PNG of 0.2 MB with 80 million pixels, and a picture for which the memory is too short."""
    child = """
import resource, sys
from types import SimpleNamespace
import cv2, numpy as np
from vla_prune_ros.ros.images import ImageError, decode_compressed_rgb, decode_rgb
def refused(decode, **fields):
    try:
        decode(SimpleNamespace(format='png', is_bigendian=0, **fields))
    except ImageError as error:
        return str(error)
bomb = cv2.imencode('.png', np.zeros((5000, 16000), np.uint8))[1].tobytes()
assert len(bomb) < 300_000
big = cv2.imencode('.png', np.zeros((5000, 5000), np.uint8))[1].tobytes()
grey = bytes(5000 * 5000)
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 30_000_000,) * 2)
print(refused(decode_compressed_rgb, data=bomb))
print(refused(decode_compressed_rgb, data=big))
print(refused(decode_rgb, data=grey, width=5000, height=5000, step=5000, encoding='mono8'))
"""
    pytest.importorskip('cv2')
    done = subprocess.run([sys.executable, '-c', child], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bomb, *short = done.stdout.splitlines()
    assert 'size 16000 x 5000' in bomb
    assert len(short) == 2 and all('memory' in line for line in short), short


def test_the_size_of_real_pictures_is_read_whatever_comes_before_it():
    """Comments and fill bytes before the frame, progressive ones, EXIF: OpenCV reads them too."""
    cv2 = pytest.importorskip('cv2')
    rgb = np.zeros((40, 30, 3), np.uint8)
    plain = cv2.imencode('.jpg', rgb)[1].tobytes()
    comment = b'\xff\xfe\x00\x08\xff\xc0\x00\x00\x00\x00'
    for data in (
        plain,
        cv2.imencode('.jpg', rgb, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
        plain[:2] + comment + plain[2:],
        plain[:2] + b'\xff\xff' + plain[2:],
        cv2.imencode('.png', rgb)[1].tobytes(),
    ):
        got = decode_compressed_rgb(SimpleNamespace(format='jpeg', data=data))
        assert got.shape == (40, 30, 3)


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', '16UC1', '32FC1'])
def test_agrees_with_cv_bridge(encoding):
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    cv_bridge = pytest.importorskip('cv_bridge', reason='cv_bridge comes with a full ROS 2 only')
    from sensor_msgs.msg import Image

    ours = message(pixels(encoding), encoding)
    theirs = Image(**vars(ours))
    np.testing.assert_array_equal(decode(theirs), cv_bridge.CvBridge().imgmsg_to_cv2(theirs))
