# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `soak`: very many observations, and whether memory and latency of the node stay flat.

The pruning mode changes all the time, as does the instruction; resident memory, threads, open
files and processor time of the node are sampled, and a line is fitted to the samples after a
warm-up. An observation without a chunk is counted and the run goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros.ros.children import Children, isolate, processor_seconds
from vla_prune_ros.trials import command

if TYPE_CHECKING:
    from vla_prune_ros.trials.driver import Driver

DESCRIPTION = """\
Ask a policy node for very many chunks, with changing modes, and fit lines to its memory and
latency. Exit code 1 if one of them grows or an observation is lost. Writes soak.json, soak.md."""
JSON, PAGE = 'soak.json', 'soak.md'
SETTLED = 0.2  # share of the run that is warm-up
SAMPLES = 200
PAUSED = 10.0  # observations per second of a run by the clock: a robot asks for fewer
REHEARSAL = 5  # ticks of every mode beforehand: each allocates its own when it is first used
# What counts as flat. A leak of one picture per tick would be a hundred times as much.
MAX_KB_PER_1000_TICKS = 150.0
NOISE_KB = 2048  # of the allocator, which a short run would take for a slope
MAX_GROWTH = 0.25  # of latency and processor time, from the first to the last settled quarter
GIVE_UP = 3  # observations lost in a row


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command.parser(
        'soak', DESCRIPTION, modes='all', size=128, checkpoint='', threads=1, note='',
        out=Path('out/soak'), domain_id=None, patience=60.0,
    )  # fmt: skip
    p.add_argument('--ticks', type=int, default=20_000, help='observations (default: 20000)')
    p.add_argument('--seconds', type=float, default=0.0, help='instead: so long (3600: an hour)')
    p.add_argument('--every', type=int, default=100, help='ticks between changes (default: 100)')
    p.add_argument(
        '--rate', type=float, default=None,
        help=f'observations per second at most; 0: no pause (default: {PAUSED:g} with --seconds)',
    )  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Soak; 0 when memory and latency stayed flat and nothing was lost."""
    return command.run_verb(parser(), run, argv, wrong)


def wrong(args: argparse.Namespace) -> str:
    """What cannot be judged."""
    if args.ticks < SAMPLES and not args.seconds:
        return f'at least {SAMPLES} ticks are needed'
    if args.seconds < 0 or args.every < 1 or args.size < 16 or (args.rate or 0) < 0:
        return 'seconds, every, size and rate must be positive'
    return ''


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start the node, ask, judge, write."""
    from vla_prune_ros.trials.demo import chosen_modes

    isolate(args.domain_id)
    from vla_prune_ros.command_line import command_line, environment
    from vla_prune_ros.ros.client import Client
    from vla_prune_ros.trials.driver import Driver, policy_parameters

    modes = chosen_modes(args.modes)
    more = ('default_instruction:=go', 'input_reliability:=reliable')
    with Children(args.out) as children:
        children.start_node('policy_node', policy_parameters(args, *more))
        with Client('vla_driver', children, args.patience, quick=True) as client:
            driver = Driver(client)
            driver.wait_until_connected()
            record, lost = ask(args, driver, modes, children.pid('policy_node'))
        codes = children.stop()
    verdict = judge(record, lost, codes['policy_node'])
    run = {
        'command': command_line(argv, 'soak'),
        'environment': environment(),
        'note': args.note,
        'modes': modes,
    }
    text = page(run, verdict)
    command.write(args.out / JSON, run | verdict | {'samples': record})
    command.write(args.out / PAGE, text)
    print(f'{text}\nsoak: written to {args.out}: {JSON}, {PAGE}')
    return 0 if verdict['flat'] else 1


