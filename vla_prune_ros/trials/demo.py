# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `demo`: a policy moves a simulated robot over ROS 2 under every pruning mode.

Two processes, `policy_node` and `sim_bridge`, talk over DDS on a domain of their own. This one
sets their parameters, asks for episodes, watches the topics and writes table and pictures. The
pruning mode changes between episodes while the nodes run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vla_prune_ros.ros.children import Children, isolate
from vla_prune_ros.sim.shifts import check_backend, parse_shift
from vla_prune_ros.trials import command

if TYPE_CHECKING:
    from vla_prune_ros.trials.demo_report import DemoEpisode

DESCRIPTION = """\
Run the embedded policy on the simulated tabletop over ROS 2, under several pruning modes and on
several language tasks. Exit code 0 means: every episode ran to its end, every mode was confirmed
by the statistics of the inferences, and all files were written."""
RESULTS, ANIMATION, STRIP = 'results.json', 'episode.gif', 'episodes.png'
NODES = {  # as in config/sim.yaml, but for `episodes`
    'policy_node': (
        'use_sim_time:=true',
        'trigger:=request',
        'sync.slop:=0.0',
        'sync.state_slop:=0.0',
        'input_reliability:=reliable',
    ),
    'sim_bridge': ('episodes:=0', 'mode:=lockstep'),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command.parser(
        'demo', DESCRIPTION, modes='all', episodes=4, tasks=command.TASKS, first_state=0,
        max_steps=0, checkpoint='', device='auto', backend='tabletop', assets='',
        out=Path('out/demo'), domain_id=None, patience=90.0,
    )  # fmt: skip
    p.add_argument('--suite', default='', help='task suite; default: the first of the backend')
    p.add_argument(
        '--shift', default='', metavar='AXIS:LEVEL,...',
        help='a world that differs from the suite, see doc/shifts.md (default: none)',
    )  # fmt: skip
    p.add_argument(
        '--record', type=Path, default=None, metavar='DIR',
        help='record all topics of the policy into a new bag, in a process of its own',
    )  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 only if everything happened."""
    return command.run_verb(parser(), run, argv)


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start the nodes, drive all episodes, stop the nodes, write everything."""
    isolate(args.domain_id)
    # Before anything else: rclpy from wheels starts Python anew with another library path.
    from vla_prune_ros.ros.client import Client
    from vla_prune_ros.trials.demo_client import DemoClient, Wanted

    modes, plan = chosen_modes(args.modes), chosen_episodes(args)
    check_backend(parse_shift(args.shift), args.backend)
    for name in (RESULTS, ANIMATION, STRIP):
        (args.out / name).unlink(missing_ok=True)  # nothing old may pass for a result of this run
    print(
        f'demo: {len(modes)} modes x {len(plan)} episodes on ROS domain'
        f' {os.environ["ROS_DOMAIN_ID"]}; logs in {args.out}'
    )
    if notice := notice_of(args):
        print(f'demo: {notice}')
    if args.record is not None and args.record.exists():
        raise ValueError(f'{args.record} exists; a bag is never written over')
    started, codes = time.monotonic(), {}
    episodes: list[DemoEpisode] = []
    policies: list[dict] = []
    total = len(plan) * len(modes)
    with (
        Children(args.out) as recorder,  # the robot goes on without it
        Children(args.out) as children,
    ):
        if args.record is not None:
            recorder.start('record', '--complete', '--out', str(args.record.resolve()))
        children.start_node('sim_bridge', parameters_of('sim_bridge', args))
        for checkpoint, own_modes in rounds(modes, args.checkpoint, args.backend):
            policy = f'policy_node_{checkpoint.name}' if policies else 'policy_node'
            given = [*parameters_of('policy_node', args), f'checkpoint:={checkpoint}']
            children.start_node('policy_node', given, policy)
            with Client('vla_demo', children, args.patience) as client:
                demo, since = DemoClient(client), time.monotonic()
                demo.wait_for_nodes()
                print(
                    f'demo: both nodes are ready after {time.monotonic() - since:.1f} s;'
                    f' weights {checkpoint.name}'
                )
                for task, state in plan:
                    for mode in own_modes:
                        pictures = needs_pictures(episodes, mode)
                        wanted = Wanted(
                            mode, task, state, args.max_steps, pictures, checkpoint.name
                        )
                        episodes.append(demo.run_episode(wanted)[0])
                        print(progress_line(episodes[-1], len(episodes), total), flush=True)
                policies.append(demo.policy.info.latest)
            codes |= children.stop(policy)
        codes |= children.stop()
        codes |= recorder.stop()
    if args.record is not None:
        print(f'demo: recorded into {args.record}:\n{(args.out / "record.log").read_text()}')
    good = command.ended_well('demo', codes)
    facts = {'notice': notice, 'shift': args.shift}
    write_everything(args.out, modes, episodes, policies, argv, facts)
    print(f'demo: done in {time.monotonic() - started:.0f} s')
    return 0 if good else 1


def write_everything(
    out: Path,
    modes: Sequence[str],
    episodes: Sequence[DemoEpisode],
    policies: Sequence[dict],
    argv: Sequence[str],
    facts: dict[str, str],
) -> None:
    """Print the table; write the results, the animation and the strip of pictures."""
    from vla_prune_ros.command_line import command_line, environment
    from vla_prune_ros.trials import demo_report

    rows = demo_report.demo_rows(modes, episodes)
    run = {
        'command': command_line(argv, 'demo'),
        'environment': environment(),
        'policies': list(policies),
        **facts,
    }
    print(f'\n{demo_report.demo_table(rows)}\n')
    if facts['shift']:
        print(f'in a shifted world: {facts["shift"]}\n')
    if facts['notice']:
        print(f'{facts["notice"]}\n')
    demo_report.write_results(out / RESULTS, run, rows, episodes)
    demo_report.write_animation(out / ANIMATION, demo_report.choose_episode(episodes))
    demo_report.write_strip(out / STRIP, episodes)
    print(f'demo: written to {out}: {RESULTS}, {ANIMATION}, {STRIP}')


def notice_of(args: argparse.Namespace) -> str:
    """What every result must say, for placeholder assets.

    Raises:
        RuntimeError: LIBERO or its assets are missing.
        ValueError: LIBERO without a checkpoint.
    """
    if args.backend != 'libero':
        return ''
    from vla_prune_ros.sim.libero.assets import find_assets

    if not args.checkpoint:
        raise ValueError('--backend libero needs a --checkpoint; none comes with it')
    return find_assets(args.assets).notice


def rounds(modes: Sequence[str], checkpoint: str, backend: str) -> list[tuple[Path, list[str]]]:
    """(checkpoint, modes that run on it): one policy node after the other.

    Without a checkpoint of the user's, a mode that needs fine-tuned weights gets the embedded ones
    that were made for it.
    """
    if checkpoint:
        return [(Path(checkpoint).resolve(), list(modes))]
    from vla_prune_ros import weights
    from vla_prune_ros.evaluation.entries import embedded_checkpoints

    usual, own = embedded_checkpoints(backend)
    parts: dict[str, list[str]] = {}
    for mode in modes:
        parts.setdefault(own.get(mode, usual), []).append(mode)
    usual_first = sorted(parts, key=lambda name: name != usual)
    return [(weights.directory(name), parts[name]) for name in usual_first]


def chosen_modes(text: str) -> list[str]:
    """Modes to show.

    Raises:
        ValueError: a mode is not registered; the message lists those that are.
    """
    from vla_prune_ros.pruning import MODES

    modes = list(MODES) if text == 'all' else list(dict.fromkeys(m for m in text.split(',') if m))
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ValueError(f'unknown pruning mode {", ".join(unknown)!r}; valid: {", ".join(MODES)}')
    return modes


def chosen_episodes(args: argparse.Namespace) -> list[tuple[str, int]]:
    """(task, initial state) of every episode of a mode: all tasks, then the next state."""
    tasks = [task for task in args.tasks.split(',') if task]
    if not tasks or args.episodes < 1:
        raise ValueError('at least one task and one episode are needed')
    return [
        (tasks[k % len(tasks)], args.first_state + k // len(tasks)) for k in range(args.episodes)
    ]


def parameters_of(name: str, args: argparse.Namespace) -> list[str]:
    """Parameters of a node, but for the weights."""
    if name == 'sim_bridge':
        recorder = 'recorder' if args.record else ''  # who must hear everything
        values = {'backend': args.backend, 'suite': args.suite, 'assets': args.assets}
        values |= {'recorder': recorder, 'shift': args.shift}
        return [*NODES[name], *(f'{key}:={value}' for key, value in values.items() if value)]
    cores = len(os.sched_getaffinity(0))
    # The simulation renders on the other cores; threads that wait for a core cost most.
    return [*NODES[name], f'device:={args.device}', f'torch_threads:={max(1, cores // 2)}']


def needs_pictures(episodes: Sequence[DemoEpisode], mode: str) -> bool:
    """Pictures of a mode's first episode, and on until a pictured one with pruning succeeded.

    Publishing every camera frame takes time, and frames take memory.
    """
    if all(episode.mode != mode for episode in episodes):
        return True
    return mode != 'none' and not any(
        e.frames and e.success and e.mode != 'none' for e in episodes
    )


def progress_line(e: DemoEpisode, number: int, total: int) -> str:
    """One line on a finished episode."""
    kept = sum(len(query.kept) for query in e.queries) / len(e.queries)
    ms = sorted(query.latency_ms for query in e.queries)[len(e.queries) // 2]
    return (
        f'[{number:3d}/{total}] {e.mode:14} {e.task:22}'
        f' {"success" if e.success else "step limit":10} {e.steps:4d} steps,'
        f' {kept:5.1f} of {e.queries[0].n_visual} tokens, {ms:6.1f} ms'
    )
