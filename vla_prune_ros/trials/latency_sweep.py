# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `latency`: success in real time against the latency of the policy, by execution mode.

Pairs of policy_node and sim_bridge, each on a ROS domain of its own, run the same episodes with
every execution mode and every artificial latency.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vla_prune_ros.command_line import listed
from vla_prune_ros.execution.playing import EXECUTION_MODES
from vla_prune_ros.ros.children import Children, claim_domain, keep_local
from vla_prune_ros.trials import command, demo
from vla_prune_ros.trials.latency_report import Cell, LatencyEpisode

if TYPE_CHECKING:
    from vla_prune_ros.ros.client import Client
    from vla_prune_ros.ros.peers import Bridge, Policy

DESCRIPTION = """\
Success and starvation in real time against an artificial latency of the policy, for every way of
executing chunks. Real nodes over DDS, several pairs at once; keep the machine otherwise idle.
Writes results.json, latency.png and latency.md. Exit code 0 only if every episode ran."""
PERIOD_MS = 50.0  # of the tabletop
RETRIES = 2  # of an episode that the simulation, not the policy, broke


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command.parser(
        'latency', DESCRIPTION, episodes=16, tasks=command.TASKS, first_state=0, max_steps=0,
        checkpoint='', device='cpu', out=Path('out/latency'), note='', patience=120.0,
    )  # fmt: skip
    p.add_argument(
        '--latencies', type=listed(int, '0,150'), default='0,50,100,150,200,300,400',
        help='ms, with commas (%(default)s)',
    )  # fmt: skip
    p.add_argument('--executions', default='all', help='"all" or names with commas (all)')
    p.add_argument('--pairs', type=int, default=0, help='pairs of nodes at once; 0: one per core')
    p.add_argument('--pruning', default='none', help='pruning mode (none)')
    p.add_argument('--quiet', action='store_true', help='no progress bar')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep."""
    return command.run_verb(parser(), run, argv)


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start the pairs, run all episodes, write everything."""
    keep_local()
    # Before anything else: rclpy from wheels starts Python anew with another library path.
    from vla_prune_ros.ros.client import Client

    cells = chosen_cells(args)
    pairs = min(args.pairs or len(os.sched_getaffinity(0)), len(cells))
    logs = args.out / 'log'
    print(f'latency: {len(cells)} episodes on {pairs} pairs of nodes; logs in {logs}')
    started = time.monotonic()
    work = Work(cells, args.max_steps, args.quiet)
    with ExitStack() as stack:
        threads = []
        for number in range(pairs):
            domain = claim_domain()
            own = Children(logs / str(number), ROS_DOMAIN_ID=str(domain), OMP_NUM_THREADS='1')
            children = stack.enter_context(own)
            for name, parameters in node_parameters(args).items():
                children.start_node(name, parameters)
            client = Client('vla_latency', children, args.patience, domain, work.check)
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

    def __init__(self, cells: Sequence[Cell], max_steps: int, quiet: bool) -> None:
        from tqdm import tqdm

        self._max_steps = max_steps
        self.results: dict[Cell, LatencyEpisode] = {}
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._todo: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        for cell in cells:
            self._todo.put(cell)
        self._bar = tqdm(total=len(cells), unit='episode', disable=quiet)
        self._lock = threading.Lock()

    def do(self, client: Client) -> None:
        """Run episodes on one pair until there are none left."""
        from vla_prune_ros.ros.peers import Bridge, Policy

        try:
            with client:
                policy, bridge = Policy(client), Bridge(client)
                policy.wait_until_active()
                while not self._stop.is_set():
                    try:
                        cell = self._todo.get_nowait()
                    except queue.Empty:
                        return
                    episode = run_cell(policy, bridge, cell, self._max_steps)
                    with self._lock:
                        self.results[cell] = episode
                        self._bar.update()
        except Exception as error:
            self.error = self.error or error
            self._stop.set()

    def check(self) -> None:
        """RuntimeError when there is nothing more to wait for."""
        if self._stop.is_set():
            raise RuntimeError('stopped')

    def close(self) -> None:
        """Tell the threads to end."""
        self._stop.set()
        self._bar.close()


def run_cell(policy: Policy, bridge: Bridge, cell: Cell, max_steps: int) -> LatencyEpisode:
    """Run one episode.

    Raises:
        RuntimeError: it did not end, or not as an episode should.
    """
    for _ in range(1 + RETRIES):
        policy.stats.clear()
        episode = bridge.run_episode(
            task=cell.task,
            initial_state=cell.state,
            max_steps=max_steps,
            execution__mode=cell.execution,
            latency=cell.latency_ms / 1e3,
        )
        status = episode.status
        if status['result'] != 'error':
            break
    if status['result'] not in ('success', 'step_limit'):
        raise RuntimeError(f'{cell} ended as {status["result"]}: {status["error"]}')
    queries = policy.stats.within(episode.first, episode.last)
    counts = {k: int(status[k]) for k in ('queries', 'starved', 'late')}
    return LatencyEpisode(
        execution=cell.execution,
        latency_ms=cell.latency_ms,
        task=status['task'],
        state=cell.state,
        success=status['success'] == 'true',
        steps=int(status['step']),
        policy_ms=tuple(round(float(query.value['node_ms']), 2) for query in queries),
        **counts,
    )


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
    tasks = [task for task in args.tasks.split(',') if task]
    if min(args.latencies) < 0 or not tasks or args.episodes < 1:
        raise ValueError('latencies from 0 on, a task and an episode are needed')
    return [
        Cell(mode, ms, tasks[k % len(tasks)], args.first_state + k // len(tasks))
        for k in range(args.episodes)
        for ms in dict.fromkeys(args.latencies)
        for mode in dict.fromkeys(modes)
    ]


def node_parameters(args: argparse.Namespace) -> dict[str, list[str]]:
    """Parameters of both nodes of a pair, as in config/sim.yaml but in real time."""
    policy = [
        *demo.NODES['policy_node'],
        f'device:={args.device}',
        'torch_threads:=1',
        f'pruning.mode:={args.pruning}',
        *command.checkpoint_parameters(args.checkpoint),
    ]
    return {'policy_node': policy, 'sim_bridge': ['episodes:=0', 'mode:=realtime']}


def write(
    out: Path, episodes: Sequence[LatencyEpisode], argv: Sequence[str], pairs: int, note: str
) -> None:
    """Print the table; write results, page and picture."""
    from vla_prune_ros.command_line import command_line, environment
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
    command.write(out / 'results.json', data)
    command.write(out / 'latency.md', latency_report.markdown(run, cells))
    latency_report.picture(cells, out / 'latency.png')
    print(f'\n{latency_report.latency_table(cells)}\n')
