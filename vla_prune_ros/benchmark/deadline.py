# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `deadline`: a budget that follows the deadline against fixed ones, while the load changes.

On one core of this machine a random model of a named size is sampled with every budget, beside
busy loops or by its processor time; and a checkpoint is run live, by the governor and with fixed
budgets, while real busy loops come and go. Then the embedded policy plays closed-loop episodes in
simulated time, in which each query takes as long as one of those samples: success at equal
deadlines, whatever else this machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vla_prune_ros.benchmark.deadline_options import BUDGETS, parser
from vla_prune_ros.command_line import command_line, environment, exit_code_of, write_json

if TYPE_CHECKING:
    from vla_prune_ros.benchmark.contention import Step

JSON = 'results.json'
TRACE = (*((0, 60), (1, 60), (0, 60), (3, 60)) * 2, (0, 60))
TRACE_LEADS = (2, 4, 6, 8)
LIVE = ((0, 10), (1, 16), (0, 20), (3, 10), (0, 20))  # busy loops and queries
EPISODES = ((0, 4.0), (1, 4.0), (0, 4.0), (3, 4.0))  # busy loops and seconds
SLACK = 1.35  # deadline of the live runs in dense queries on the quiet core
PERIOD = 0.05  # s of the tabletop


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser().parse_args(argv)
    return exit_code_of('deadline', lambda: run(args, argv), interrupted='finished cells are kept')


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure, or read what was measured; play; write."""
    from vla_prune_ros.benchmark import deadline_report as report
    from vla_prune_ros.benchmark.deadline_options import check_mode

    check_mode(args.mode)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.latencies:
        machine = json.loads(args.latencies.read_text(encoding='utf-8'))['machine']
        if machine['mode'] != args.mode:
            raise ValueError(f'{args.latencies} has latencies of {machine["mode"]}: --mode that')
        if args.measure:
            machine |= live_runs(args)
    else:
        machine = measure(args, argv)
    result = {'machine': machine, 'traces': traced(args, machine), 'episodes': None}
    if args.measure:
        write_json(args.out / JSON, result)
    else:
        cells = finished(args)
        result['episodes'] = {
            'command': command_line(argv, 'deadline'),
            'environment': environment(),
            'phases': EPISODES,
            'faster': args.faster,
            'first_state': args.first_state,
            'cells': cells,
        }
        for cell in play(args, machine, [(c['deadline_ms'], c['arm']) for c in cells]):
            cells.append(cell)
            write_json(args.out / JSON, result)  # what is done is kept
        write_json(args.out / JSON, result)
    print(report.write(result, args.out))
    return 0


def finished(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Cells of the same comparison that an earlier run left in the output directory."""
    path = args.out / JSON
    known = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    episodes = known.get('episodes') or {'cells': [], 'faster': 0}
    theirs = known['machine']['mode'] if known else '', episodes.get('first_state', 0)
    if (args.mode, args.first_state) != theirs or episodes['faster'] != args.faster:
        return []
    return [c for c in episodes['cells'] if c['episodes'] == args.episodes]


