# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `robot_trial`: success of policy, robot bridge and an arm that takes only its commands.

The simulated robot presents itself as the driver of a real arm. `--output chunk` is what it is
compared with: the simulator's own execution of the same chunks, in real time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_prune_ros.command_line import listed
from vla_prune_ros.ros.children import Children, isolate
from vla_prune_ros.trials import command, demo
from vla_prune_ros.trials.robot_path import Ledger, RobotEpisode

DESCRIPTION = """\
Run policy_node, robot_bridge and a simulated arm that takes only pose or twist commands, over DDS
and in real time, and report how often the tasks succeed. Output chunk is the simulator's own
execution. With --lockstep the same parts run in this process, step by step, which gives the same
numbers on every machine. Writes robot.json and robot.md; called again with the same --out it goes
on where it was. Exit code 0 only if every episode ran."""
OUTPUTS = ('chunk', 'pose', 'twist')
JSON, PAGE, LEDGER = 'robot.json', 'robot.md', 'episodes.jsonl'
RETRIES = 2  # of an episode that broke down by itself
# As in config/robots/tabletop_pose.yaml and tabletop_twist.yaml.
BRIDGE: dict[str, Any] = {
    'dry_run': False,
    'speed_scale': 1.0,
    'frames.base': 'world',
    'limits.box': [-0.45, -0.45, 0.88, 0.3, 0.45, 1.5],
    'limits.speed': 0.5,
    'limits.turn': 2.5,
    'gripper.type': 'float_array',
    'gripper.open': 0.04,
    'gripper.closed': 0.0,
    'follow_episodes': 'sim_bridge/episode',
}
BRIDGE_VALUES = (
    'tracking_error_p95', 'jerk_within_p95', 'jerk_seam_p95', 'chunk_arrival_p50'
)  # fmt: skip
STIFFNESS = {'pose': 150.0, 'twist': 3000.0}
DRIVER = ('-r', 'joint_states:=arm/joint_states', '-r', 'ee_pose:=arm/pose')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command.parser(
        'robot_trial', DESCRIPTION, episodes=16, tasks=command.TASKS, first_state=0, max_steps=0,
        checkpoint='', device='cpu', note='', out=Path('out/robot'), domain_id=None,
        patience=120.0,
    )  # fmt: skip
    p.add_argument('--output', default='all', help='"all" or of chunk, pose, twist (all)')
    p.add_argument(
        '--latency', type=listed(float, '0,0.15'), default='0',
        help='s, added to every chunk; with commas (%(default)s)',
    )  # fmt: skip
    p.add_argument('--execution', default='open_loop', help='how chunks are played (open_loop)')
    p.add_argument('--lockstep', action='store_true', help='in this process, without ROS')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cells."""
    return command.run_verb(parser(), run, argv)


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """One set of nodes per output; every latency and episode on it."""
    outputs = list(OUTPUTS) if args.output == 'all' else args.output.split(',')
    if unknown := [o for o in outputs if o not in OUTPUTS]:
        raise ValueError(f'unknown output {unknown[0]!r}; valid: {", ".join(OUTPUTS)}')
    tasks = [task for task in args.tasks.split(',') if task]
    if args.episodes < 1 or not tasks or min(args.latency) < 0:
        raise ValueError('an episode, a task and latencies from 0 on are needed')
    plan = [
        (latency, tasks[k % len(tasks)], args.first_state + k // len(tasks))
        for k in range(args.episodes)
        for latency in args.latency
    ]
    ledger = Ledger(args.out / LEDGER, _settings(args))
    load = os.getloadavg()[0]
    play = run_lockstep if args.lockstep else run_output
    if not args.lockstep:
        isolate(args.domain_id)
    for output in outputs:
        left = [entry for entry in plan if not ledger.has(output, *_named(entry))]
        if left:
            play(output, left, args, ledger.add)
    write(args, argv, [e for o in outputs for e in ledger.episodes if e.output == o], load)
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all episodes of one trial have in common."""
    names = ('checkpoint', 'device', 'max_steps', 'execution', 'lockstep')
    return {name: getattr(args, name) for name in names}


def _named(entry: tuple[float, str, int]) -> tuple[float, str, int]:
    """A planned episode with its task's name in the place of a number."""
    from vla_prune_ros.sim.tabletop.tasks import TASKS

    latency, task, state = entry
    return latency, TASKS[int(task)].name if task.isdigit() else task, state


def run_lockstep(
    output: str,
    plan: Sequence[tuple[float, str, int]],
    args: argparse.Namespace,
    record: Callable[[RobotEpisode], None],
) -> None:
    """All episodes of one output, in this process."""
    from vla_prune_ros import weights
    from vla_prune_ros.policy import VLAPolicy
    from vla_prune_ros.sim import make_robot
    from vla_prune_ros.trials.robot_lockstep import run_episode

    policy = VLAPolicy.from_pretrained(
        args.checkpoint or weights.directory('tabletop'), device=args.device
    )
    robot = make_robot('tabletop')
    for latency, task, state in plan:
        began = time.monotonic()
        record(
            run_episode(
                robot, policy, output, latency, task, state, args.execution, args.max_steps,
                BRIDGE, STIFFNESS.get(output, 0.0),
            )
        )  # fmt: skip
        print(
            f'{output} {latency:g} s, {task} {state}: {time.monotonic() - began:.1f} s', flush=True
        )
    robot.close()


