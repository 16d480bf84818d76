# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `realtime`: do robot and policy keep step with the wall clock on so many cores?

Both nodes run over DDS in real time, bound to the same few cores together with this process. What
the simulation alone costs (physics, pictures) is measured on those cores beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vla_prune_ros.ros.children import (
    Children,
    isolate,
    node_command,
    node_environment,
)
from vla_prune_ros.trials import demo
from vla_prune_ros.trials.command import exit_code_of, interrupt_on

DESCRIPTION = """\
Run policy_node and sim_bridge in real time on a few cores and report whether the rate was held:
steps that came late, steps without an action, and what physics, pictures and inference take of a
step. Writes realtime.json and realtime.md."""
JSON, PAGE = 'realtime.json', 'realtime.md'
TICKS = os.sysconf('SC_CLK_TCK')
# The rate is held if no more steps than this share come late, and no more than this is lost.
LATE, RATE = 0.01, 0.995


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog='realtime',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument('--cores', type=int, default=2, help='cores for everything (default: 2)')
    p.add_argument('--modes', default='none', help='"all" or names with commas (default: none)')
    p.add_argument('--episodes', type=int, default=4, help='episodes per mode (default: 4)')
    p.add_argument('--tasks', default=demo.TASKS, help=f'(default: {demo.TASKS})')
    p.add_argument('--first-state', type=int, default=0, help='first initial state (default: 0)')
    p.add_argument('--max-steps', type=int, default=0, help="step limit; 0: the tasks' own")
    p.add_argument('--checkpoint', default='', help='checkpoint; default: the embedded policy')
    p.add_argument('--device', default='auto', help='torch device of the policy (default: auto)')
    p.add_argument('--backend', default='tabletop', help='simulated robot (default: tabletop)')
    p.add_argument('--note', default='', help='a remark for the page, such as: shared machine')
    p.add_argument('--out', type=Path, default=Path('out/realtime'), help='output directory')
    p.add_argument('--domain-id', type=int, default=None, help='ROS_DOMAIN_ID; default: drawn')
    p.add_argument('--patience', type=float, default=90.0, help='seconds to wait (default: 90)')
    p.add_argument('--require', action='store_true', help='exit code 1 if the rate was not held')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; 0 when it was measured and written."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser().parse_args(argv)
    interrupt_on(signal.SIGTERM, signal.SIGHUP)
    return exit_code_of('realtime', lambda: run(args, argv), 'both nodes were')


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Bind to the cores, measure the simulation, run the episodes, write."""
    cores = bind(args.cores)
    isolate(args.domain_id)
    # Before anything else: rclpy from wheels starts Python anew with another library path.
    from vla_prune_ros.trials.demo_client import Wanted
    from vla_prune_ros.trials.realtime_client import RealtimeClient

    modes, plan = demo.chosen_modes(args.modes), demo.chosen_episodes(args)
    simulation = simulation_budget(args.backend)
    load = os.getloadavg()[0]
    rows = []
    with Children(args.out / 'log', node_environment()) as children:
        for name, parameters in demo.NODES.items():
            given = [p for p in parameters if not p.startswith('mode:=')]
            children.start(name, node_command(name, [*given, *node_settings(name, args)]))
        with RealtimeClient(children.check, args.patience) as client:
            client.wait_for_nodes()
            for mode in modes:
                done = []
                for task, state in plan:
                    before, started = busy_seconds(), time.monotonic()
                    done.append(client.run_realtime(Wanted(mode, task, state, args.max_steps)))
                    spent = time.monotonic() - started
                    done[-1]['cores'] = {
                        name: (seconds - before.get(name, 0.0)) / spent
                        for name, seconds in busy_seconds().items()
                    }
                    print(_progress(mode, done[-1]), flush=True)
                rows.append(mode_row(mode, done))
        codes = children.stop()
    result = {
        'command': shlex.join(['python', '-m', 'vla_prune_ros', 'realtime', *argv]),
        'note': args.note,
        'cores': cores,
        'cores_of_the_machine': os.cpu_count(),
        'load_average': [load, os.getloadavg()[0]],
        'simulation': simulation,
        'modes': rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / JSON).write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    text = page(result)
    (args.out / PAGE).write_text(text, encoding='utf-8')
    print(f'\n{text}\nrealtime: wrote {args.out / JSON}, {args.out / PAGE}')
    failed = any(codes.values()) or (args.require and not all(row['held'] for row in rows))
    return 1 if failed else 0


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


def node_settings(name: str, args: argparse.Namespace) -> list[str]:
    """Parameters of a node that follow from the command line."""
    if name == 'sim_bridge':
        return ['mode:=realtime', f'backend:={args.backend}']
    # The simulation needs a core of its own where there are several.
    threads = max(1, args.cores // 2)
    settings = [f'device:={args.device}', f'torch_threads:={threads}']
    if args.checkpoint:
        settings.append(f'checkpoint:={Path(args.checkpoint).resolve()}')
    return settings


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
            'physics_ms': percentiles(physics),
            'pictures_ms': percentiles(pictures),
        }
    finally:
        robot.close()


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median and p95 (nearest rank)."""
    ordered = sorted(values)
    return {
        'p50': median(ordered),
        'p95': ordered[min(len(ordered) - 1, 95 * len(ordered) // 100)],
    }


def busy_seconds() -> dict[str, float]:
    """Processor seconds of each node so far, by name; of processes this one started."""
    own = os.getpid()
    result = {}
    for pid in Path(f'/proc/{own}/task/{own}/children').read_text(encoding='ascii').split():
        words = Path(f'/proc/{pid}/cmdline').read_text(encoding='utf-8').split('\0')
        name = next((n for n in demo.NODES if n in words), None)
        if name is not None:
            fields = (
                Path(f'/proc/{pid}/stat').read_text(encoding='ascii').rpartition(')')[2].split()
            )
            result[name] = (int(fields[11]) + int(fields[12])) / TICKS  # user and system time
    return result


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
        'inference_ms': percentiles(latencies),
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
        ' cores policy | cores bridge | success |',
        '| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |',
    ]
    for row in result['modes']:
        ms, cores = row['inference_ms'], row['cores']
        lines.append(
            f'| {row["mode"]} | {"yes" if row["held"] else "no"} | {row["rate_hz"]:.2f} |'
            f' {row["late"]} | {row["starved"]} | {row["steps"]} | {row["queries"]} |'
            f' {ms["p50"]:.1f} / {ms["p95"]:.1f} | {cores.get("policy_node", 0.0):.2f} |'
            f' {cores.get("sim_bridge", 0.0):.2f} | {row["successes"]}/{row["episodes"]} |'
        )
    return '\n'.join([*lines, ''])


def _progress(mode: str, episode: dict[str, Any]) -> str:
    return (
        f'{mode:14} {episode["task"]:22} {episode["steps"]:4d} steps,'
        f' {episode["timed_steps"] / episode["timed_s"]:5.2f} steps/s, {episode["late"]} late,'
        f' {episode["starved"]} starved'
    )
