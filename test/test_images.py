# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera messages become exactly the pixels that were sent, or an error that says why not."""

from __future__ import annotations

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


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', '16UC1', '32FC1'])
def test_agrees_with_cv_bridge(encoding):
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    cv_bridge = pytest.importorskip('cv_bridge', reason='cv_bridge comes with a full ROS 2 only')
    from sensor_msgs.msg import Image

    ours = message(pixels(encoding), encoding)
    theirs = Image(**vars(ours))
    np.testing.assert_array_equal(decode(theirs), cv_bridge.CvBridge().imgmsg_to_cv2(theirs))
