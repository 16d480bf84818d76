# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every product and kernel of a decoder layer alone, by shape, rows and way; see `single`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla_prune_ros.runtime.fast import operations_for
from vla_prune_ros.runtime.quantization import Quantised, SmallLinear, quantised
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.decoder import RMSNorm, rope_table
from vla_prune_ros.vla.operations import GROUP, TORCH

Row = dict[str, Any]
ROWS = (56, 128, 167, 176, 192, 224, 256, 293, 304, 352, 432, 512, 601, 608, 640)
_CACHE = 400e6  # bytes: several times the largest cache of a GPU
_BACKENDS = {
    'flash': SDPBackend.FLASH_ATTENTION,
    'cudnn': SDPBackend.CUDNN_ATTENTION,
    'efficient': SDPBackend.EFFICIENT_ATTENTION,
    'math': SDPBackend.MATH,
}


def seconds_of(call: Callable[[], object], device: torch.device, runs: int = 50) -> float:
    """Median time of a call in s: on a GPU replayed from a graph, else as it is, some times."""
    if device.type != 'cuda':
        call()
        return median(elapsed(call) for _ in range(3))
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def elapsed(call: Callable[[], object]) -> float:
    """Time of a call on the host, s."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def dtype_of(device: torch.device) -> torch.dtype:
    """Type of the weights on a device."""
    return torch.bfloat16 if device.type == 'cuda' else torch.float32


def _shapes(config: OpenVLAConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the products of a layer."""
    d, hidden = config.llama.hidden_size, config.llama.mlp_hidden
    return {'qkv': (3 * d, d), 'o': (d, d), 'gate_up': (2 * hidden, d), 'down': (d, hidden)}


