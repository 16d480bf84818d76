# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The image pipeline: pictures of the authors' code, bit for bit."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_prune_ros.vla import jpeg, pictures
from vla_prune_ros.vla.pictures import (
    centre_crop,
    crop_table,
    decode_jpeg,
    encode_jpeg,
    jpeg_round_trip,
    lanczos_table,
    preprocess_image,
    resize,
    to_bytes,
)

ALLOWED = 1  # of 150,528 values, by one level: the authors' sums are not ours to the last digit


@pytest.fixture(scope='module')
def frames():
    with np.load(Path(__file__).parent / 'data' / 'preprocess' / 'frames.npz') as arrays:
        return dict(arrays)


def assert_equal_but_for(allowed, ours, theirs):
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1 and np.count_nonzero(difference) <= allowed


@pytest.mark.parametrize('index', range(3))
def test_every_stage_is_the_authors(frames, index):
    raw, decoded = frames['raw'][index], frames['jpeg_decoded'][index]
    np.testing.assert_array_equal(jpeg_round_trip(raw), decoded)
    np.testing.assert_array_equal(decode_jpeg(frames[f'jpeg_bytes_{index}'].tobytes()), decoded)
    assert_equal_but_for(ALLOWED, resize(decoded, 224), frames['resized_jpeg'][index])
    assert_equal_but_for(ALLOWED, preprocess_image(raw), frames['crop_jpeg'][index])


@pytest.mark.parametrize('index', range(3))
def test_frames_without_jpeg_are_resized_as_the_authors_do(frames, index):
    assert_equal_but_for(4, resize(frames['raw'][index], 224), frames['resized_nojpeg'][index])


@pytest.mark.parametrize('source', ['jpeg', 'nojpeg'])
def test_crop_and_truncation_equal_the_original(frames, source):
    for image, reference in zip(
        frames[f'resized_{source}'], frames[f'crop_{source}'], strict=True
    ):
        np.testing.assert_array_equal(to_bytes(centre_crop(image)), reference)


def test_crop_in_float_equals_the_original(frames):
    ours = centre_crop(frames['resized_jpeg'][0])[::8]
    np.testing.assert_allclose(ours, frames['crop_float_rows'], rtol=0, atol=1e-6)


def test_jpeg_step_changes_the_image(frames):
    assert (jpeg_round_trip(frames['raw'][0]) != frames['raw'][0]).any()


def test_damaged_jpeg_is_refused(frames):
    for data in (b'', b'no picture', encode_jpeg(frames['raw'][0])[:-2]):
        with pytest.raises(ValueError, match='not a complete JPEG'):
            decode_jpeg(data)


def test_without_the_decoder_the_pictures_are_the_same(frames, monkeypatch):
    wanted = preprocess_image(frames['raw'][0])
    monkeypatch.setattr(pictures, 'has_decoder', lambda: False)
    monkeypatch.setitem(sys.modules, 'simplejpeg', None)
    np.testing.assert_array_equal(preprocess_image(frames['raw'][0]), wanted)
    with pytest.raises(ModuleNotFoundError, match='pip install simplejpeg'):
        decode_jpeg(encode_jpeg(frames['raw'][0]))


@pytest.mark.parametrize('width', [1, 3, 5, 16, 33, 250, 256])
@pytest.mark.parametrize('height', [1, 2, 8, 17, 100])
def test_a_round_trip_in_whole_numbers_has_the_bits_of_the_library(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    board = np.add.outer(np.arange(height), np.arange(width)) % 2 * 255  # overflows 16 bits
    given = [
        noise,
        (noise > 127) * np.uint8(255),
        np.repeat(board[..., None], 3, 2).astype(np.uint8),
        np.broadcast_to(noise[0, 0], noise.shape),
    ]
    ours = jpeg.round_trip(torch.from_numpy(np.stack(given))).numpy()
    for own, picture in zip(ours, given, strict=True):
        np.testing.assert_array_equal(own, decode_jpeg(encode_jpeg(picture)))


@pytest.mark.parametrize('before', [1, 2, 57, 96, 223, 256, 480, 640, 1080])
def test_weights_are_a_partition_of_one_and_samples_exist(before):
    at, weights = lanczos_table(before, 224)
    assert at.min() >= 0 and at.max() < before
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
    inner = (weights != 0).all(0)
    if before > 6 and inner.any():  # away from the edges the kernel is symmetric about the centre
        centre = (weights * at).sum(0) + 0.5
        wanted = (np.arange(224) + 0.5) * before / 224
        assert np.abs(centre - wanted)[inner].max() < 0.2 * max(1, before / 224)


@pytest.mark.parametrize('shape', [(256, 256), (480, 640), (60, 50), (300, 90), (224, 100)])
def test_resize_is_a_lanczos_filter_to_rounding(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    x = image.astype(float)
    for axis, before in enumerate(shape):
        at, weights = lanczos_table(before, 224)
        matrix = np.zeros((224, before))
        np.add.at(matrix, (np.arange(224), at), weights.astype(float))
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    ours, exact = resize(image, 224), x.clip(0, 255)
    assert ours.shape == (224, 224, 3) and ours.dtype == np.uint8
    assert np.abs(ours - exact).max() < 0.5 + 1e-3


def test_a_picture_of_the_right_size_is_not_resized(frames):
    picture = frames['resized_jpeg'][0]
    np.testing.assert_array_equal(resize(picture, 224), picture)


def test_crop_grid_is_that_of_aligned_corners():
    expected = 5.72181 + 0.9486833 * np.arange(224)
    lower, _, fraction = crop_table(224)
    np.testing.assert_allclose(lower + fraction, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('size', [56, 112])
def test_crop_of_a_ramp_is_the_grid_at_any_size(size):
    ramp = np.repeat(np.arange(size, dtype=np.uint8)[None, :, None], size, 0).repeat(3, 2)
    side = 0.9**0.5
    expected = (1 - side) / 2 * (size - 1) + side * np.arange(size)
    np.testing.assert_allclose(centre_crop(ramp)[3, :, 1] * 255, expected, atol=1e-3)


@pytest.mark.parametrize(
    'image', [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)]
)
def test_frames_that_are_not_rgb_bytes_are_refused(image):
    with pytest.raises(ValueError, match='uint8'):
        preprocess_image(image)


def test_input_frame_is_not_modified(frames):
    raw = frames['raw'][0].copy()
    preprocess_image(raw)
    np.testing.assert_array_equal(raw, frames['raw'][0])
