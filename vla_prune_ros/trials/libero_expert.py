# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `libero_expert`: LIBERO's code and our nodes, proved end to end by a scripted expert.

Two processes as with a policy, `sim_bridge` with backend libero and `expert_node`, exchange
observations and action chunks over DDS on a domain of their own. By default on the placeholder
assets, so that nothing is downloaded and nothing is a LIBERO score.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from vla_prune_ros.ros.children import Children, isolate
from vla_prune_ros.trials import command

DESCRIPTION = """\
Let the scripted expert solve tasks of libero_spatial through both nodes. Exit code 0 means that
every task reached the required success."""
TASKS = '0,1,2,3,7,8'  # those that the expert is made for
RESULTS = 'results.json'


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command.parser(
        'libero_expert', DESCRIPTION, tasks=TASKS, episodes=10, first_state=0,
        assets='placeholder', out=Path('out/libero_expert'), domain_id=None, patience=180.0,
    )  # fmt: skip
    p.add_argument(
        '--require', type=float, default=0.8, help='success of every task (default: 0.8)'
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return command.run_verb(parser(), run, argv)


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start the nodes, run all episodes, stop the nodes, write the results."""
    isolate(args.domain_id)
    from vla_prune_ros.ros.client import Client
    from vla_prune_ros.ros.peers import Bridge
    from vla_prune_ros.sim.libero.assets import find_assets, versions

    notice = find_assets(args.assets).notice
    assets = args.assets if args.assets == 'placeholder' else str(Path(args.assets).resolve())
    bridge = [
        'backend:=libero', 'suite:=libero_spatial', f'assets:={assets}', 'episodes:=0',
        'publish_objects:=true', 'execution.mode:=open_loop',
    ]  # fmt: skip
    print(f'libero_expert: ROS domain {os.environ["ROS_DOMAIN_ID"]}; logs in {args.out}')
    print(notice or f'assets: {assets}', flush=True)
    started, episodes = time.monotonic(), []
    with Children(args.out) as children:
        children.start_node('sim_bridge', bridge)
        children.start_node('expert_node', [])
        with Client('libero_expert', children, args.patience) as client:
            expert = Bridge(client)
            for task in args.tasks.split(','):
                for state in range(args.first_state, args.first_state + args.episodes):
                    episode = expert.run_episode(task=task, initial_state=state).status
                    episodes.append({'number': task, **episode})
                    print(
                        f'task {task}, state {state}: {episode["result"]} after'
                        f' {episode["step"]} steps {episode["error"]}',
                        flush=True,
                    )
        good = command.ended_well('libero_expert', children.stop())
    rows = summary(episodes)
    results = {'notice': notice, 'versions': versions(), 'tasks': rows, 'episodes': episodes}
    command.write(args.out / RESULTS, results)
    print(f'\n{notice}' if notice else '')
    for row in rows:
        print(
            f'task {row["number"]}: {row["successes"]} of {row["episodes"]} episodes,'
            f' {row["failures"]} failures of the environment; {row["instruction"]}'
        )
    print(f'written: {args.out / RESULTS}; {time.monotonic() - started:.0f} s')
    good &= all(
        row['failures'] == 0 and row['successes'] >= args.require * row['episodes'] for row in rows
    )
    return 0 if good and rows else 1


def summary(episodes: Sequence[dict]) -> list[dict]:
    """One row per task; a failure of the environment is no failed episode."""
    rows: dict[str, dict] = {}
    for episode in episodes:
        row = rows.setdefault(
            episode['number'],
            {'number': episode['number'], 'task': episode['task'],
             'instruction': episode['instruction'], 'episodes': 0, 'successes': 0, 'failures': 0},
        )  # fmt: skip
        failed = episode['result'] == 'error'
        row['failures'] += failed
        row['episodes'] += not failed
        row['successes'] += episode['success'] == 'true'
    return list(rows.values())
