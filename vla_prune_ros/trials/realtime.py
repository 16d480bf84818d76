# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `realtime`: do robot and policy keep step with the wall clock on so many cores?

Both nodes run over DDS in real time, bound to the same few cores together with this process. What
the simulation alone costs (physics, pictures) is measured on those cores beforehand.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_prune_ros.evaluation.statistics import percentiles
from vla_prune_ros.ros.children import Children, family_seconds, isolate
from vla_prune_ros.trials import command, demo

if TYPE_CHECKING:
    from vla_prune_ros.ros.peers import Episode
    from vla_prune_ros.trials.demo_report import DemoEpisode

DESCRIPTION = """\
Run policy_node and sim_bridge in real time on a few cores and report whether the rate was held:
steps that came late, steps without an action, and what physics, pictures and inference take of a
step. Writes realtime.json and realtime.md."""
JSON, PAGE = 'realtime.json', 'realtime.md'
# The rate is held if no more steps than this share come late, and no more than this is lost.
LATE, RATE = 0.01, 0.995
VIEW_PORTS = ('--port', '--data-port')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command.parser(
        'realtime', DESCRIPTION, modes='none', episodes=4, tasks=command.TASKS, first_state=0,
        max_steps=0, checkpoint='', device='auto', backend='tabletop', note='',
        out=Path('out/realtime'), domain_id=None, patience=90.0,
    )  # fmt: skip
    p.add_argument('--cores', type=int, default=2, help='cores for everything (default: 2)')
    p.add_argument('--view', action='store_true', help='with live_view and its page beside them')
    p.add_argument('--require', action='store_true', help='exit code 1 if the rate was not held')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; 0 when it was measured and written."""
    return command.run_verb(parser(), run, argv)


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Bind to the cores, measure the simulation, run the episodes, write."""
    cores = bind(args.cores)
    isolate(args.domain_id)
    # Before anything else: rclpy from wheels starts Python anew with another library path.
    from vla_prune_ros.command_line import command_line
    from vla_prune_ros.ros.client import Client
    from vla_prune_ros.trials.demo_client import DemoClient, Wanted

    modes, plan = demo.chosen_modes(args.modes), demo.chosen_episodes(args)
    simulation = simulation_budget(args.backend)
    load = os.getloadavg()[0]
    rows = []
    with Children(args.out / 'log') as children:
        for name, parameters in demo.NODES.items():
            given = [p for p in parameters if not p.startswith('mode:=')]
            children.start_node(name, [*given, *node_settings(name, args)])
        if args.view:
            ports = (str(port) for port in free_ports(2))
            words = [word for pair in zip(VIEW_PORTS, ports, strict=True) for word in pair]
            children.start('live_view', *words)
        names = [*demo.NODES, *(['live_view'] if args.view else [])]
        pids = {name: children.pid(name) for name in names}
        with Client('vla_demo', children, args.patience) as client:
            nodes = DemoClient(client)
            nodes.wait_for_nodes()
            for mode in modes:
                done = []
                for task, state in plan:
                    before = {name: family_seconds(pid) for name, pid in pids.items()}
                    started = time.monotonic()
                    wanted = Wanted(mode, task, state, args.max_steps)
                    done.append(paced(*nodes.run_episode(wanted)))
                    spent = time.monotonic() - started
                    done[-1]['cores'] = {
                        name: (family_seconds(pid) - before[name]) / spent
                        for name, pid in pids.items()
                    }
                    print(_progress(mode, done[-1]), flush=True)
                rows.append(mode_row(mode, done))
        good = command.ended_well('realtime', children.stop())
    result = {
        'command': command_line(argv, 'realtime'),
        'note': args.note,
        'cores': cores,
        'cores_of_the_machine': os.cpu_count(),
        'load_average': [load, os.getloadavg()[0]],
        'simulation': simulation,
        'modes': rows,
    }
    text = page(result)
    command.write(args.out / JSON, result)
    command.write(args.out / PAGE, text)
    print(f'\n{text}\nrealtime: wrote {args.out / JSON}, {args.out / PAGE}')
    held = not args.require or all(row['held'] for row in rows)
    return 0 if good and held else 1


def paced(shown: DemoEpisode, episode: Episode) -> dict[str, Any]:
    """An episode with its pace.

    That is taken between two reports of the bridge, the first one after the first step (before it
    the policy may still have been loading) and the last one.

    Raises:
        RuntimeError: the episode was too short to have a pace.
    """
    moving = [report for report in episode.reports if int(report.value['step']) > 0]
    steps = [int(report.value['step']) for report in moving]
    if not steps or steps[-1] == steps[0]:
        raise RuntimeError(f'{shown.task} {shown.state} had too few steps to measure a pace')
    begin, end, count = moving[0], moving[-1], steps[-1] - steps[0]
    return {
        'task': shown.task,
        'state': shown.state,
        'success': shown.success,
        'steps': shown.steps,
        'control_hz': count * 1e9 / (end.stamp - begin.stamp),
        'timed_steps': count,
        'timed_s': end.sent - begin.sent,
        **{key: int(episode.status[key]) for key in ('late', 'starved', 'queries')},
        'latency_ms': [query.latency_ms for query in shown.queries],
    }


