# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`bench --startup`: how long it takes until a policy answers.

Every figure is taken in a process of its own: the import of the package and of its nodes, the
embedded policy from the start of Python to its first chunk, and the loading of a checkpoint
against the rate at which the same files come off the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vla_prune_ros.command_line import command_line, environment, write_json

RUNS = 5
NAME = 'startup.json'
_IMPORT = """\
import sys, time
started = time.perf_counter()
import {module}
print(time.perf_counter() - started, 'torch' in sys.modules)
"""
_READY = """\
import json, sys, time
import numpy as np
from vla_prune_ros.policy import Observation, VLAPolicy
imported = time.time()
policy = VLAPolicy.from_pretrained(sys.argv[1], 'none', sys.argv[2], sys.argv[3])
loaded = time.time()
policy.warm_up()
config, frame = policy.config, np.zeros((256, 256, 3), np.uint8)
state = np.zeros(config.proprio_dim)
seen = Observation(dict.fromkeys(config.cameras, frame), state, 'pick it up', 0.0)
policy.step(seen)
print(json.dumps([imported, loaded, time.time()]))
"""
_LOAD = """\
import sys, time
import torch
from vla_prune_ros.vla import OpenVLAOFT
started = time.perf_counter()
model = OpenVLAOFT.from_pretrained(sys.argv[1], getattr(torch, sys.argv[3]), sys.argv[2])
if torch.device(sys.argv[2]).type == 'cuda':
    torch.cuda.synchronize()
print(time.perf_counter() - started)
"""
TARGETS = {'import_s': 0.3, 'ready_s': 5.0, 'cold_against_read': 1.3}


def measure_startup(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure, print and write `startup.json`; see `bench --help` for the arguments."""
    from vla_prune_ros import weights
    from vla_prune_ros.evaluation.rollouts import checkpoint_directory

    embedded = weights.directory('tabletop')
    result: dict[str, Any] = {
        'imports': {m: import_time(m) for m in ('vla_prune_ros', 'vla_prune_ros.__main__')},
        'ready': ready_time(embedded, 'cpu', 'float32'),
    }
    with tempfile.TemporaryDirectory() as scratch:
        directory = (
            checkpoint_directory(args.checkpoint)
            if args.checkpoint
            else _random_checkpoint(args.size or 'small', args.layers, Path(scratch))
        )
        result['load'] = load_rate(directory, args.device, args.dtype)
        what = 'random ' + (args.size or 'small')
        if args.layers:
            what += f' with {args.layers} layers'
        result['load']['checkpoint'] = args.checkpoint or what
    imports = result['imports']['vla_prune_ros']
    result['targets'] = {
        'import of the package below 0.3 s, without torch': imports['s'] < TARGETS['import_s']
        and not imports['torch'],
        'embedded policy ready below 5 s': result['ready']['s'] < TARGETS['ready_s'],
        'loading at most 1.3 times as long as plain reading': result['load']['cold_against_read']
        <= TARGETS['cold_against_read'],
    }
    result |= {'command': command_line(argv, 'bench'), 'environment': environment(),
               'load_average': os.getloadavg()[0], 'note': args.note}  # fmt: skip
    write_json(args.out / NAME, result)
    print(startup_table(result))
    print(f'\nbench: wrote {args.out / NAME}')
    return 0


def import_time(module: str, runs: int = RUNS) -> dict[str, Any]:
    """Median seconds to import a module in a fresh Python, and whether torch came with it."""
    answers = [_python(_IMPORT.format(module=module)).split() for _ in range(runs)]
    return {'s': median(float(s) for s, _ in answers), 'torch': answers[0][1] == 'True'}


def ready_time(directory: Path, device: str, dtype: str, runs: int = 3) -> dict[str, float]:
    """Median seconds from the start of Python to the first chunk, in parts."""
    parts = []
    for _ in range(runs):
        started = time.time()
        marks = json.loads(_python(_READY, str(directory), device, dtype))
        parts.append([b - a for a, b in zip([started, *marks], marks, strict=False)])
    names = ('import_s', 'load_s', 'first_chunk_s')
    result = dict(zip(names, map(median, zip(*parts, strict=True)), strict=True))
    return {**result, 's': median(sum(one) for one in parts)}


def load_rate(directory: Path, device: str, dtype: str) -> dict[str, float]:
    """Loading against reading: both from the disk, and loading once more from memory."""
    files = [p for p in sorted(directory.iterdir()) if p.suffix in ('.safetensors', '.pt')]
    size = sum(p.stat().st_size for p in files)
    _python('import vla_prune_ros.vla; print()')  # the libraries are in memory for either load
    dropped = _drop(files)
    cold = float(_python(_LOAD, str(directory), device, dtype))
    warm = float(_python(_LOAD, str(directory), device, dtype))
    _drop(files)
    started = time.perf_counter()
    for path in files:
        with path.open('rb', buffering=0) as file:
            while file.read(1 << 24):
                pass
    read = time.perf_counter() - started
    return {
        'bytes': size, 'dropped_from_memory': dropped, 'cold_s': cold, 'warm_s': warm,
        'read_s': read, 'cold_against_read': cold / read,
    }  # fmt: skip


def startup_table(result: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    from vla_prune_ros.evaluation.summary import table

    load, ready = result['load'], result['ready']
    lines = [
        *[[f'import {name}{" (with torch)" if one["torch"] else ""}', f'{one["s"]:.3f} s']
          for name, one in result['imports'].items()],
        ['embedded policy: start of Python to first chunk', f'{ready["s"]:.2f} s'],
        *[[f'- of it {part[:-2].replace("_", " ")}', f'{ready[part]:.2f} s']
          for part in ('import_s', 'load_s', 'first_chunk_s')],
        [f'load of {load["checkpoint"]}, {load["bytes"] / 1e6:.0f} MB, from the disk',
         f'{load["cold_s"]:.2f} s, {load["bytes"] / load["cold_s"] / 1e9:.2f} GB/s'],
        ['- of the same files from memory',
         f'{load["warm_s"]:.2f} s, {load["bytes"] / load["warm_s"] / 1e9:.2f} GB/s'],
        ['- plain reading of the same files from the disk',
         f'{load["read_s"]:.2f} s, {load["bytes"] / load["read_s"] / 1e9:.2f} GB/s'],
        *[[text, 'met' if good else 'not met'] for text, good in result['targets'].items()],
    ]  # fmt: skip
    return table(['start-up', ''], lines)


def _random_checkpoint(size: str, n_layers: int | None, directory: Path) -> Path:
    import torch

    from vla_prune_ros.vla.checkpoint import save_pretrained
    from vla_prune_ros.vla.sizes import random_model

    model = random_model(size, torch.bfloat16, n_layers=n_layers)
    save_pretrained(model, directory, torch.bfloat16)
    return directory


def _drop(files: Sequence[Path]) -> bool:
    """Ask the kernel to forget the contents of files; whether the call exists here."""
    if not hasattr(os, 'posix_fadvise'):
        return False
    for path in files:
        with path.open('rb') as file:
            os.fsync(file.fileno())  # only what is on the disk can be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _python(code: str, *arguments: str) -> str:
    """Output of a fresh Python.

    Raises:
        RuntimeError: it failed; the text says how.
    """
    done = subprocess.run(
        [sys.executable, '-c', code, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout.rstrip('\n').rpartition('\n')[2]