def run_output(
    output: str,
    plan: Sequence[tuple[float, str, int]],
    args: argparse.Namespace,
    record: Callable[[RobotEpisode], None],
) -> None:
    """All episodes of one output, with nodes of their own."""
    # Before anything else: rclpy from wheels starts Python anew with another library path.
    from vla_prune_ros.ros.client import Client
    from vla_prune_ros.ros.peers import Policy
    from vla_prune_ros.trials.robot_client import WatchedArm

    with Children(args.out / 'log' / output) as children:
        for name, arguments in node_arguments(output, args).items():
            children.start(name, *arguments)
        with Client('robot_trial', children, args.patience) as client:
            arm, policy = WatchedArm(client), Policy(client)
            arm.wait_until_there()
            policy.wait_until_active()
            for latency, task, state in plan:
                for _ in range(1 + RETRIES):
                    began = time.monotonic()
                    status = _episode(arm, output, latency, task, state, args)
                    if status['result'] in ('success', 'step_limit'):
                        break
                else:
                    raise RuntimeError(f'episode {task}, {state} ended as {status["result"]}')
                last = _record(output, latency, status)
                record(last)
                print(
                    f'{output} {latency:g} s, {status["task"]} {state}: {status["result"]} after '
                    f'{last.steps} steps ({time.monotonic() - began:.1f} s), starved '
                    f'{last.starved}, late {last.late} {last.reason}',
                    flush=True,
                )


def _episode(
    arm: Any, output: str, latency: float, task: str, state: int, args: argparse.Namespace
) -> dict[str, Any]:
    chosen = {'task': task, 'initial_state': state, 'max_steps': args.max_steps}
    if output == 'chunk':
        return arm.run_episode(**chosen, latency=latency)
    arm.robot.set_latency(latency)
    arm.robot.enable()
    return arm.run_episode(**chosen)


def _record(output: str, latency: float, status: dict[str, Any]) -> RobotEpisode:
    bridge = status['bridge']
    own = output == 'chunk'
    reason = bridge.get('reason', '') if bridge.get('state') == 'stopped' else ''
    lately = {k: bridge[k] for k in BRIDGE_VALUES if k in bridge}
    return RobotEpisode(
        output, latency, status['task'], int(status['initial_state']),
        status['success'] == 'true', int(status['step']),
        int(status['starved']) if own else status['bridge_starved'], int(status['late']),
        round(status['jerk_rms'], 3), reason, {} if own else lately,
    )  # fmt: skip


def node_arguments(output: str, args: argparse.Namespace) -> dict[str, list[str]]:
    """The nodes and the words that each is started with."""
    policy = ['torch_threads:=1', f'device:={args.device}']
    policy += command.checkpoint_parameters(args.checkpoint)
    if output == 'chunk':
        policy += demo.NODES['policy_node']
        simulation = ['episodes:=0', 'mode:=realtime', f'execution.mode:={args.execution}']
        return {'policy_node': _words(policy), 'sim_bridge': _words(simulation)}
    simulation = [
        'episodes:=0', f'interface:={output}', f'interface.stiffness:={STIFFNESS[output]}'
    ]  # fmt: skip
    bridge = [*given(BRIDGE), f'output:={output}', f'execution.mode:={args.execution}']
    return {
        'policy_node': _words([*policy, 'trigger:=request']),
        'sim_bridge': [*_words(simulation), *DRIVER],
        'robot_bridge': _words(bridge),
    }


def given(values: Mapping[str, Any]) -> list[str]:
    """Parameters as words."""
    return [f'{k}:={str(v).lower() if isinstance(v, bool) else v}' for k, v in values.items()]


def _words(parameters: Sequence[str]) -> list[str]:
    return ['--ros-args', *(word for parameter in parameters for word in ('-p', parameter))]


def write(
    args: argparse.Namespace, argv: Sequence[str], episodes: Sequence[RobotEpisode], load: float
) -> None:
    """Print the table; write results and page."""
    from vla_prune_ros.command_line import command_line, environment
    from vla_prune_ros.trials import robot_report

    run_data = {
        'command': command_line(argv, 'robot_trial'),
        'environment': environment(),
        'load_average': [load, os.getloadavg()[0]],
        'note': args.note,
        'lockstep': args.lockstep,
    }
    cells = robot_report.cells(episodes)
    data = {'run': run_data, 'cells': cells, 'episodes': [asdict(e) for e in episodes]}
    text = robot_report.markdown(run_data, cells)
    command.write(args.out / JSON, data)
    command.write(args.out / PAGE, text)
    print(f'\n{text}\nrobot_trial: written to {args.out}')
