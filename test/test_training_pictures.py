# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Crops and colours of training pictures: the authors', with their draws."""

import numpy as np
import pytest
import torch
from conftest import HERE

from vla_prune_ros.training.augment import SIDE, augment, draw, random_crop
from vla_prune_ros.vla.pictures import centre_crop

MIDDLE = (1 - SIDE) / 2
NOTHING = torch.tensor([MIDDLE, MIDDLE, 0.0, 1.0, 1.0, 0.0])


@pytest.fixture(scope='module')
def golden():
    with np.load(HERE / 'data/training/expected.npz') as arrays:
        images, wanted = (arrays[n].reshape(-1, 224, 224, 3) for n in ('images', 'augmented'))
        draws = torch.from_numpy(arrays['draws']).flatten(0, 1).float()
    return torch.from_numpy(images), torch.cat([draws[:, :1], draws], dim=1), wanted


def test_with_the_authors_draws_the_pictures_are_theirs(golden):
    images, draws, wanted = golden
    for ours, theirs in zip(augment(images, draws).numpy(), wanted, strict=True):
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 1 and np.count_nonzero(difference) <= 10


@pytest.mark.parametrize('step', range(2, 6))
def test_every_colour_step_is_needed(golden, step):
    images, draws, wanted = golden
    without = draws.clone()
    without[:, step] = NOTHING[step]
    assert (augment(images, without).numpy() != wanted).mean() > 0.1


def test_the_crop_in_the_middle_is_that_of_the_policy(golden):
    cropped = random_crop(golden[0][:2], torch.full((2, 2), MIDDLE))
    for ours, picture in zip(cropped.numpy(), golden[0], strict=False):
        np.testing.assert_allclose(ours, centre_crop(picture.numpy()), atol=1e-5)


def test_the_crop_follows_its_offset():
    ramp = torch.arange(56, dtype=torch.uint8)[:, None, None].expand(56, 56, 3)[None]
    picture = torch.cat([ramp.transpose(1, 2)[..., :1], ramp[..., 1:]], dim=-1)  # columns, rows
    cropped = random_crop(picture, torch.tensor([[0.0, 1 - SIDE]]))[0] * 255
    at = SIDE * torch.arange(56)
    torch.testing.assert_close(cropped[5, :, 0], at, atol=1e-3, rtol=0)
    torch.testing.assert_close(cropped[:, 5, 1], 55 * (1 - SIDE) + at, atol=1e-3, rtol=0)


def test_draws_stay_in_their_ranges_and_fill_them():
    draws = draw(4000, 2, torch.Generator().manual_seed(0)).flatten(0, 1)
    low = torch.tensor([0, 0, -0.2, 0.8, 0.8, -0.05])
    high = torch.tensor([1 - SIDE, 1 - SIDE, 0.2, 1.2, 1.2, 0.05])
    assert (draws >= low - 1e-6).all() and (draws <= high + 1e-6).all()
    torch.testing.assert_close(draws.mean(0), (low + high) / 2, atol=0.01, rtol=0)
    assert (draws[:, 0] != draws[:, 1]).all()


def test_the_released_crop_moves_along_the_diagonal():
    draws = draw(50, 2, torch.Generator().manual_seed(0), crop='diagonal')
    assert torch.equal(draws[..., 0], draws[..., 1])
    assert not torch.equal(draws[:, 0], draws[:, 1]), 'each camera draws for itself'


def test_without_colours_only_the_crop_changes(golden):
    draws = draw(1, 1, torch.Generator().manual_seed(0), colour=False)[:, 0]
    assert torch.equal(draws[0, 2:], NOTHING[2:])
    cropped = random_crop(golden[0][:1], draws[:, :2])
    ours = augment(golden[0][:1], draws).int()
    assert (ours - (cropped * 255.5).int()).abs().max() <= 1
