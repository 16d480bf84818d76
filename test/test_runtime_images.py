# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The image pipeline in torch gives the pictures of the one on the host, to the last bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_checkpoint

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.runtime import images
from vla_prune_ros.runtime.images import DeviceImages
from vla_prune_ros.vla.pictures import preprocess_image

SIZES = [(256, 256), (480, 640), (128, 128), (100, 224), (60, 50), (300, 90), (224, 224), (57, 56)]
DEVICES = [
    pytest.param(torch.device('cpu'), id='cpu'),
    pytest.param(torch.device('cuda:0'), id='cuda', marks=pytest.mark.gpu),
]


def frames(height, width):
    """Noise, a smooth picture, and one of hard edges that overshoot."""
    rng = np.random.default_rng(height * 1000 + width)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    edges = (rng.random((height, width, 1)) > 0.5) * np.full(3, 255)
    return [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)),
        edges.astype(np.uint8),
    ]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size', [56, 224])
def test_pictures_equal_those_of_the_host(size, device):
    pipeline = DeviceImages(size, device)
    for shape in SIZES:
        given = frames(*shape)
        ours = pipeline(given)
        assert ours.device.type == device.type
        for picture, frame in zip(ours.cpu().numpy(), given, strict=True):
            np.testing.assert_array_equal(picture, preprocess_image(frame, size), str(shape))


def test_frames_of_several_sizes_and_jpeg_in_whole_numbers(monkeypatch):
    monkeypatch.setattr(images, 'has_decoder', lambda: False)
    pipeline = DeviceImages(56, torch.device('cpu'))
    given = [frames(60, 50)[0], frames(33, 90)[1], frames(60, 50)[2]]
    for picture, frame in zip(pipeline(given).numpy(), given, strict=True):
        np.testing.assert_array_equal(picture, preprocess_image(frame, 56))


def test_a_decoder_of_another_kind_keeps_jpeg_on_the_host(monkeypatch):
    assert images.decoder_agrees()
    monkeypatch.setattr(images, 'decoder_agrees', lambda: False)
    monkeypatch.setattr(images, 'round_trip', lambda x: pytest.fail('another decoder'))
    monkeypatch.setattr(images, 'has_decoder', lambda: False)
    (frame, *_) = frames(60, 50)
    monkeypatch.setattr(images, 'jpeg_round_trip', lambda image: image)
    assert DeviceImages(56, torch.device('cpu'))([frame]).shape == (1, 56, 56, 3)


def test_malformed_frames_are_refused():
    with pytest.raises(ValueError, match='uint8'):
        DeviceImages(56, torch.device('cpu'))([np.zeros((8, 8, 3))])


@pytest.mark.parametrize('pipeline', ['exact', 'device'])
def test_cameras_that_were_never_compressed_are_not(pipeline, tmp_path):
    settings = {'image_pipeline': pipeline, 'jpeg': False}
    policy = VLAPolicy.from_pretrained(tiny_checkpoint(tmp_path), **settings)
    given = frames(60, 50)[:2]
    found = torch.as_tensor(policy._pictures(given)).numpy()
    for picture, frame in zip(found, given, strict=True):
        np.testing.assert_array_equal(picture, preprocess_image(frame, 56, jpeg=False))
        assert (picture != preprocess_image(frame, 56)).any()
    assert policy.info()['jpeg'] is False
    assert VLAPolicy.from_pretrained(tmp_path).info()['jpeg'] is True