def measure(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Latencies of the model by class and load, and live runs beside real busy loops."""
    import torch

    from vla_prune_ros.benchmark.contention import Asker, busy, pinned, sample, shared_core
    from vla_prune_ros.benchmark.scene import make_queries
    from vla_prune_ros.benchmark.subject import random_subject
    from vla_prune_ros.policy.governor import LatencyModel

    torch.set_num_threads(1)
    core = core_of(args)
    subject = random_subject(args.size, torch.float32, 'cpu')
    frames, queries = make_queries('auto', 8)
    clock = time.process_time if args.trace else time.perf_counter
    ask = Asker(subject.policy(args.mode), queries, subject.instruction, clock)
    loads = args.loads
    samples = {}
    with pinned(core):
        quiet, rows = sample(ask, args.samples)
        for loops in loads:
            if args.trace:
                samples[loops] = shared_core(quiet, loops)
                continue
            with busy(core, loops):
                samples[loops] = sample(ask, args.samples)[0] if loops else quiet
        model = LatencyModel.fit((rows[share], min(quiet[share])) for share in rows)
        tell(args, f'{args.size}: {model}')
        del ask, subject
    return {
        'command': command_line(argv, 'deadline'),
        'environment': environment(),
        'mode': args.mode,
        'size': args.size,
        'core': core,
        'frames': frames,
        'trace': args.trace,
        'constant_ms': 1e3 * model.constant,
        'per_row_us': 1e6 * model.per_row,
        'rows': {f'{share:g}': rows[share] for share in sorted(rows)},
        'samples_ms': {
            str(loops): {f'{s:g}': [round(1e3 * t, 2) for t in ts] for s, ts in by.items()}
            for loops, by in samples.items()
        },
        **live_runs(args),
    }


def live_runs(args: argparse.Namespace) -> dict[str, Any]:
    """The governor and fixed budgets with real passes of a checkpoint beside real busy loops."""
    import torch

    from vla_prune_ros.benchmark.contention import Asker, live, pinned, settling
    from vla_prune_ros.benchmark.deadline_episodes import chooser_of
    from vla_prune_ros.benchmark.scene import make_queries
    from vla_prune_ros.benchmark.subject import checkpoint_subject
    from vla_prune_ros.policy.calibration import calibrate

    torch.set_num_threads(1)
    core, load = core_of(args), os.getloadavg()[0]
    subject = checkpoint_subject(args.live, torch.float32, 'cpu', 'pick up the red block')
    policy, (_, queries) = subject.policy(args.mode), make_queries('auto', 8)
    ask, runs = Asker(policy, queries, subject.instruction), {}
    with pinned(core):
        governor = calibrate(policy, subject.instruction)
        deadline = SLACK * median([ask(1.0)[0] for _ in range(16)])
        for name in ('governor', '1', '0.5'):
            chooser, _ = chooser_of(name, governor.model, governor.rows)
            steps = live(ask, core, LIVE, deadline, chooser)
            runs[name] = summary(steps, deadline, settling)
            tell(args, f'live, {name}: {100 * runs[name]["missed"]:.0f} % missed')
    return {
        'note': args.note,
        'load_average': [load, os.getloadavg()[0]],
        'live_model': args.live,
        'live_fit': [1e3 * governor.model.constant, 1e6 * governor.model.per_row],
        'deadline_ms': 1e3 * deadline,
        'live': runs,
    }


def core_of(args: argparse.Namespace) -> int:
    """The core for model and loops."""
    return sorted(os.sched_getaffinity(0))[-1] if args.core is None else args.core


def summary(steps: Sequence[Step], deadline: float, settling: Any) -> dict[str, Any]:
    """What a live run came to, and every step of it."""
    missed = [step.seconds > deadline for step in steps]
    shares = [step.share for step in steps]
    return {
        'missed': sum(missed) / len(missed),
        'settling': settling(missed, [step.loops for step in steps]),
        'changes': sum(a != b for a, b in pairwise(shares)),
        'share': sum(shares) / len(shares),
        'steps': [step.record() for step in steps],
    }


def samples_of(args: argparse.Namespace, machine: dict[str, Any]) -> Any:
    """Latencies by load and share (s), and the fitted model, of a machine as fast as wanted."""
    from vla_prune_ros.policy.governor import LatencyModel

    unit = 1e3 * args.faster
    samples = {
        int(loops): {float(s): [ms / unit for ms in found] for s, found in by.items()}
        for loops, by in machine['samples_ms'].items()
    }
    model = LatencyModel(machine['constant_ms'] / unit, machine['per_row_us'] / 1e3 / unit)
    return samples, model, {float(share): n for share, n in machine['rows'].items()}


def traced(args: argparse.Namespace, machine: dict[str, Any]) -> dict[str, Any]:
    """Many queries with these latencies while the load changes: no passes, no robot."""
    from vla_prune_ros.benchmark.contention import settling, trace
    from vla_prune_ros.benchmark.deadline_episodes import chooser_of

    samples, model, rows = samples_of(args, machine)
    cells = []
    for lead in TRACE_LEADS:
        for arm in BUDGETS:
            chooser, _ = chooser_of(arm, model, rows)
            steps = trace(samples, rows, TRACE, lead * PERIOD, chooser)
            found = summary(steps, lead * PERIOD, settling)
            found['by_loops'] = {
                str(loops): [
                    sum(s.seconds > lead * PERIOD for s in own) / len(own),
                    sum(s.share for s in own) / len(own),
                ]
                for loops in sorted({n for n, _ in TRACE})
                if (own := [s for s in steps if s.loops == loops])
            }
            del found['steps']
            cells.append({'deadline_ms': 1e3 * lead * PERIOD, 'arm': arm, **found})
    return {'phases': TRACE, 'faster': args.faster, 'cells': cells}


def play(
    args: argparse.Namespace, machine: dict[str, Any], done: Sequence[tuple[float, str]] = ()
) -> Iterator[dict[str, Any]]:
    """Cells that are not done yet: deadlines and budgets, over the same initial states."""
    import torch

    from vla_prune_ros import weights
    from vla_prune_ros.benchmark.contention import settling
    from vla_prune_ros.benchmark.deadline_episodes import Load, Machine, chooser_of, run_episode
    from vla_prune_ros.policy import VLAPolicy
    from vla_prune_ros.sim import make_robot

    torch.set_num_threads(1)
    policy = VLAPolicy.from_pretrained(weights.directory('tabletop'), args.mode)
    samples, model, rows = samples_of(args, machine)
    load = Load(EPISODES)
    robot = make_robot('tabletop')
    try:
        n_tasks = len(robot.tasks)
        for lead in args.leads:
            for arm in args.budgets:
                if (1e3 * lead * PERIOD, arm) in done:
                    continue
                chooser, floor = chooser_of(arm, model, rows)
                timing, now, outcomes = Machine(samples, load, seed=7), 0.0, []
                for k in range(args.episodes):
                    start = k % n_tasks, args.first_state + k // n_tasks
                    outcomes.append(
                        run_episode(
                            policy, robot, timing, chooser, lead, *start, begin=now, floor=floor
                        )
                    )
                    now += outcomes[-1].steps * PERIOD
                missed = [late for o in outcomes for late in o.missed]
                loads = [n for o in outcomes for n in o.loads]
                cell = {
                    'deadline_ms': 1e3 * lead * PERIOD,
                    'arm': arm,
                    'episodes': len(outcomes),
                    'successes': sum(o.success for o in outcomes),
                    'missed': sum(missed) / len(missed),
                    'queries': len(missed),
                    'starved': sum(o.starved for o in outcomes) / sum(o.steps for o in outcomes),
                    'steps': sum(o.steps for o in outcomes) / len(outcomes),
                    'share': sum(s for o in outcomes for s in o.shares) / len(missed),
                    'settling': settling(missed, loads),
                    'outcomes': [o.record() for o in outcomes],
                }  # fmt: skip
                tell(
                    args,
                    f'{lead * PERIOD:.2f} s, {arm}: {cell["successes"]}/{cell["episodes"]},'
                    f' {100 * cell["missed"]:.0f} % missed',
                )
                yield cell
    finally:
        robot.close()


def median(values: Sequence[float]) -> float:
    """The upper median."""
    return sorted(values)[len(values) // 2]


def tell(args: argparse.Namespace, text: str) -> None:
    """Progress."""
    if not args.quiet:
        print(f'deadline: {text}', flush=True)
