# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Decoder weights in 4 bits, by groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from vla_prune_ros.runtime.quantization import (
    SmallLinear,
    quantised,
    quantised_to_4_bits,
    quantize,
)
from vla_prune_ros.vla.operations import wide_weight


@pytest.mark.parametrize(('n', 'k'), [(1, 1), (3, 128), (24, 40), (1030, 300)])
def test_a_product_with_4_bit_weights_is_that_of_what_they_stand_for(n, k):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(k, n, bias=False), torch.randn(2, 5, k)
    with torch.no_grad():
        linear.weight[:, 0] += 0.1
        linear.weight[0] = 0
    small, rows = SmallLinear(linear, 'int4'), quantised(x, 'int8')
    assert small.weight.dtype == torch.uint8 and rows.values.dtype == torch.int8
    wide = wide_weight(small.weight, small.scales, k)
    torch.testing.assert_close(small(x), (rows.values * rows.scales).view(2, 5, k) @ wide.t())
    assert torch.equal(small(rows), small(x))
    assert not wide[0].any()
    assert (wide - linear.weight).norm() <= 0.11 * linear.weight.norm()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-20, 20), st.booleans())
def test_4_bits_are_nearer_than_plain_rounding_of_the_range(seed, power, skewed):
    torch.manual_seed(seed)
    weight = torch.randn(7, 200) ** 3 * 2.0**power
    weight = weight.abs() if skewed else weight
    found = wide_weight(*quantised_to_4_bits(weight), 200)
    groups = torch.nn.functional.pad(weight, (0, 56)).unflatten(1, (2, 128))
    scales = groups.abs().amax(-1, keepdim=True) / 7
    plain = ((groups / scales).round() * scales).flatten(1)[:, :200]
    assert (found - weight).norm() < (plain - weight).norm()


def test_every_product_of_the_decoder_is_in_4_bits():
    model = tiny_model()
    quantize(model, 'int4')
    assert not [m for m in model.decoder.layers.modules() if isinstance(m, torch.nn.Linear)]
    small = [m for m in model.decoder.layers.modules() if isinstance(m, SmallLinear)]
    assert len(small) == 4 * len(model.decoder.layers)
    for each in small:  # 4 bits of each number and 16 of each group
        held = 8 * (each.weight.numel() + 2 * each.scales.numel())
        assert held == (4 + 16 / 128) * each.out_features * 128 * each.scales.shape[1]
