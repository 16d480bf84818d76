# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `calibrate`: measure the importance of decoder layers for the mode `efficient_vla`.

The dense policy plays episodes of every task; the observations at which it is asked are spread
evenly over tasks and phases of the episodes, and each runs through the network once more with a
probe between the layers. No weights change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_prune_ros.command_line import (
    add_compute,
    at_least,
    environment,
    exit_code_of,
    require_device,
    verb_parser,
)

if TYPE_CHECKING:
    from vla_prune_ros.policy import Observation, VLAPolicy
    from vla_prune_ros.pruning.layer_importance import LayerImportance
    from vla_prune_ros.sim import SimulatedRobot


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = verb_parser('calibrate', __doc__)
    p.add_argument(
        'checkpoint', nargs='?', type=Path, help='checkpoint directory; default: the embedded one'
    )
    p.add_argument('--suite', default='tabletop', help='simulation backend (default: tabletop)')
    p.add_argument('--frames', type=int, default=200, help='observations in all (default: 200)')
    add_compute(p)
    p.add_argument('--max-steps', type=at_least(1), help="step limit instead of the tasks' own")
    p.add_argument('--out', type=Path, help='JSON file; default: beside the checkpoint directory')
    p.add_argument('--quiet', action='store_true', help='no progress bar')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when the file is written."""
    args = parser().parse_args(sys.argv[1:] if argv is None else argv)
    return exit_code_of('calibrate', lambda: calibrate(args))


def calibrate(args: argparse.Namespace) -> int:
    """Play, measure, write."""
    from tqdm import tqdm

    from vla_prune_ros import weights
    from vla_prune_ros.policy import VLAPolicy
    from vla_prune_ros.pruning.layer_importance import file_beside
    from vla_prune_ros.sim import make_robot

    require_device(args.device)
    checkpoint = args.checkpoint or weights.directory(args.suite)
    out = args.out or file_beside(checkpoint)
    if out.resolve().parent == checkpoint.resolve():
        raise ValueError(f'{out} lies in the checkpoint directory, which stays as it is')
    policy = VLAPolicy.from_pretrained(
        checkpoint,
        device=args.device,
        dtype=args.dtype,
        unnorm_key=args.unnorm_key,
        variant=args.model_variant,
    )
    robot = make_robot(args.suite)
    try:
        tasks = len(robot.tasks)
        if args.frames < tasks:
            raise ValueError(f'--frames {args.frames} is less than one for each of {tasks} tasks')
        bar = tqdm(total=args.frames, unit='frame', disable=args.quiet)
        shares = [args.frames * (k + 1) // tasks - args.frames * k // tasks for k in range(tasks)]
        observations: list[Observation] = []
        for task, share in enumerate(shares):
            observations += task_observations(policy, robot, task, share, args.max_steps)
            bar.update(share)
        bar.close()
    finally:
        robot.close()
    importance = measure(policy, observations)
    importance.save(out)
    print(table(importance))
    print(f'\n{importance.frames} observations of suite {importance.suite}; written: {out}')
    return 0


def task_observations(
    policy: VLAPolicy, robot: SimulatedRobot, task: int, count: int, max_steps: int | None = None
) -> list[Observation]:
    """Observations at which the dense policy was asked, evenly over the phases of its episodes.

    Initial states are taken from the last one backwards, as evaluations begin with the first.
    """
    seen: list[Observation] = []
    for state in reversed(range(robot.n_initial_states)):
        seen += episode_observations(policy, robot, task, state, max_steps)
        if len(seen) >= count:
            break
    if len(seen) < count:
        raise ValueError(f'task {robot.tasks[task].name} gave {len(seen)} frames, not {count}')
    return [seen[i] for i in np.linspace(0, len(seen) - 1, count).round().astype(int)]


def episode_observations(
    policy: VLAPolicy, robot: SimulatedRobot, task: int, state: int, max_steps: int | None
) -> list[Observation]:
    """Play one episode and return the observations at which the policy was asked."""
    from vla_prune_ros.policy import Observation
    from vla_prune_ros.sim import to_env_action

    policy.reset()
    now = robot.reset(task, state)
    seen: list[Observation] = []
    steps, limit = 0, max_steps or robot.tasks[task].max_steps
    while steps < limit and not robot.success():
        seen.append(Observation(now.images, now.proprio, robot.tasks[task].instruction, now.time))
        for action in policy.step(seen[-1]).actions:
            now = robot.step(to_env_action(action))
            steps += 1
            if robot.success():
                break
    return seen


def measure(policy: VLAPolicy, observations: Iterable[Observation]) -> LayerImportance:
    """Run the network on observations with the probe in place."""
    import torch

    from vla_prune_ros.pruning.layer_importance import ImportanceProbe, LayerImportance
    from vla_prune_ros.vla.checkpoint import weights_digest
    from vla_prune_ros.vla.processor import pixel_values

    model, processor = policy.model, policy.processor
    probe = ImportanceProbe(policy.config.llama.n_layers)
    for observation in observations:
        frames = processor.frames([observation.images[c] for c in policy.settings.cameras])
        ids, _ = processor.prompt(observation.instruction)
        numbers, state = processor.state(observation.proprio), None
        if numbers is not None:
            state = torch.from_numpy(numbers).to(model.device, torch.float32)[None]
        with torch.inference_mode():
            pixels = pixel_values(frames, model.device)
            model(pixels, ids.to(model.device), state, selector=probe)
    source = policy.config.source
    return LayerImportance(
        sha256='' if source is None else weights_digest(source),
        suite=policy.settings.unnorm_key,
        frames=probe.passes,
        importance=probe.importance(),
        environment=environment(),
    )


def table(importance: LayerImportance) -> str:
    """The measurement as text, a line for each layer."""
    order = {name: importance.order(name) for name in importance.importance}
    lines = ['layer  ' + '  '.join(f'I({name:6})  rank' for name in order)]
    for layer in range(len(order['all'])):
        cells = (
            f'{values[layer]:9.5f}  {order[name].index(layer):4}'
            for name, values in importance.importance.items()
        )
        lines.append(f'{layer:5}  ' + '  '.join(cells))
    return '\n'.join(lines)
