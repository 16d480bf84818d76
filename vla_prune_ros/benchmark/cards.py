# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`bench --floors`: the least time of the decoder on cards that are not here, by arithmetic.

Rates are those of data sheets, dense, reached in practice by 80 to 90 %; see `roofline` for what a
floor is. Says where pruning helps and where 8-bit and 4-bit weights do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vla_prune_ros.benchmark.roofline import Machine, measure_machine, measure_small_numbers
from vla_prune_ros.evaluation.flops import LayerWork, PassWork, query_products
from vla_prune_ros.evaluation.summary import table
from vla_prune_ros.vla.config import OpenVLAConfig

KEPT = (512, 204, 78)  # dense; the bound of specprune; lightvla's mean
_PROMPT = 31  # tokens of a LIBERO instruction
FOUR_BITS = 4.125 / 8  # bytes of a weight with a 16-bit scale for 128 of them


@dataclass(frozen=True)
class Card:
    """Rates of a card.

    Attributes:
        flops: 16-bit matrix products, FLOP/s at 2 per multiply-add.
        small_flops: the same with 8-bit numbers.
        bandwidth: bytes/s.
    """

    flops: float
    small_flops: float
    bandwidth: float


# Sustained rates for the H100, else data sheets. Orin's 8-bit rate is that of integers.
CARDS: dict[str, Card] = {
    'H100': Card(790e12, 1500e12, 3.0e12),
    'RTX 4090': Card(165e12, 330e12, 1.008e12),
    'RTX 5090': Card(209e12, 419e12, 1.79e12),
    'Orin 64 GB': Card(42e12, 85e12, 0.205e12),
    'Thor': Card(258e12, 517e12, 0.273e12),
}
# Name -> bytes of a weight, and whether products are computed in 8 bits.
FORMATS: dict[str, tuple[float, bool]] = {
    '16-bit': (2.0, False),
    '8-bit': (1.0, True),
    '4-bit weights, 16-bit products': (FOUR_BITS, False),
    '4-bit weights, 8-bit products': (FOUR_BITS, True),
}


def decoder_floor(card: Card, kept: int, bytes_per_weight: float, small: bool) -> float:
    """Least ms of the published decoder with so many visual tokens in every layer.

    Attention is computed in 16 bits in any case.
    """
    config = OpenVLAConfig()
    layout = config.layout(config.n_views, _PROMPT)
    rows = layout.length - layout.n_visual + kept
    work = PassWork(layout, (LayerWork(rows, rows),) * config.llama.n_layers)
    wide = Machine(card.flops, card.bandwidth)
    fast = Machine(card.small_flops, card.bandwidth) if small else wide
    return sum(
        (fast if product.weights else wide).floor(
            product.flops, product.weights * bytes_per_weight
        )
        for product in query_products(config, work)
        if product.stage == 'decoder'
    )


def this_machine(device: str, dtype: torch.dtype) -> Card:
    """The rates of the machine at hand, measured: in `dtype`, and in 8-bit integers."""
    wide = measure_machine(device, dtype)
    return Card(wide.flops, measure_small_numbers(device), wide.bandwidth)


def floor_table(cards: Mapping[str, Card]) -> str:
    """Floors of the decoder in ms, and what pruning and small weights save on each card."""
    lines = []
    for name, card in cards.items():
        cells, times = [], {}
        for form, (size, small) in FORMATS.items():
            times[form] = [decoder_floor(card, kept, size, small) for kept in KEPT]
            cells.append(' / '.join(f'{ms:.3g}' for ms in times[form]))
        dense, *_, pruned = times['16-bit']
        lines.append([
            name, f'{card.flops / card.bandwidth:.0f}', *cells,
            f'{dense / pruned:.1f}', f'{dense / times["8-bit"][0]:.1f}',
            f'{dense / times["8-bit"][-1]:.1f}',
            f'{dense / times["4-bit weights, 8-bit products"][-1]:.1f}',
        ])  # fmt: skip
    kept = ' / '.join(map(str, KEPT))
    headers = [f'ms for {kept} visual tokens', 'ridge, rows', *FORMATS, 'x by pruning',
               'x by 8 bits', 'x by both', 'x with 4 bits']  # fmt: skip
    return table(headers, lines)


def print_floors(device: str, dtype_name: str) -> int:
    """Measure this machine and print it above the others."""
    dtype = getattr(torch, dtype_name)
    here = this_machine(device, dtype)
    print(
        f'this machine ({device}): {here.flops / 1e12:.3g} TFLOP/s in {dtype_name},'
        f' {here.small_flops / 1e12:.3g} in 8-bit integers, {here.bandwidth / 1e9:.4g} GB/s\n'
    )
    print(floor_table({'this machine': here, **CARDS}))
    return 0
