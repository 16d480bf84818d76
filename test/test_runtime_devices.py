# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the runtime settles with a device: its attention, and how numbers come home."""

import numpy as np
import pytest
import torch
from tiny import tiny_config
from torch.nn.attention import SDPBackend

from vla_prune_ros.runtime.attention import fastest_first, order_for, pinned, shapes_of
from vla_prune_ros.runtime.pinned import Receiver
from vla_prune_ros.vla.config import OpenVLAConfig

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
FLASH, CUDNN, EFFICIENT = (
    SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
)  # fmt: skip


def test_the_fastest_attention_comes_first_and_what_cannot_do_it_not_at_all():
    def seconds(backend):
        if backend == FLASH:
            raise RuntimeError('no such kernel')
        return {CUDNN: 2.0, EFFICIENT: 1.0}[backend]

    assert fastest_first(seconds) == [EFFICIENT, CUDNN, SDPBackend.MATH]


def test_shapes_are_those_of_the_published_model():
    assert shapes_of(OpenVLAConfig()) == (
        (2, 16, 261, 64), (2, 16, 256, 72), (1, 32, 601, 128)
    )  # fmt: skip


def test_a_cpu_has_one_attention():
    assert order_for(torch.device('cpu'), torch.float32, shapes_of(tiny_config())) == ()
    with pinned(()):
        pass


@pytest.mark.parametrize('backend', [FLASH, SDPBackend.MATH])
def test_the_chosen_attention_is_the_one_that_runs(backend):
    q = torch.randn(1, 2, 16, 8)
    with torch.profiler.profile() as trace, pinned([backend]):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    names = ' '.join(event.key for event in trace.key_averages())
    assert ('flash' in names) is (backend == FLASH)


@pytest.mark.gpu
def test_a_gpu_chooses_one():
    order = order_for(torch.device('cuda'), torch.bfloat16, shapes_of(OpenVLAConfig()))
    assert len(order) > 1 and order[-1] == SDPBackend.MATH


@pytest.mark.parametrize('device', DEVICES)
def test_everything_comes_home_in_one_copy_of_its_own(device):
    home, g = Receiver(device), torch.Generator().manual_seed(0)
    for size in (3, 0, 70, 5):
        actions = torch.randn(2, size, generator=g, dtype=torch.float64).to(device)
        ids = torch.arange(size, device=device)[::2]
        flags = torch.ones(1, dtype=torch.bool, device=device)
        found = home(actions.t(), ids, flags)
        for array, tensor in zip(found, (actions.t(), ids, flags), strict=True):
            np.testing.assert_array_equal(array, tensor.cpu().numpy())
            assert array.dtype == tensor.cpu().numpy().dtype
    again = home(torch.zeros(2, 5, dtype=torch.float64, device=device))
    assert again[0].sum() == 0 and found[0].any()