def ask(
    args: argparse.Namespace, driver: Driver, modes: Sequence[str], pid: int
) -> tuple[dict[str, list], int]:
    """Ask for chunks; samples of everything at even distances, and how many were lost."""
    from tqdm import tqdm

    from vla_prune_ros.ros.client import GraphError
    from vla_prune_ros.trials.driver import scenes

    pool = scenes(16, args.size)
    for number, mode in enumerate(modes * 2):
        driver.change(mode, f'go {number % 7}')
        for scene in pool[:REHEARSAL]:
            driver.ask(scene)
    rate = (PAUSED if args.seconds else 0.0) if args.rate is None else args.rate
    expected = int(args.seconds * (rate or 50.0)) if args.seconds else args.ticks
    every = max(1, min(args.every, expected // (8 * len(modes))))  # quarters see every mode
    record: dict[str, list] = defaultdict(list)
    fresh: dict[str, list[float]] = defaultdict(list)  # since the last sample
    tick = lost = in_row = before = 0
    started = due = time.monotonic()
    share, busy = 0.0, processor_seconds(pid)
    bar = tqdm(total=round(args.seconds) or args.ticks, disable=None)
    while share < 1.0:
        if tick % every == 0:
            turn = tick // every
            driver.change(modes[turn % len(modes)], f'go {turn % 7}')
        tick += 1
        try:
            reply = driver.ask(pool[tick % len(pool)])
        except GraphError:
            lost, in_row = lost + 1, in_row + 1
            if in_row == GIVE_UP:
                if len(record['tick']) < SAMPLES // 10:  # nothing to judge
                    raise
                break
        else:
            in_row = 0
            fresh['ms'].append(reply.round_trip_ms)
            fresh['node_ms'].append(reply.round_trip_ms - float(reply.stats['total_ms']))
        elapsed = time.monotonic() - started
        share = elapsed / args.seconds if args.seconds else tick / args.ticks
        bar.update(round(min(1.0, share) * bar.total) - bar.n)
        if share * SAMPLES >= len(record['tick']) + 1 and fresh:
            now = process_sample(pid) | {'tick': tick, 'seconds': round(elapsed, 2)}
            now |= {name: round(float(np.median(values)), 3) for name, values in fresh.items()}
            spent, busy = busy, processor_seconds(pid)
            now['cpu_ms'] = round((busy - spent) * 1e3 / (tick - before), 3)
            now |= {'load': os.getloadavg()[0], 'lost': lost}
            for name, value in now.items():
                record[name].append(value)
            before = tick
            fresh.clear()
        if rate:
            due = max(due + 1.0 / rate, time.monotonic())
            driver.client.spin(due - time.monotonic())
    bar.close()
    return dict(record), lost


def process_sample(pid: int) -> dict[str, int]:
    """Resident memory in kB, threads and open files of a process."""
    status = Path(f'/proc/{pid}/status').read_text(encoding='ascii').splitlines()
    fields = dict(line.split(':', 1) for line in status if ':' in line)
    return {
        'kb': int(fields['VmRSS'].split()[0]),
        'threads': int(fields['Threads']),
        'files': len(list(Path(f'/proc/{pid}/fd').iterdir())),
    }


def judge(record: dict[str, list], lost: int = 0, exit_code: int = 0) -> dict[str, Any]:
    """Slopes after the warm-up, and whether they are flat.

    Latency that grew is forgiven if the machine was busier at the end and the node itself did not
    work more for an observation.
    """
    ticks = np.array(record['tick'], float)
    settled = ticks > SETTLED * ticks[-1]
    kb = np.array(record['kb'], float)[settled]
    slope = float(np.polyfit(ticks[settled], kb, 1)[0])
    risen = slope * (ticks[-1] - ticks[settled][0])
    quarter = max(1, len(kb) // 4)

    def ends(name: str) -> tuple[float, float]:
        values = np.array(record[name], float)[settled]
        return float(np.median(values[:quarter])), float(np.median(values[-quarter:]))

    latency, processor = ends('node_ms'), ends('cpu_ms')
    growth, work = (after / max(before, 1e-3) - 1.0 for before, after in (latency, processor))
    busier = np.subtract(*reversed(ends('load'))) > MAX_GROWTH
    grown = {
        name: record[name][-1] - record[name][len(ticks) // 5] for name in ('threads', 'files')
    }
    broken = {
        'memory': slope * 1000.0 > MAX_KB_PER_1000_TICKS and risen > NOISE_KB,
        'latency': growth > MAX_GROWTH and not (busier and work <= MAX_GROWTH),
        'threads': grown['threads'] > 0,
        'files': grown['files'] > 0,
        'losses': lost > 0,
        'exit code': exit_code != 0,
    }
    return {
        'ticks': int(ticks[-1]),
        'seconds': record['seconds'][-1],
        'memory_kb': [int(kb[0]), int(kb[-1])],
        'memory_kb_per_1000_ticks': round(slope * 1000.0, 2),
        'node_ms_first_quarter': round(latency[0], 3),
        'node_ms_last_quarter': round(latency[1], 3),
        'latency_growth': round(growth, 4),
        'processor_ms': [round(value, 3) for value in processor],
        'processor_growth': round(work, 4),
        'threads_grown': grown['threads'],
        'files_grown': grown['files'],
        'lost': lost,
        'exit_code': exit_code,
        'broken': [name for name, is_broken in broken.items() if is_broken],
        'flat': not any(broken.values()),
    }


def page(run: dict[str, Any], verdict: dict[str, Any]) -> str:
    """The result as Markdown."""
    from vla_prune_ros.evaluation.summary import table

    machine, v = run['environment'], verdict
    ending = 'stayed' if v['flat'] else f'did not all stay ({", ".join(v["broken"])})'
    rows = {
        'observations, of which lost': f'{v["ticks"]}, {v["lost"]}',
        'resident memory (MB)': ' to '.join(f'{kb / 1e3:.1f}' for kb in v['memory_kb']),
        'its slope (kB per 1000 observations)': v['memory_kb_per_1000_ticks'],
        'latency without the policy (ms)': (
            f'{v["node_ms_first_quarter"]:.2f} to {v["node_ms_last_quarter"]:.2f}'
        ),
        'processor time of the node (ms)': ' to '.join(f'{ms:.1f}' for ms in v['processor_ms']),
        'more threads, more open files': f'{v["threads_grown"]}, {v["files_grown"]}',
    }
    head = f'`{run["command"]}`, {machine["date"]}, {machine["cpu"]}, {machine["cores"]} cores.'
    text = (
        f'After {v["seconds"] / 60:.0f} minutes and {v["ticks"]} observations in the modes '
        f'{", ".join(run["modes"])}: memory, latency, threads, open files and losses {ending} '
        'within their bounds.'
    )
    bounds = (
        f'The first {SETTLED:.0%} of the run are left out. Times are medians of the first and the '
        f'last quarter of the rest; they may grow by {MAX_GROWTH:.0%}. Memory may grow by '
        f'{MAX_KB_PER_1000_TICKS:g} kB per 1000 observations, or {NOISE_KB / 1024:g} MB in all.'
    )
    parts = [
        '# Soak',
        f'{head} {run["note"]}'.rstrip(),
        text,
        table(['', ''], rows.items()),
        bounds,
    ]
    return '\n\n'.join(parts) + '\n'
