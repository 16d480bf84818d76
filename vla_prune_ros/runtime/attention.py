# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which of torch's attention kernels runs: measured once for the sizes of a model, then pinned.

Left alone, torch chooses by its version and the GPU: other numbers and other times after an
update, and for some of them plans that are built at every new shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla_prune_ros.vla.config import OpenVLAConfig

_CANDIDATES = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION,
               SDPBackend.EFFICIENT_ATTENTION)  # fmt: skip
_PROMPT = 31  # tokens of an instruction of usual length
_RUNS = 10
Shape = tuple[int, int, int, int]  # batch, heads, rows, width of a head


def shapes_of(config: OpenVLAConfig) -> tuple[Shape, ...]:
    """Attention of both towers over two cameras, and of the decoder without pruning."""
    towers = [
        (2, tower.heads, tower.n_patches + tower.n_prefix, tower.dim // tower.heads)
        for tower in (config.featurizer, config.fused_featurizer)
    ]
    rows = 2 * config.patches_per_view + _PROMPT + config.n_placeholders + 2
    return *towers, (1, config.llama.n_heads, rows, config.llama.head_dim)


def fastest_first(seconds: Callable[[SDPBackend], float]) -> list[SDPBackend]:
    """Candidates by time, those that cannot do it left out, and the one that can do everything.

    Args:
        seconds: time of one; a RuntimeError says that it cannot.
    """
    times: dict[SDPBackend, float] = {}
    for backend in _CANDIDATES:
        try:
            times[backend] = seconds(backend)
        except RuntimeError:
            continue
    return [*sorted(times, key=times.__getitem__), SDPBackend.MATH]


@lru_cache(maxsize=8)
def order_for(
    device: torch.device, dtype: torch.dtype, shapes: tuple[Shape, ...]
) -> tuple[SDPBackend, ...]:
    """Kernels in the order in which they are tried; () on a CPU, which has one."""
    if device.type != 'cuda':
        return ()
    inputs = [torch.randn(3, *shape, device=device, dtype=dtype) for shape in shapes]
    with torch.inference_mode():
        return tuple(fastest_first(lambda backend: _seconds(backend, inputs)))


def pinned(order: Iterable[SDPBackend]) -> AbstractContextManager[None]:
    """Let attention use these kernels in this order; all of torch's where there are none."""
    order = list(order)
    return sdpa_kernel(order, set_priority=True) if order else nullcontext()


def _seconds(backend: SDPBackend, inputs: list[torch.Tensor]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with sdpa_kernel(backend):
        for run in range(_RUNS + 2):
            if run == 2:  # the first ones plan and compile
                start.record()
            for q, k, v in inputs:
                torch.nn.functional.scaled_dot_product_attention(q, k, v)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / _RUNS / 1e3
