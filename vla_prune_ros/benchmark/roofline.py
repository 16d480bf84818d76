# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The least time that a query can take on a machine: measured rates, and every matrix product.

A product takes at least its FLOPs at the measured matrix rate, and at least its weights at the
measured bandwidth, whichever is longer; a query takes at least the sum over its products.
Activations, norms and everything that is no product are left out, so the floor is a floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from vla_prune_ros.evaluation.flops import PassWork, query_products
from vla_prune_ros.vla.config import OpenVLAConfig

STAGES = ('vision', 'decoder', 'head')  # of the timers, which products are booked to


@dataclass(frozen=True)
class Machine:
    """What one device was measured to do with the settings of the run.

    Attributes:
        flops: best matrix rate, FLOP/s at 2 per multiply-add, in the type of the run.
        bandwidth: best memory rate, bytes/s.
    """

    flops: float
    bandwidth: float

    def floor(self, flops: float, weight_bytes: float) -> float:
        """Least time of one product in ms."""
        return 1e3 * max(flops / self.flops, weight_bytes / self.bandwidth)

    def better(self, other: Machine) -> Machine:
        """The best of two measurements: a rate that was seen is possible."""
        return Machine(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))


def measure_machine(
    device: torch.device | str, dtype: torch.dtype, seconds: float = 0.5
) -> Machine:
    """Measure matrix rate and bandwidth with torch, each for about so many seconds."""
    device = torch.device(device)
    cuda = device.type == 'cuda'
    rate = 0.0
    for size in (8192, 4096) if cuda else (2048, 1024):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in 'ab')
        out = torch.empty_like(a)
        spent = _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, seconds / 2)
        rate = max(rate, 2 * size**3 / spent)
    size = 1 << (29 if cuda else 26)  # numbers: 2 GiB and 256 MiB, beyond any cache
    source = torch.zeros(size, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    spent = _best(lambda: target.copy_(source), device, seconds / 2)
    bandwidth = 2 * 4 * size / spent
    spent = _best(lambda: source.sum(), device, seconds / 2)
    return Machine(rate, max(bandwidth, 4 * size / spent))


def measure_small_numbers(device: torch.device | str, seconds: float = 0.5) -> float:
    """Measure the rate of matrix products of 8-bit integers, FLOP/s at 2 per multiply-add."""
    device, size = torch.device(device), 8192 if torch.device(device).type == 'cuda' else 1024
    a, b = (torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device) for _ in 'ab')
    return 2 * size**3 / _best(lambda: torch._int_mm(a, b.t()), device, seconds)


def _best(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Shortest time of one call in s, over at least three."""

    def wait() -> None:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    call()
    wait()
    best, count, deadline = float('inf'), 0, time.perf_counter() + seconds
    while count < 3 or time.perf_counter() < deadline:
        started = time.perf_counter()
        call()
        wait()
        best, count = min(best, time.perf_counter() - started), count + 1
    return best


def floors(
    config: OpenVLAConfig, work: PassWork, machine: Machine, weight_bytes: Mapping[str, float]
) -> dict[str, float]:
    """Least ms of each stage and in `total`.

    Args:
        config: sizes of the model.
        work: what the query did.
        machine: what the machine does.
        weight_bytes: bytes of one weight, by stage.
    """
    result = dict.fromkeys(STAGES, 0.0)
    for product in query_products(config, work):
        size = product.weights * weight_bytes[product.stage]
        result[product.stage] += machine.floor(product.flops, size)
    return {**result, 'total': sum(result.values())}
