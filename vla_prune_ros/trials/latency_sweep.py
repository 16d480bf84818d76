# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `latency`: success in real time against the latency of the policy, by execution mode.

Pairs of policy_node and sim_bridge, each on a ROS domain of its own, run the same episodes with
every execution mode and every artificial latency.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vla_prune_ros.execution.playing import EXECUTION_MODES
from vla_prune_ros.ros.children import Children, keep_local, node_command
from vla_prune_ros.trials import demo
from vla_prune_ros.trials.command import exit_code_of, interrupt_on
from vla_prune_ros.trials.latency_report import Cell, LatencyEpisode

if TYPE_CHECKING:
    from vla_prune_ros.trials.latency_client import PairClient

DESCRIPTION = """\
Success and starvation in real time against an artificial latency of the policy, for every way of
executing chunks. Real nodes over DDS, several pairs at once; keep the machine otherwise idle.
Writes results.json, latency.png and latency.md. Exit code 0 only if every episode ran."""
PERIOD_MS = 50.0  # of the tabletop


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog='latency',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        '--latencies', default='0,50,100,150,200,300,400', help='ms, with commas (%(default)s)'
    )
    p.add_argument('--executions', default='all', help='"all" or names with commas (all)')
    p.add_argument('--episodes', type=int, default=16, help='episodes per cell (16)')
    p.add_argument('--tasks', default=demo.TASKS, help='task names or indices (%(default)s)')
    p.add_argument('--first-state', type=int, default=0, help='first initial state (0)')
    p.add_argument('--max-steps', type=int, default=0, help="step limit; 0: the tasks' own")
    p.add_argument('--pairs', type=int, default=0, help='pairs of nodes at once; 0: one per core')
    p.add_argument('--checkpoint', default='', help='checkpoint; default: the embedded policy')
    p.add_argument('--pruning', default='none', help='pruning mode (none)')
    p.add_argument('--device', default='cpu', help='torch device of the policies (cpu)')
    p.add_argument('--out', type=Path, default=Path('out/latency'), help='output directory')
    p.add_argument('--note', default='', help='a sentence for the page, such as what else ran')
    p.add_argument('--quiet', action='store_true', help='no progress bar')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser().parse_args(argv)
    interrupt_on(signal.SIGTERM)
    return exit_code_of('latency', lambda: run(args, argv), 'all nodes were')


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start the pairs, run all episodes, write everything."""
    keep_local()
    # Before anything else: rclpy from wheels starts Python anew with another library path.
    from vla_prune_ros.trials.latency_client import PairClient

    cells = chosen_cells(args)
    pairs = min(args.pairs or len(os.sched_getaffinity(0)), len(cells))
    domains = random.sample(range(1, 102), pairs)  # above, DDS ports meet ephemeral ones
    logs = args.out / 'log'
    print(f'latency: {len(cells)} episodes on {pairs} pairs of nodes; logs in {logs}')
    started = time.monotonic()
    work = Work(cells, args.quiet)
    with ExitStack() as stack:
        threads = []
        for number, domain in enumerate(domains):
            environment = {**os.environ, 'ROS_DOMAIN_ID': str(domain), 'OMP_NUM_THREADS': '1'}
            children = stack.enter_context(Children(logs / str(number), environment))
            for name, parameters in node_parameters(args).items():
                children.start(name, node_command(name, parameters))
            client = PairClient(domain, children.check, work.stop, args.max_steps)
            threads.append(threading.Thread(target=work.do, args=(client,), daemon=True))
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and work.error is None:
                time.sleep(0.2)
        finally:
            work.close()
            for thread in threads:
                thread.join(10.0)
    if work.error is not None:
        raise work.error
    shutil.rmtree(logs)
    episodes = [work.results[cell] for cell in cells]
    write(args.out, episodes, argv, pairs, args.note)
    print(f'latency: done in {time.monotonic() - started:.0f} s, written to {args.out}')
    return 0


class Work:
    """Episodes to run and their outcomes, shared by the threads of the pairs."""

    def __init__(self, cells: Sequence[Cell], quiet: bool) -> None:
        from tqdm import tqdm

        self.results: dict[Cell, LatencyEpisode] = {}
        self.error: Exception | None = None
        self.stop = threading.Event()
        self._todo: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        for cell in cells:
            self._todo.put(cell)
        self._bar = tqdm(total=len(cells), unit='episode', disable=quiet)
        self._lock = threading.Lock()

    def do(self, client: PairClient) -> None:
        """Run episodes on one pair until there are none left."""
        try:
            with client:
                while not self.stop.is_set():
                    try:
                        cell = self._todo.get_nowait()
                    except queue.Empty:
                        return
                    episode = client.run_episode(cell)
                    with self._lock:
                        self.results[cell] = episode
                        self._bar.update()
        except Exception as error:
            self.error = self.error or error
            self.stop.set()

    def close(self) -> None:
        """Tell the threads to end."""
        self.stop.set()
        self._bar.close()


def chosen_cells(args: argparse.Namespace) -> list[Cell]:
    """Every episode of the sweep; the same tasks and states in every cell.

    The cells take turns, so that what disturbs the machine for a while disturbs all of them.

    Raises:
        ValueError: an unknown execution mode, or nothing to do.
    """
    modes = list(EXECUTION_MODES) if args.executions == 'all' else args.executions.split(',')
    unknown = [mode for mode in modes if mode not in EXECUTION_MODES]
    if unknown:
        raise ValueError(f'unknown execution {unknown[0]!r}; valid: {", ".join(EXECUTION_MODES)}')
    latencies = [int(ms) for ms in args.latencies.split(',')]
    tasks = [task for task in args.tasks.split(',') if task]
    if min(latencies) < 0 or not tasks or args.episodes < 1:
        raise ValueError('latencies from 0 on, a task and an episode are needed')
    return [
        Cell(mode, ms, tasks[k % len(tasks)], args.first_state + k // len(tasks))
        for k in range(args.episodes)
        for ms in dict.fromkeys(latencies)
        for mode in dict.fromkeys(modes)
    ]


def node_parameters(args: argparse.Namespace) -> dict[str, list[str]]:
    """Parameters of both nodes of a pair, as in config/sim.yaml but in real time."""
    policy = [
        *demo.NODES['policy_node'],
        f'device:={args.device}',
        'torch_threads:=1',
        f'pruning.mode:={args.pruning}',
    ]
    if args.checkpoint:
        policy.append(f'checkpoint:={Path(args.checkpoint).resolve()}')
    return {'policy_node': policy, 'sim_bridge': ['episodes:=0', 'mode:=realtime']}


def write(
    out: Path, episodes: Sequence[LatencyEpisode], argv: Sequence[str], pairs: int, note: str
) -> None:
    """Print the table; write results, page and picture."""
    from vla_prune_ros.evaluation.report import command_line, environment
    from vla_prune_ros.trials import latency_report

    cells = latency_report.rows(episodes)
    cells.sort(key=lambda c: (EXECUTION_MODES.index(c['execution']), c['latency_ms']))
    run = {
        'command': command_line(argv, 'latency'),
        'environment': environment(),
        'pairs': pairs,
        'period_ms': PERIOD_MS,
        'note': note,
    }
    data = {'run': run, 'cells': cells, 'episodes': [asdict(e) for e in episodes]}
    out.mkdir(parents=True, exist_ok=True)
    (out / 'results.json').write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    (out / 'latency.md').write_text(latency_report.markdown(run, cells), encoding='utf-8')
    latency_report.picture(cells, out / 'latency.png')
    print(f'\n{latency_report.latency_table(cells)}\n')
