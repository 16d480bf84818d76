# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The steps of `gpu_check`, cheapest and most telling first: what they run, and what came out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vla_prune_ros.benchmark.journal import summarise

_SHOWN = ('none', 'specprune', 'lightvla')
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where steps run.

    Attributes:
        out: directory of the results; a step has a folder of its name in it.
        root: the checkout.
        rehearse: tiny sizes on a CPU.
    """

    out: Path
    root: Path
    rehearse: bool = False


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: of the step, its folder and its files.
        about: what it tells, for a reader.
        seconds: its limit on a GPU.
        command: what is run, in the checkout.
        result: rows with the same keys from its folder, [] if there is nothing.
        environment: variables beside those of the caller.
    """

    name: str
    about: str
    seconds: float
    command: Callable[[Place], list[str]]
    result: Callable[[Path], Rows]
    environment: Mapping[str, str] = field(default_factory=dict)

    def limit(self, place: Place) -> float:
        """Seconds after which it is ended; a CPU under test may be slow."""
        return 300.0 if place.rehearse else self.seconds


def gpu_test_files(root: Path) -> list[str]:
    """Test files that have tests for a GPU, by their path in the checkout.

    Raises:
        FileNotFoundError: the checkout has no tests.
    """
    files = sorted((root / 'test').glob('test_*.py'))
    if not files:
        raise FileNotFoundError(f'{root / "test"} has no tests; gpu_check needs a checkout')
    marked = (f for f in files if 'pytest.mark.gpu' in f.read_text(encoding='utf-8'))
    return [str(path.relative_to(root)) for path in marked]


# -- commands ----------------------------------------------------------------------------------
def _tests(place: Place) -> list[str]:
    command = [sys.executable, '-m', 'pytest', '-v', '--tb=short', '-p', 'no:cacheprovider']
    command += [f'--junitxml={place.out / "tests" / "junit.xml"}', *gpu_test_files(place.root)]
    # Where there is no GPU: the same files, whose tests on the stand-in are not marked.
    chosen = 'not gpu and not slow' if place.rehearse else 'gpu'
    few = ['-k', 'bit_for_bit or waits_for_the_device'] if place.rehearse else []
    return [*command, '-m', chosen, *few]


def _measure(what: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        size = ['--size', 'tiny', '--device', 'cpu'] if place.rehearse else []
        out = str(place.out / what / 'result.json')
        return [sys.executable, '-m', 'vla_prune_ros.benchmark.single', what, '--out', out, *size]

    return command


def _bench(
    name: str, ticks: int, *more: str, modes: tuple[str, ...] = _SHOWN
) -> Callable[[Place], list[str]]:
    """One run of `bench`."""

    def command(place: Place) -> list[str]:
        command = [sys.executable, '-m', 'vla_prune_ros', 'bench', '--frames', 'synthetic']
        command += ['--out', str(place.out / name), '--modes', ','.join(modes)]
        if not place.rehearse:
            command += ['--size', '7b', '--device', 'cuda', '--dtype', 'bfloat16']
            return [*command, '--image-pipeline', 'device', '--ticks', str(ticks), *more]
        few = ['--size', 'tiny', '--layers', '3', '--threads', '1', '--ticks', '2']
        return [*command, *few, '--warm-up', '1', *more]

    return command


# -- results -----------------------------------------------------------------------------------
def _of_tests(folder: Path) -> Rows:
    path = folder / 'junit.xml'
    if not path.exists():
        return []
    suite = next(ElementTree.parse(path).iter('testsuite'))
    bad = [
        f'{case.get("classname")}::{case.get("name")}'
        for case in suite.iter('testcase')
        if case.find('failure') is not None or case.find('error') is not None
    ]
    counts = {key: int(suite.get(key, 0)) for key in ('tests', 'failures', 'errors', 'skipped')}
    return [{**counts, 'which': '; '.join(bad) or '-'}]


def _of_single(folder: Path) -> Rows:
    path = folder / 'result.json'
    return json.loads(path.read_text(encoding='utf-8'))['rows'] if path.exists() else []


def _of_bench(folder: Path) -> Rows:
    """One row per arm; of a run that was cut short, what its journal holds."""
    path = folder / 'results.json'
    if not path.exists():
        return summarise(folder / 'samples.jsonl')
    content = json.loads(path.read_text(encoding='utf-8'))
    rows = []
    for arm in content['arms']:
        total, stages = arm['latency_ms']['total'], arm['latency_ms']
        profile = content['profiles'].get(arm['name'], {})
        rows.append({
            'arm': arm['name'],
            'ms p50': total['p50'],
            'p95': total['p95'],
            'p99': total['p99'],
            'floor': arm['floor_ms']['total'],
            'of floor': arm['of_floor'],
            'kept': arm['kept_last_layer'],
            **{s: stages.get(s, {}).get('p50', 0.0)
               for s in ('preprocess', 'vision', 'decoder', 'select', 'head', 'pass')},
            'captures': arm['runtime'].get('captures', '-'),
            'fallbacks': arm['runtime'].get('fallbacks', '-'),
            'idle': profile.get('gap_share', '-'),
            'launches': profile.get('launches', '-'),
        })  # fmt: skip
    return rows


# -- the list ----------------------------------------------------------------------------------
def _steps() -> list[Step]:
    few = ('--no-reference',)
    budgets = [
        word
        for keep in (40, 78, 110, 150, 200, 256)
        for word in ('--variant', f'keep{keep}=lightvla,keep={keep}')
    ]
    return [
        Step('env', 'versions, GPU, attention backend', 20, _measure('env'), _of_single),
        Step('tests', 'every test for a GPU', 150, _tests, _of_tests),
        Step('quick', 'first times of the published size', 120, _bench('quick', 10, *few),
             _of_bench),
        Step('bench', 'all modes and both plain paths, targets', 300,
             _bench('bench', 40, modes=('all',)), _of_bench),
        Step('profile', 'kernels and gaps of three modes', 90,
             _bench('profile', 6, *few, '--profile'), _of_bench),
        Step('products', 'matrix products by shape, rows and way', 120, _measure('products'),
             _of_single),
        Step('small_products', 'the same with weights in 8 and 4 bits', 40,
             _measure('small_products'), _of_single),
        Step('attention', 'attention by shape and backend', 40, _measure('attention'),
             _of_single),
        Step('elementwise', 'kernels against torch between the products', 40,
             _measure('elementwise'), _of_single),
        Step('pictures', 'frames to policy images', 30, _measure('pictures'), _of_single),
        Step('read', 'what one count costs that the host must know', 20, _measure('read'),
             _of_single),
        Step('prompts', 'instructions of several lengths', 60, _measure('prompts'), _of_single),
        Step('budgets', 'time by number of tokens', 90,
             _bench('budgets', 10, *few, *budgets, modes=('none',)), _of_bench),
        Step('plain', 'without recordings', 60, _bench('plain', 6, *few, '--runtime', 'plain'),
             _of_bench),
        Step('int8', 'weights in 8-bit integers', 80,
             _bench('int8', 10, *few, '--quantization', 'int8'), _of_bench),
        Step('fp8', 'weights in float8', 80, _bench('fp8', 10, *few, '--quantization', 'fp8'),
             _of_bench),
        Step('int4', 'weights in 4 bits', 80, _bench('int4', 10, *few, '--quantization', 'int4'),
             _of_bench),
        Step('compile', 'layers through torch.compile', 140,
             _bench('compile', 10, *few, '--runtime', 'compile'), _of_bench),
    ]  # fmt: skip


STEPS: dict[str, Step] = {step.name: step for step in _steps()}
