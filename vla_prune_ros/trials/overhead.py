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
import json
import os
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
    p = argparse.ArgumentParser(
        prog='overhead',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument('--ticks', type=int, default=400, help='observations (default: 400)')
    p.add_argument('--warm-up', type=int, default=20, help='more, left out (default: 20)')
    p.add_argument('--rate', type=float, default=20.0, help='observations per second at most')
    p.add_argument('--mode', default='none', help='pruning mode (default: none)')
    p.add_argument('--size', type=int, default=256, help='side of the pictures (default: 256)')
    p.add_argument('--checkpoint', default='', help='checkpoint; default: the embedded policy')
    p.add_argument('--threads', type=int, default=1, help='CPU threads of each model (default: 1)')
    p.add_argument('--note', default='', help='a remark for the page, such as: shared machine')
    p.add_argument('--out', type=Path, default=Path('out/overhead'), help='output directory')
    p.add_argument('--domain-id', type=int, default=None, help='ROS_DOMAIN_ID; default: drawn')
    p.add_argument('--patience', type=float, default=60.0, help='seconds to wait (default: 60)')
    p.add_argument('--require', action='store_true', help=f'exit code 1 above {BUDGET:g} ms p95')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 when it was measured and written."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser().parse_args(argv)
    if args.ticks < 1 or args.warm_up < 0 or args.rate <= 0 or args.size < 16:
        print('overhead: ticks, rate and size must be positive', file=sys.stderr)
        return 2
    return exit_code_of('overhead', lambda: run(args, argv))


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start the node, measure by turns, write the tables."""
    isolate(args.domain_id)
    from vla_prune_ros.trials.driver import Driver

    parameters = [
        f'torch_threads:={args.threads}',
        f'pruning.mode:={args.mode}',
        f'default_instruction:={INSTRUCTION}',
        'device:=cpu',
        'max_observation_age:=0.0',
    ]
    if args.checkpoint:
        parameters.append(f'checkpoint:={Path(args.checkpoint).resolve()}')
    with Children(args.out, node_environment()) as children:
        children.start('policy_node', node_command('policy_node', parameters))
        with Driver(children.check, args.patience) as driver:
            driver.wait_until_active()
            ticks = measure(args, driver)
            info = driver.info
        codes = children.stop()
    summary = summarise(ticks[args.warm_up :])
    write(args, argv, summary, info)
    if any(codes.values()):
        print(f'overhead: policy_node ended with exit code {codes}', file=sys.stderr)
        return 1
    return 1 if args.require and summary['added']['p95'] > BUDGET else 0


def measure(args: argparse.Namespace, driver: Any) -> list[dict[str, float]]:
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
        driver.spin(max(0.0, due - time.perf_counter()))
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


def row(reply: Any, direct: float) -> dict[str, float]:
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
    args: argparse.Namespace, argv: Sequence[str], summary: dict[str, Any], info: dict[str, str]
) -> None:
    """Print the table and write both files."""
    from vla_prune_ros.evaluation.report import command_line, environment

    within = summary['added']['p95'] <= BUDGET
    verdict = (
        f'The node adds {summary["added"]["p95"]:.2f} ms at p95, which is '
        f'{"within" if within else "above"} the budget of {BUDGET:g} ms.'
    )
    command = command_line(argv, 'overhead')
    document = {
        'command': command,
        'note': args.note,
        'environment': environment(),
        'cores': len(os.sched_getaffinity(0)),
        'policy': {k: v for k, v in info.items() if k != 'checkpoint'},  # the hash tells
        'ticks': args.ticks,
        'budget_ms': BUDGET,
        'within_budget': within,
        'ms': summary,
    }
    page = [
        '# What the policy node adds to a direct call',
        f'`{command}`, {args.ticks} observations of two {args.size} x {args.size} pictures, '
        f'mode {args.mode}, {args.threads} thread(s) per model, by turns over DDS and direct. '
        f'Hardware: {info.get("hardware", "")}. {args.note}'.rstrip(),
        table(summary),
        verdict,
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / JSON).write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    (args.out / PAGE).write_text('\n\n'.join(page) + '\n', encoding='utf-8')
    print(f'\n{table(summary)}\n\n{verdict}\noverhead: written to {args.out}: {JSON}, {PAGE}')