def bind(count: int) -> list[int]:
    """Keep this process, and all that it starts, to so many cores.

    Raises:
        ValueError: there are not as many.
    """
    there = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(there):
        raise ValueError(f'--cores {count} is not within 1..{len(there)}')
    os.sched_setaffinity(0, there[:count])
    return there[:count]


def free_ports(count: int) -> list[int]:
    """Ports of this computer that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(('127.0.0.1', 0))
        return [probe.getsockname()[1] for probe in probes]


def node_settings(name: str, args: argparse.Namespace) -> list[str]:
    """Parameters of a node that follow from the command line."""
    if name == 'sim_bridge':
        return ['mode:=realtime', f'backend:={args.backend}']
    # The simulation needs a core of its own where there are several.
    threads = max(1, args.cores // 2)
    settings = [f'device:={args.device}', f'torch_threads:={threads}']
    return settings + command.checkpoint_parameters(args.checkpoint)


def simulation_budget(backend: str, steps: int = 60) -> dict[str, Any]:
    """Median and p95 ms of the physics and of the pictures of one control step."""
    from vla_prune_ros.sim import make_robot

    robot = make_robot(backend)
    try:
        robot.reset(0, 0)
        robot.observe()
        action = [0.3, 0.1, -0.2, 0.0, 0.0, 0.0, -1.0]
        physics, pictures = [], []
        for _ in range(steps):
            started = time.perf_counter()
            robot.step(action, render=False)
            between = time.perf_counter()
            robot.observe()
            pictures.append(1e3 * (time.perf_counter() - between))
            physics.append(1e3 * (between - started))
        return {
            'period_ms': 1e3 / robot.control_hz,
            'cameras': len(robot.cameras),
            'physics_ms': percentiles(physics, (50, 95)),
            'pictures_ms': percentiles(pictures, (50, 95)),
        }
    finally:
        robot.close()


def mode_row(mode: str, episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the episodes of a mode say together."""
    steps = sum(e['steps'] for e in episodes)
    late = sum(e['late'] for e in episodes)
    rate = sum(e['timed_steps'] for e in episodes) / sum(e['timed_s'] for e in episodes)
    wanted = episodes[0]['control_hz']
    latencies = [ms for e in episodes for ms in e['latency_ms']]
    return {
        'mode': mode,
        'episodes': len(episodes),
        'successes': sum(e['success'] for e in episodes),
        'steps': steps,
        'rate_hz': rate,
        'late': late,
        'starved': sum(e['starved'] for e in episodes),
        'queries': sum(e['queries'] for e in episodes),
        'inference_ms': percentiles(latencies, (50, 95)),
        'cores': {
            name: sum(e['cores'].get(name, 0.0) for e in episodes) / len(episodes)
            for name in episodes[0]['cores']
        },
        'held': late <= LATE * steps and rate >= RATE * wanted,
    }


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    simulation = result['simulation']
    period = simulation['period_ms']
    lines = [
        '# Real time',
        '',
        f'    {result["command"]}',
        '',
        *([f'- {result["note"]}'] if result['note'] else []),
        f'- both nodes and this client on core(s) {", ".join(map(str, result["cores"]))} of'
        f' {result["cores_of_the_machine"]}, load average {result["load_average"][0]:.1f} to'
        f' {result["load_average"][1]:.1f}',
        '',
        f'| of a step of {period:.0f} ms, alone | p50 ms | p95 ms | share |',
        '| --- | ---: | ---: | ---: |',
    ]
    for name, key in (
        ('physics', 'physics_ms'),
        (f'pictures of {simulation["cameras"]} cameras', 'pictures_ms'),
    ):
        p = simulation[key]
        share = 100 * p['p50'] / period
        lines.append(f'| {name} | {p["p50"]:.1f} | {p["p95"]:.1f} | {share:.0f} % |')
    lines += [
        '',
        '| mode | rate held | steps/s | late | starved | steps | chunks | inference p50 / p95 ms |'
        ' cores policy | cores bridge | cores view | success |',
        '| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |',
    ]
    for row in result['modes']:
        ms, cores = row['inference_ms'], row['cores']
        lines.append(
            f'| {row["mode"]} | {"yes" if row["held"] else "no"} | {row["rate_hz"]:.2f} |'
            f' {row["late"]} | {row["starved"]} | {row["steps"]} | {row["queries"]} |'
            f' {ms["p50"]:.1f} / {ms["p95"]:.1f} | {cores.get("policy_node", 0.0):.2f} |'
            f' {cores.get("sim_bridge", 0.0):.2f} | {cores.get("live_view", 0.0):.2f} |'
            f' {row["successes"]}/{row["episodes"]} |'
        )
    return '\n'.join([*lines, ''])


def _progress(mode: str, episode: dict[str, Any]) -> str:
    return (
        f'{mode:14} {episode["task"]:22} {episode["steps"]:4d} steps,'
        f' {episode["timed_steps"] / episode["timed_s"]:5.2f} steps/s, {episode["late"]} late,'
        f' {episode["starved"]} starved'
    )
