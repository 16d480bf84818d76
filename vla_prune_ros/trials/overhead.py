# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `overhead`: what the policy node adds to a direct call of the policy.

One run does both by turns: `VLAPolicy.step` in this process, and the same observation over DDS to
a policy_node of its own process. What the node adds to an observation is the time from the
publication of its last message to the arrival of its chunk, less the `VLAPolicy.step` that the
node made for it. The messages before the last are published meanwhile by whoever has them.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros.ros.children import Children, isolate
from vla_prune_ros.trials import command

if TYPE_CHECKING:
    from vla_prune_ros.trials.driver import Driver, Reply

DESCRIPTION = """\
Measure what the policy node adds to a direct VLAPolicy.step, by stage, in one run.
Writes overhead.json and overhead.md."""
JSON, PAGE = 'overhead.json', 'overhead.md'
BUDGET = 3.0  # ms at p95
INSTRUCTION = 'pick up the red block'
ROWS = {
    'added': 'added by the node: all below, without the policy',
    'convert': 'messages to arrays, matching',
    'queue': "waiting for the worker's thread",
    'prepare': 'history and observation',
    'check': 'shape, range, finite, next query',
    'publish': 'chunk to message, publishing',
    'dds': 'DDS there (last picture) and back, both executors',
    'step': 'VLAPolicy.step in the node',
    'preprocess': '  of it: pictures and text to tensors',
    'round_trip': 'last message of the observation to chunk',
    'direct': 'VLAPolicy.step in this process',
    'sending': 'publishing the messages before the last, in this process',
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command.parser(
        'overhead', DESCRIPTION, size=256, checkpoint='', threads=1, note='',
        out=Path('out/overhead'), domain_id=None, patience=60.0,
    )  # fmt: skip
    p.add_argument('--ticks', type=int, default=400, help='observations (default: 400)')
    p.add_argument('--warm-up', type=int, default=20, help='more, left out (default: 20)')
    p.add_argument('--rate', type=float, default=20.0, help='observations per second at most')
    p.add_argument('--mode', default='none', help='pruning mode (default: none)')
    p.add_argument('--audit', action='store_true', help='with the self-audit in idle time')
    p.add_argument('--require', action='store_true', help=f'exit code 1 above {BUDGET:g} ms p95')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 when it was measured and written."""
    return command.run_verb(parser(), run, argv, wrong)


def wrong(args: argparse.Namespace) -> str:
    """What cannot be measured."""
    bad = args.ticks < 1 or args.warm_up < 0 or args.rate <= 0 or args.size < 16
    return 'ticks, rate and size must be positive' if bad else ''


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start the node, measure by turns, write the tables."""
    isolate(args.domain_id)
    from vla_prune_ros.ros.client import Client
    from vla_prune_ros.trials.driver import Driver, policy_parameters, scenes

    more = (
        f'pruning.mode:={args.mode}',
        f'default_instruction:={INSTRUCTION}',
        f'audit.enabled:={str(args.audit).lower()}',
    )
    with Children(args.out) as children:
        children.start_node('policy_node', policy_parameters(args, *more))
        with Client('vla_driver', children, args.patience, quick=True) as client:
            driver = Driver(client)
            driver.wait_until_connected()
            ticks = measure(args, driver)
            info = driver.policy.info.latest
            audits = int(driver.ask(scenes(1, args.size)[0]).stats.get('audit.count', 0))
        good = command.ended_well('overhead', children.stop())
    summary = summarise(ticks[args.warm_up :])
    write(args, argv, summary, info, audits)
    missed = args.require and summary['added']['p95'] > BUDGET
    return 0 if good and not missed else 1


def measure(args: argparse.Namespace, driver: Driver) -> list[dict[str, float]]:
    """Both ways for every observation, in changing order; one row of ms per observation."""
    import torch
    from tqdm import tqdm

    from vla_prune_ros import weights
    from vla_prune_ros.policy import Observation, VLAPolicy
    from vla_prune_ros.trials.driver import scenes

    torch.set_num_threads(args.threads)
    policy = VLAPolicy.from_pretrained(args.checkpoint or weights.directory('tabletop'), args.mode)
    policy.warm_up()
    pool = scenes(16, args.size)
    gc.collect()
    gc.freeze()  # as the node does
    rows, due = [], time.perf_counter()
    for number in tqdm(range(args.ticks + args.warm_up), unit='tick', disable=None):
        driver.client.spin(max(0.0, due - time.perf_counter()))
        due = max(due, time.perf_counter()) + 1.0 / args.rate
        scene = pool[number % len(pool)]
        observation = Observation(scene.images, scene.proprio, INSTRUCTION, time.time())
        direct_first = number % 2 == 0
        if direct_first:
            direct = _step(policy, observation)
        reply = driver.ask(scene)
        if not direct_first:
            direct = _step(policy, observation)
        rows.append(row(reply, direct))
    return rows


def _step(policy: Any, observation: Any) -> float:
    started = time.perf_counter()
    policy.step(observation)
    return (time.perf_counter() - started) * 1e3


def row(reply: Reply, direct: float) -> dict[str, float]:
    """Where the time of one observation went, ms."""
    stages = ('convert', 'queue', 'prepare', 'check', 'publish')
    stats = reply.stats
    parts = {stage: float(stats[f'node.{stage}_ms']) for stage in stages}
    step = float(stats['node.step_ms'])
    added = reply.round_trip_ms - step
    return {
        'added': added,
        **parts,
        'dds': added - sum(parts.values()),
        'step': step,
        'preprocess': float(stats['preprocess_ms']),
        'round_trip': reply.round_trip_ms,
        'direct': direct,
        'sending': reply.publish_ms,
    }


def summarise(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """p50, p95 and max in ms of every column."""
    result = {}
    for name in ROWS:
        values = np.array([r[name] for r in rows])
        p50, p95 = np.percentile(values, (50, 95))
        result[name] = {
            'p50': round(float(p50), 4),
            'p95': round(float(p95), 4),
            'max': round(float(values.max()), 4),
        }
    return result


def table(summary: dict[str, dict[str, float]]) -> str:
    """The summary in Markdown."""
    lines = ['| ms | p50 | p95 | max |', '|---|--:|--:|--:|']
    lines += [
        f'| {text} | {summary[name]["p50"]:.2f} | {summary[name]["p95"]:.2f} '
        f'| {summary[name]["max"]:.2f} |'
        for name, text in ROWS.items()
    ]
    return '\n'.join(lines)


def write(
    args: argparse.Namespace,
    argv: Sequence[str],
    summary: dict[str, Any],
    info: dict[str, str],
    audits: int,
) -> None:
    """Print the table and write both files."""
    from vla_prune_ros.command_line import command_line, environment

    within = summary['added']['p95'] <= BUDGET
    verdict = (
        f'The node adds {summary["added"]["p95"]:.2f} ms at p95, which is '
        f'{"within" if within else "above"} the budget of {BUDGET:g} ms.'
    )
    words = command_line(argv, 'overhead')
    document = {
        'command': words,
        'note': args.note,
        'environment': environment(),
        'cores': len(os.sched_getaffinity(0)),
        'policy': {k: v for k, v in info.items() if k != 'checkpoint'},  # the hash tells
        'ticks': args.ticks,
        'audits': audits,
        'budget_ms': BUDGET,
        'within_budget': within,
        'ms': summary,
    }
    audited = f' Chunks audited in between: {audits}.' if args.audit else ''
    page = [
        '# What the policy node adds to a direct call',
        f'`{words}`, {args.ticks} observations of two {args.size} x {args.size} pictures, '
        f'mode {args.mode}, {args.threads} thread(s) per model, by turns over DDS and direct. '
        f'Hardware: {info.get("hardware", "")}.{audited} {args.note}'.rstrip(),
        table(summary),
        verdict,
    ]
    command.write(args.out / JSON, document)
    command.write(args.out / PAGE, '\n\n'.join(page) + '\n')
    print(f'\n{table(summary)}\n\n{verdict}\noverhead: written to {args.out}: {JSON}, {PAGE}')
