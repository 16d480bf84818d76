# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The command lines of `train oft` and `train lightvla`."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields, replace
from pathlib import Path

import torch

from vla_prune_ros.command_line import at_least
from vla_prune_ros.datasets import FORMATS, ReadOptions, make_store, open_dataset
from vla_prune_ros.datasets.gripper import GRIPPERS
from vla_prune_ros.pruning.lightvla import NOISES
from vla_prune_ros.training.augment import CROPS
from vla_prune_ros.training.finetune import Run
from vla_prune_ros.training.memory import report
from vla_prune_ros.training.processes import Team
from vla_prune_ros.training.recipe import RECIPES, Recipe
from vla_prune_ros.training.starting import goal_of, start_variant
from vla_prune_ros.vla.config import OpenVLAConfig

_PRECISIONS = ('auto', 'float32', 'bfloat16')


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.partition('=') for part in text.split(',')]
    if not all(ours and theirs for ours, _, theirs in pairs):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list OURS=THEIRS,... such as 'agentview=image,wrist=wrist_image'"
        )
    return {ours: theirs for ours, _, theirs in pairs}


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What the files of a data set do not say."""
    group = parser.add_argument_group('data', 'what the files do not say, or say otherwise')
    group.add_argument('--format', default='', choices=FORMATS, help='default: found by looking')
    group.add_argument('--name', default='', help='key of the statistics; default: of the folder')
    group.add_argument(
        '--cameras', type=_pairs, default={}, metavar='OURS=THEIRS,...',
        help='cameras to use and their names in the data, third-person view first',
    )  # fmt: skip
    group.add_argument('--state', default='', help='key of the robot state')
    group.add_argument('--action', default='', help='key of the actions')
    group.add_argument('--rotate', type=int, choices=(0, 180), help='turn the pictures')
    group.add_argument('--gripper', default='', choices=GRIPPERS, help='convention of the data')
    group.add_argument('--rate', type=float, help='of the actions, Hz')
    group.add_argument('--instruction', default='', help='for episodes that have none')
    group.add_argument(
        '--only-success', action='store_true', help='bags: only episodes that were successful'
    )
    group.add_argument('--skip-damaged', action='store_true', help='leave out what is damaged')


def read_options(args: argparse.Namespace) -> ReadOptions:
    """The data options of a command line."""
    return ReadOptions(**{f.name: getattr(args, f.name) for f in fields(ReadOptions)})


def add_finetuning(parser: argparse.ArgumentParser, kind: str) -> None:
    """Arguments of one kind of fine-tuning, a key of `RECIPES`."""
    parser.add_argument('--start', type=Path, required=True, help='checkpoint directory')
    parser.add_argument(
        '--data', type=Path, nargs='+', required=True, metavar='PATH', help='data sets, mixed'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('out') / kind,
        help='checkpoints and log (%(default)s)',
    )
    parser.add_argument('--stores', type=Path, help='unpacked data; default: in --out')
    parser.add_argument(
        '--recipe', choices=RECIPES[kind], default='house',
        help='numbers of the training, see doc/training.md (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--dry-run', action='store_true', help='print the memory that is needed, and end'
    )
    group = parser.add_argument_group('recipe', 'in the place of what the recipe says')
    for name in ('steps', 'batch-size'):
        group.add_argument(f'--{name}', type=at_least(1))
    for name in ('warmup', 'decay-at', 'lora-rank'):
        group.add_argument(f'--{name}', type=at_least(0))
    for name in ('learning-rate', 'weight-decay', 'clip', 'ema'):
        group.add_argument(f'--{name}', type=float)
    for name in ('fresh-heads', 'lora-convolutions', 'colour', 'clip-labels'):
        group.add_argument(f'--{name}', action=argparse.BooleanOptionalAction)
    group.add_argument('--crop', choices=CROPS)
    if kind == 'lightvla':
        group.add_argument('--noise', choices=NOISES)
    run = parser.add_argument_group('run')
    default = Run(Path(), Path(), (), RECIPES[kind]['house'])
    run.add_argument('--adapter', type=Path, help='folder of adapters to go on from')
    run.add_argument('--unnorm-key', help='statistics of the start, where it has several')
    run.add_argument(
        '--variant', default='', help='what the files of the start do not say; what is to be '
        'trained, if they have no head',
    )  # fmt: skip
    run.add_argument(
        '--chunk', type=at_least(0), default=0, help='actions of a chunk, for fresh heads'
    )
    if kind == 'oft':
        run.add_argument(
            '--grounding', action='store_true', help='auxiliary losses of the tabletop'
        )
    run.add_argument(
        '--precision', choices=_PRECISIONS, default='auto', help='of frozen weights and products'
    )
    run.add_argument(
        '--checkpointing', action='store_true', help='less memory, half more time: layers twice'
    )
    run.add_argument(
        '--validation', type=at_least(0), default=0,
        help='closed-loop episodes of the tabletop with every checkpoint',
    )  # fmt: skip
    run.add_argument(
        '--held-out', type=float, default=0.0, metavar='SHARE',
        help='of the episodes, whose L1 is logged with every checkpoint',
    )  # fmt: skip
    for name, text in (
        ('accumulate', 'parts that a process computes its share of a batch in'),
        ('save-every', 'steps between checkpoints'),
        ('keep', 'checkpoints that stay'),
        ('log-every', 'steps between lines of the log'),
    ):
        value = getattr(default, name.replace('-', '_'))
        run.add_argument(
            f'--{name}', type=at_least(1), default=value, help=text + ' (default: %(default)s)'
        )
    run.add_argument('--workers', type=at_least(1), help='CPU processes; default: as many as fit')
    run.add_argument('--device', default='cpu', help='cpu or cuda (default: %(default)s)')
    run.add_argument('--seed', type=int, default=0, help='of all that is drawn (%(default)s)')
    add_data_options(parser)


def recipe_of(args: argparse.Namespace, kind: str) -> Recipe:
    """The recipe of a command line."""
    given = {f.name: getattr(args, f.name, None) for f in fields(Recipe)}
    return replace(RECIPES[kind][args.recipe], **{k: v for k, v in given.items() if v is not None})


def run_of(args: argparse.Namespace, kind: str, team: Team | None) -> Run:
    """The run of a command line; its stores are made if they are not there."""
    recipe = recipe_of(args, kind)
    given = {f.name: getattr(args, f.name) for f in fields(Run) if hasattr(args, f.name)}
    workers = args.workers or fitting(recipe.batch_size // args.accumulate)
    single = team is not None or torch.device(args.device).type != 'cpu'
    given |= {'recipe': recipe, 'output': args.out, 'lightvla': kind == 'lightvla'}
    stores = _stores(args, team)
    return Run(**given | {'stores': stores, 'workers': 1 if single else workers})


def needed_memory(args: argparse.Namespace, kind: str, team: Team | None) -> str:
    """What `--dry-run` prints."""
    recipe = recipe_of(args, kind)
    variant = start_variant(args.start, args.variant, recipe.fresh_heads)
    config = OpenVLAConfig.from_directory(args.start, variant)
    data = open_dataset(args.data[0], read_options(args))
    if recipe.fresh_heads:
        first = data.read(0)
        config = replace(
            goal_of(config, args.variant, args.chunk),
            action_dim=first.actions.shape[1],
            proprio_dim=0 if first.proprio is None else first.proprio.shape[1],
        )
    views = len(data.cameras)
    processes = 1 if team is None else team.size
    share = recipe.batch_size // (processes * args.accumulate)
    half = args.precision != 'float32'
    return report(config, recipe, views, half, args.checkpointing, share)


def fitting(batch: int) -> int:
    """As many workers as the machine has cores and the batch can be shared out to."""
    cores = len(os.sched_getaffinity(0))
    return max(n for n in range(1, cores + 1) if batch % n == 0 or n == 1)


def _stores(args: argparse.Namespace, team: Team | None) -> tuple[Path, ...]:
    """Stores of the data; the first process makes them, the others wait."""
    options, first = read_options(args), team is None or team.rank == 0
    folder, paths = args.stores or args.out / 'data', []
    for path in args.data:
        data = open_dataset(path, options)
        names = (data.name, *(f'{data.name}_{k}' for k in range(1, len(args.data))))
        paths.append(next(folder / name for name in names if folder / name not in paths))
        for note in data.notes if first else ():
            print(f'train: {data.name}: {note}')
        if first:
            make_store(data, paths[-1], options, options.skip_damaged)
    if team is not None:
        team.wait()
    return tuple(paths)
