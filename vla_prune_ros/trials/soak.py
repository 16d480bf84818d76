# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `soak`: very many observations, and whether memory and latency of the node stay flat.

The pruning mode changes all the time, as does the instruction; resident memory, threads and open
files of the node are sampled, and a line is fitted to the samples after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.ros.children import (
    Children,
    isolate,
    node_command,
    node_environment,
)
from vla_prune_ros.trials.command import exit_code_of

DESCRIPTION = """\
Ask a policy node for very many chunks, with changing modes, and fit lines to its memory and
latency. Exit code 1 if one of them grows. Writes soak.json."""
JSON = 'soak.json'
SETTLED = 0.2  # share of the run that is warm-up
SAMPLES = 200
# What counts as flat. A leak of one picture per tick would be a hundred times as much.
MAX_KB_PER_1000_TICKS = 150.0
MAX_LATENCY_GROWTH = 0.25  # of the median, from the first to the last settled quarter


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog='soak',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument('--ticks', type=int, default=20_000, help='observations (default: 20000)')
    p.add_argument('--seconds', type=float, default=0.0, help='instead: so long (3600: an hour)')
    p.add_argument('--modes', default='all', help='"all" or names with commas (default: all)')
    p.add_argument('--every', type=int, default=100, help='ticks between changes (default: 100)')
    p.add_argument('--size', type=int, default=128, help='side of the pictures (default: 128)')
    p.add_argument('--checkpoint', default='', help='checkpoint; default: the embedded policy')
    p.add_argument('--threads', type=int, default=1, help='CPU threads of the model (default: 1)')
    p.add_argument('--out', type=Path, default=Path('out/soak'), help='output directory')
    p.add_argument('--domain-id', type=int, default=None, help='ROS_DOMAIN_ID; default: drawn')
    p.add_argument('--patience', type=float, default=60.0, help='seconds to wait (default: 60)')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Soak; 0 when memory and latency stayed flat."""
    args = parser().parse_args(argv)
    if args.ticks < SAMPLES and not args.seconds:
        print(f'soak: at least {SAMPLES} ticks are needed', file=sys.stderr)
        return 2
    return exit_code_of('soak', lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Start the node, ask, judge, write."""
    from vla_prune_ros.trials.demo import chosen_modes

    isolate(args.domain_id)
    from vla_prune_ros.trials.driver import Driver

    modes = chosen_modes(args.modes)
    parameters = [f'torch_threads:={args.threads}', 'default_instruction:=go', 'device:=cpu']
    parameters.append('max_observation_age:=0.0')
    if args.checkpoint:
        parameters.append(f'checkpoint:={Path(args.checkpoint).resolve()}')
    with Children(args.out, node_environment()) as children:
        children.start('policy_node', node_command('policy_node', parameters))
        with Driver(children.check, args.patience) as driver:
            driver.wait_until_active()
            record = ask(args, driver, modes, children.pid('policy_node'))
        codes = children.stop()
    verdict = judge(record)
    verdict['exit_code'] = codes['policy_node']
    verdict['flat'] &= not codes['policy_node']
    args.out.mkdir(parents=True, exist_ok=True)
    document = {'modes': modes, **verdict, 'samples': record}
    (args.out / JSON).write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    print('\n'.join(f'{name:28} {value}' for name, value in verdict.items()))
    print(f'soak: written to {args.out / JSON}')
    return 0 if verdict['flat'] else 1


def ask(args: argparse.Namespace, driver: Any, modes: Sequence[str], pid: int) -> dict[str, list]:
    """Observations without a pause; one sample of everything at even distances."""
    from tqdm import tqdm

    from vla_prune_ros.trials.driver import scenes

    pool = scenes(16, args.size)
    every = max(1, args.ticks // SAMPLES)
    record: dict[str, list] = {
        name: [] for name in ('tick', 'seconds', 'kb', 'threads', 'files', 'ms', 'node_ms')
    }
    started, latencies, own = time.monotonic(), [], []
    bar = tqdm(total=0 if args.seconds else args.ticks, unit='tick', disable=None)
    tick = 0
    while time.monotonic() - started < args.seconds if args.seconds else tick < args.ticks:
        if tick % args.every == 0:
            driver.change(modes[tick // args.every % len(modes)], f'go {tick // args.every % 7}')
        reply = driver.ask(pool[tick % len(pool)])
        latencies.append(reply.round_trip_ms)
        own.append(reply.round_trip_ms - float(reply.stats['total_ms']))
        tick += 1
        bar.update()
        if tick % every == 0:
            now = process_sample(pid)
            now |= {'tick': tick, 'seconds': round(time.monotonic() - started, 2)}
            now |= {'ms': round(float(np.median(latencies)), 3)}
            now |= {'node_ms': round(float(np.median(own)), 3)}
            for name, value in now.items():
                record[name].append(value)
            latencies, own = [], []
    bar.close()
    return record


def process_sample(pid: int) -> dict[str, int]:
    """Resident memory in kB, threads and open files of a process."""
    status = Path(f'/proc/{pid}/status').read_text(encoding='ascii').splitlines()
    fields = dict(line.split(':', 1) for line in status if ':' in line)
    return {
        'kb': int(fields['VmRSS'].split()[0]),
        'threads': int(fields['Threads']),
        'files': len(list(Path(f'/proc/{pid}/fd').iterdir())),
    }


def judge(record: dict[str, list]) -> dict[str, Any]:
    """Slopes after the warm-up, and whether they are flat."""
    ticks = np.array(record['tick'], float)
    settled = ticks > SETTLED * ticks[-1]
    kb, node_ms = (np.array(record[name], float)[settled] for name in ('kb', 'node_ms'))
    quarter = max(1, len(kb) // 4)
    slope = float(np.polyfit(ticks[settled], kb, 1)[0]) * 1000.0
    before, after = np.median(node_ms[:quarter]), np.median(node_ms[-quarter:])
    growth = float(after / before - 1.0)
    grown = {
        name: record[name][-1] - record[name][len(ticks) // 5] for name in ('threads', 'files')
    }
    flat = (
        slope <= MAX_KB_PER_1000_TICKS
        and growth <= MAX_LATENCY_GROWTH
        and max(grown.values()) <= 0
    )
    return {
        'ticks': int(ticks[-1]),
        'seconds': record['seconds'][-1],
        'memory_kb': [int(kb[0]), int(kb[-1])],
        'memory_kb_per_1000_ticks': round(slope, 2),
        'node_ms_first_quarter': round(float(before), 3),
        'node_ms_last_quarter': round(float(after), 3),
        'latency_growth': round(growth, 4),
        'threads_grown': grown['threads'],
        'files_grown': grown['files'],
        'flat': bool(flat),
    }
