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

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.benchmark.kernels import (
    Row,
    attention,
    dtype_of,
    elapsed,
    elementwise,
    products,
    small_products,
)
from vla_prune_ros.command_line import environment, write_json
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.sizes import SIZES


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
    q = torch.randn(1, 2, 16, 64, device=device, dtype=dtype_of(device))
    with torch.profiler.profile() as trace:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    names = [e.key for e in trace.key_averages() if 'attention' in e.key]
    yield {'what': 'attention without a mask', 'value': ', '.join(names)}


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
            times = [elapsed(lambda call=call: (call(), _wait(device))) for _ in range(10)]
            found = call()
            found = found.cpu().numpy() if isinstance(found, Tensor) else np.stack(found)
            yield {'frame': f'{height}x{width}', 'pipeline': name, 'ms': 1e3 * median(times),
                   'equal': bool((found == wanted).all())}  # fmt: skip


def read(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """What it costs that the host learns one number of the device, ms."""
    value = torch.ones(1, dtype=torch.int32, device=device)
    work = torch.randn(1 << 20, device=device)
    if device.type != 'cuda':
        yield {'way': 'item', 'ms': 1e3 * median(elapsed(value.item) for _ in range(20))}
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
        yield {'way': name, 'ms': 1e3 * median(elapsed(call) for _ in range(200))}


def prompts(config: OpenVLAConfig, device: torch.device) -> Iterator[Row]:
    """First and later answers after instructions of several lengths: what a new one costs."""
    from vla_prune_ros.benchmark.scene import synthetic_queries
    from vla_prune_ros.benchmark.subject import random_subject
    from vla_prune_ros.policy import Observation

    size = next(name for name, known in SIZES.items() if known is config)
    subject = random_subject(size, dtype_of(device), str(device))
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
            while policy.catch_up():  # as a node does in between
                pass
        yield {'words': count, 'first ms': times[0], 'first': said[0],
               'later ms': median(times[1:]), 'later': said[-1]}  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


MEASURES: dict[str, Callable[[OpenVLAConfig, torch.device], Iterable[Row]]] = {
    f.__name__: f
    for f in (
        env,
        products,
        small_products,
        attention,
        elementwise,
        pictures,
        read,
        prompts,
    )
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