def products(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """The four products of a decoder layer by rows: rate, bandwidth, error, by way."""
    dtype = dtype_of(device)
    for name, (out, inner) in _shapes(config).items():
        count = max(2, round(_CACHE / (2 * out * inner))) if device.type == 'cuda' else 2
        weights = [torch.randn(out, inner, device=device).to(dtype) for _ in range(count)]
        for rows in ROWS if device.type == 'cuda' else ROWS[:2]:
            x = torch.randn(rows, inner, device=device).to(dtype)
            exact = x.float() @ weights[0].float().t()
            for way, product in _ways(device).items():
                seconds = seconds_of(
                    lambda p=product, x=x, every=weights: [p(x, w) for w in every], device
                ) / count  # fmt: skip
                found = product(x, weights[0]).float()
                yield {
                    'product': name,
                    'rows': rows,
                    'way': way,
                    'us': 1e6 * seconds,
                    'TFLOP/s': 2e-12 * rows * out * inner / seconds,
                    'TB/s': 1e-12 * out * inner * dtype.itemsize / seconds,
                    'error': float((found - exact).norm() / exact.norm()),
                }


def _ways(device: torch.device) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    linear = torch.nn.functional.linear

    def library(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        def product(x: Tensor, w: Tensor) -> Tensor:
            before = torch.backends.cuda.preferred_blas_library()
            torch.backends.cuda.preferred_blas_library(name)
            try:
                return linear(x, w)
            finally:
                torch.backends.cuda.preferred_blas_library(before)

        return product

    transposed = {'transposed': lambda x, w: (w @ x.t()).t()}
    if device.type != 'cuda':
        return {'linear': linear, **transposed}
    return {'cublas': library('cublas'), 'cublaslt': library('cublaslt'), **transposed}


def small_products(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """The same products with states in 8 bits and weights in 8 and 4, in torch and in the kernel.

    What one costs that leaves its result in whole numbers, too: the scaling is in the time.
    """
    dtype = dtype_of(device)
    for name, (out, inner) in _shapes(config).items():
        for bits, way, product in _small_ways(device):
            size = out * inner * bits / 8
            count = max(2, round(_CACHE / size)) if device.type == 'cuda' else 2
            weights = [_small_weight(out, inner, bits, device) for _ in range(count)]
            for rows in (16, 56, 167, 293, 601) if device.type == 'cuda' else (17, 56):
                x = torch.randint(-127, 128, (rows, inner), dtype=torch.int8, device=device)
                scales = torch.rand(rows, 1, device=device) / 100

                def run(w: tuple[Tensor, Tensor], x=x, scales=scales, product=product) -> Tensor:
                    return product(x, scales, *w, dtype)

                exact = TORCH.linear_small(x, scales, *weights[0], torch.float32)
                seconds = seconds_of(
                    lambda run=run, every=weights: [run(w) for w in every], device
                ) / count  # fmt: skip
                yield {
                    'product': name,
                    'rows': rows,
                    'bits': bits,
                    'way': way,
                    'us': 1e6 * seconds,
                    'TFLOP/s': 2e-12 * rows * out * inner / seconds,
                    'TB/s': 1e-12 * size / seconds,
                    'error': float((run(weights[0]).float() - exact).norm() / exact.norm()),
                }


def _small_ways(device: torch.device) -> Iterator[tuple[int, str, Callable[..., Tensor]]]:
    yield 8, 'torch', TORCH.linear_small
    if operations_for(device) is TORCH:
        yield 4, 'torch', TORCH.linear_small
        return
    from vla_prune_ros.runtime.kernels.linear_small import linear_small

    yield 8, 'kernel', linear_small
    yield 4, 'kernel', linear_small


def _small_weight(out: int, inner: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random numbers in the format of `Operations.linear_small`."""
    if bits == 8:
        weight = torch.randint(-127, 128, (out, inner), dtype=torch.int8, device=device)
        return weight, torch.rand(out, 1, device=device) / 100
    groups = -(-inner // GROUP)
    shape = out, groups * GROUP // 2
    weight = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    return weight, torch.rand(out, groups, device=device).bfloat16() / 100


def attention(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """Attention of the towers and of the decoder, by backend, with a bias and without."""
    llama = config.llama
    towers = [
        (2, tower.heads, tower.n_patches + tower.n_prefix, tower.dim // tower.heads)
        for tower in (config.featurizer, config.fused_featurizer)
    ]
    decoder = [(1, llama.n_heads, n, llama.head_dim) for n in (167, 256, 293, 601, 608)]
    for shape in [*towers, *decoder]:
        q, k, v = (torch.randn(shape, device=device, dtype=dtype_of(device)) for _ in 'qkv')
        bias = torch.zeros(1, 1, 1, shape[2], device=device, dtype=q.dtype)
        exact = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
        for name, backend in _BACKENDS.items():
            for mask in (None, bias):

                def call(q=q, k=k, v=v, mask=mask, backend=backend) -> Tensor:
                    with sdpa_kernel(backend):
                        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)

                row = {'shape': 'x'.join(map(str, shape)), 'backend': name,
                       'bias': mask is not None}  # fmt: skip
                try:
                    error = float((call().float() - exact).norm() / exact.norm())
                    yield {**row, 'us': 1e6 * seconds_of(call, device), 'error': error}
                except RuntimeError:  # this backend cannot do this shape
                    yield {**row, 'us': '-', 'error': '-'}


def _values(x: Tensor | Quantised) -> Tensor:
    """What is in 8 bits, or becomes it."""
    return (quantised(x, 'int8') if isinstance(x, Tensor) else x).values


def elementwise(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """What happens between the products, in torch and in kernels, and how far they are apart."""
    llama, tower, dtype = config.llama, config.featurizer, dtype_of(device)
    d, heads = llama.hidden_size, llama.n_heads
    norm = RMSNorm(d, llama.norm_eps).to(device, dtype)
    layer_norm = torch.nn.LayerNorm(tower.dim).to(device, dtype)
    inward = torch.nn.Linear(tower.dim, tower.mlp_hidden).to(device, dtype)
    ways = {ops.name: ops for ops in (TORCH, operations_for(device))}
    small = SmallLinear(torch.nn.Linear(16, 16, bias=False, device=device), 'int8')

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, device=device).to(dtype)

    def calls(ops: Any, rows: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Of every operation; what is written in place starts anew each time."""
        torch.manual_seed(rows)
        x, delta, qkv = draw(rows, d), draw(rows, d), draw(rows, 3 * d)
        packed, picture = draw(rows, 2 * llama.mlp_hidden), draw(rows, tower.dim)
        table = rope_table(torch.arange(rows, device=device), llama.head_dim, 1e4, dtype)
        parts = qkv.view(1, rows, 3, heads, -1).permute(2, 0, 3, 1, 4)
        live = torch.tensor([rows - 9], dtype=torch.int32, device=device)
        bias = torch.zeros(1, 1, 1, rows, device=device, dtype=dtype)
        bias[..., rows - 9 :] = -torch.inf
        yield 'sum and norm', lambda: ops.add_norm(x, delta.clone(), norm)[1]
        yield 'rotary', lambda: ops.rotated(qkv.clone(), table, heads)[0]
        yield 'swiglu', lambda: ops.swiglu(packed.clone(), norm)
        scores = torch.randn(3, 2, config.patches_per_view, device=device)
        keep, ids = torch.rand(rows, device=device) < 0.3, torch.arange(rows, device=device)
        yield 'sum, norm, 8 bits', lambda: _values(ops.add_norm(x, delta.clone(), norm, small)[1])
        yield 'swiglu, 8 bits', lambda: _values(ops.swiglu(packed.clone(), small))
        yield 'the best of 3 x 2 views', lambda: ops.mark_best(scores, [24, 24])
        left, count = torch.zeros_like(ids[: rows // 2]), torch.zeros_like(live)
        yield 'compaction', lambda: ops.compact(keep, x[0], ids, left, count, rows)
        yield 'attention to a count', lambda: ops.attention(*parts, bias, live)[:, : rows - 9]
        yield 'layer norm', lambda: ops.add_layer_norm(picture, None, None, layer_norm)[1]
        yield 'product and gelu', lambda: ops.linear_gelu(picture, inward)

    for rows in (167, 293, 601):
        exact = {name: call().float() for name, call in calls(TORCH, rows)}
        for way, ops in ways.items():
            for name, call in calls(ops, rows):
                error = float((call().float() - exact[name]).norm() / exact[name].norm())
                yield {'operation': name, 'rows': rows, 'way': way,
                       'us': 1e6 * seconds_of(call, device), 'against torch': error}  # fmt: skip
