# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One thing at a time, for `gpu_check`: versions, products, attention, pictures, one read.

    python -m vla_prune_ros.benchmark.single products --size 7b --device cuda --out result.json

Each figure is written as soon as it is there. On a GPU the work runs inside a graph, on as many
weights in turn as no cache holds, with random numbers, because zeros run faster.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla_prune_ros.command_line import environment, write_json
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.sizes import SIZES

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
        return median(_elapsed(call) for _ in range(3))
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


def _elapsed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# -- what is measured --------------------------------------------------------------------------
def env(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """Versions, the GPU, and which attention torch would choose."""
    said = environment()
    yield {'what': 'python', 'value': said['python']}
    for name, version in said['packages'].items():
        yield {'what': name, 'value': version}
    yield {'what': 'CUDA of torch', 'value': str(torch.version.cuda)}
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        yield {'what': 'GPU', 'value': properties.name}
        yield {'what': 'compute capability', 'value': f'{properties.major}.{properties.minor}'}
        yield {'what': 'memory GB', 'value': properties.total_memory / 1e9}
        yield {'what': 'cuDNN', 'value': torch.backends.cudnn.version()}
    q = torch.randn(1, 2, 16, 64, device=device, dtype=_dtype(device))
    with torch.profiler.profile() as trace:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    names = [e.key for e in trace.key_averages() if 'attention' in e.key]
    yield {'what': 'attention without a mask', 'value': ', '.join(names)}


def products(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """The four products of a decoder layer by rows: rate, bandwidth, error, by way."""
    d, hidden = config.llama.hidden_size, config.llama.mlp_hidden
    shapes = {'qkv': (3 * d, d), 'o': (d, d), 'gate_up': (2 * hidden, d), 'down': (d, hidden)}
    dtype = _dtype(device)
    for name, (out, inner) in shapes.items():
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


def attention(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """Attention of the towers and of the decoder, by backend, with a bias and without."""
    llama = config.llama
    towers = [
        (2, tower.heads, tower.n_patches + tower.n_prefix, tower.dim // tower.heads)
        for tower in (config.featurizer, config.fused_featurizer)
    ]
    decoder = [(1, llama.n_heads, n, llama.head_dim) for n in (167, 256, 293, 601, 608)]
    for shape in [*towers, *decoder]:
        q, k, v = (torch.randn(shape, device=device, dtype=_dtype(device)) for _ in 'qkv')
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


def elementwise(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """What happens between the products, in torch and in kernels, and how far they are apart."""
    from vla_prune_ros.runtime.fast import operations_for
    from vla_prune_ros.vla.decoder import RMSNorm, rope_table
    from vla_prune_ros.vla.operations import TORCH

    llama, tower, dtype = config.llama, config.featurizer, _dtype(device)
    d, heads = llama.hidden_size, llama.n_heads
    norm = RMSNorm(d, llama.norm_eps).to(device, dtype)
    layer_norm = torch.nn.LayerNorm(tower.dim).to(device, dtype)
    inward = torch.nn.Linear(tower.dim, tower.mlp_hidden).to(device, dtype)
    ways = {ops.name: ops for ops in (TORCH, operations_for(device))}

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


def pictures(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """Two camera frames of noise to policy images, ms, and whether they are the host's."""
    from vla_prune_ros.runtime.images import DeviceImages
    from vla_prune_ros.vla.processor import preprocess_image

    rng = np.random.default_rng(0)
    for height, width in ((256, 256), (480, 640)):
        frames = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(2)]
        wanted = np.stack([preprocess_image(frame, config.image_size) for frame in frames])
        on_device = DeviceImages(config.image_size, device)
        for name, call in (
            ('host', lambda f=frames: [preprocess_image(x, config.image_size) for x in f]),
            ('device', lambda f=frames, p=on_device: p(f)),
        ):
            call()
            times = [_elapsed(lambda call=call: (call(), _wait(device))) for _ in range(10)]
            found = call()
            found = found.cpu().numpy() if isinstance(found, Tensor) else np.stack(found)
            yield {'frame': f'{height}x{width}', 'pipeline': name, 'ms': 1e3 * median(times),
                   'equal': bool((found == wanted).all())}  # fmt: skip


def read(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """What it costs that the host learns one number of the device, ms."""
    value = torch.ones(1, dtype=torch.int32, device=device)
    work = torch.randn(1 << 20, device=device)
    if device.type != 'cuda':
        yield {'way': 'item', 'ms': 1e3 * median(_elapsed(value.item) for _ in range(20))}
        return
    pinned, event = torch.empty_like(value, device='cpu').pin_memory(), torch.cuda.Event()

    def polled() -> None:
        work.add_(1)
        pinned.copy_(value, non_blocking=True)
        event.record()
        while not event.query():
            pass

    def itself() -> None:
        work.add_(1)
        value.item()

    def nothing() -> None:
        work.add_(1)
        torch.cuda.synchronize(device)

    for name, call in (('item', itself), ('pinned copy, polled', polled), ('wait', nothing)):
        call()
        yield {'way': name, 'ms': 1e3 * median(_elapsed(call) for _ in range(200))}


def prompts(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """First and later answers after instructions of several lengths: what a new one costs."""
    from vla_prune_ros.benchmark.scene import synthetic_queries
    from vla_prune_ros.benchmark.subject import random_subject
    from vla_prune_ros.policy import Observation

    size = next(name for name, known in SIZES.items() if known is config)
    subject = random_subject(size, _dtype(device), str(device))
    policy = subject.policy('none')
    words = subject.instruction.split()
    policy.warm_up(instruction=subject.instruction)
    query = synthetic_queries(1)[0]
    stamp = 0.0
    for count in (len(words), 3, 8, 3 * len(words), 6 * len(words), len(words)):
        instruction = ' '.join((words * 6)[:count])
        times, said = [], []
        for _ in range(6):
            stamp += 0.4
            seen = Observation(query.images, query.proprio, instruction, stamp)
            started = time.perf_counter()
            chunk = policy.step(seen)
            times.append(1e3 * (time.perf_counter() - started))
            said.append(chunk.stats.get('runtime', 'plain'))
        yield {'words': count, 'first ms': times[0], 'first': said[0],
               'later ms': median(times[1:]), 'later': said[-1]}  # fmt: skip


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == 'cuda' else torch.float32


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


MEASURES: dict[str, Callable[[OpenVLAConfig, torch.device], Iterable[Row]]] = {
    f.__name__: f for f in (env, products, attention, elementwise, pictures, read, prompts)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one thing and write its rows as they come."""
    p = argparse.ArgumentParser(prog='single', description=__doc__)
    p.add_argument('what', choices=MEASURES)
    p.add_argument('--size', default='7b', choices=SIZES)
    p.add_argument('--device', default='cuda')
    p.add_argument('--out', type=Path, required=True)
    args = p.parse_args(argv)
    device = torch.device(args.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        print('single: torch finds no GPU here', file=sys.stderr)
        return 2
    rows: list[Row] = []
    with torch.inference_mode():
        for row in MEASURES[args.what](SIZES[args.size], device):
            rows.append(row)
            print(row, flush=True)
            write_json(args.out, {'what': args.what, 'rows': rows})
    return 0


if __name__ == '__main__':
    sys.exit(main())
