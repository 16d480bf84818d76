# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `train`: demonstrations, behaviour cloning and fine-tuning, resumable at every stage."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from vla_prune_ros.training.embedded import Recipe, train_embedded


def _rounds(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [tuple(int(n) for n in part.split(':')) for part in text.split(',') if part]
    except ValueError:
        pairs = [()]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list EPISODES:STEPS,... such as '480:4000,480:4000'"
        )
    return tuple(pairs)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `train`."""
    parser = argparse.ArgumentParser(prog='vla_prune_ros train', description=__doc__)
    stages = parser.add_subparsers(dest='what', required=True)
    tabletop = stages.add_parser(
        'tabletop',
        help='the embedded policy from nothing: demonstrations, cloning, DAgger rounds',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Recipe(out=Path('out/train'))
    tabletop.add_argument('--out', type=Path, default=default.out, help='working folder')
    tabletop.add_argument('--episodes', type=int, default=default.episodes)
    tabletop.add_argument('--steps', type=int, default=default.steps)
    tabletop.add_argument(
        '--rounds',
        type=_rounds,
        default=default.rounds,
        metavar='EPISODES:STEPS,...',
        help='DAgger rounds after the first stage',
    )
    tabletop.add_argument('--workers', type=int, default=os.cpu_count())
    tabletop.add_argument('--device', default=default.device, help='cpu or cuda')
    tabletop.add_argument('--seed', type=int, default=default.seed)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a training stage; returns the exit code."""
    args = build_parser().parse_args(argv)
    recipe = Recipe(
        out=args.out,
        episodes=args.episodes,
        steps=args.steps,
        rounds=args.rounds,
        workers=args.workers,
        device=args.device,
        seed=args.seed,
    )
    checkpoint = train_embedded(recipe)
    print(f'trained checkpoint: {checkpoint}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
