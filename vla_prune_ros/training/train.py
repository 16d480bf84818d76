# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `train`: demonstrations, behaviour cloning and fine-tuning, resumable at every stage."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from vla_prune_ros.command_line import at_least, exit_code_of, require_device
from vla_prune_ros.pruning.lightvla import NOISES
from vla_prune_ros.training.behaviour_cloning import CloningConfig, clone
from vla_prune_ros.training.embedded import Recipe, train_embedded
from vla_prune_ros.training.lightvla import Finetuning
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import save_pretrained


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


def _add_common(parser: argparse.ArgumentParser, default: Recipe) -> None:
    parser.add_argument(
        '--validation', type=int, default=default.validation,
        help='closed-loop episodes whose success is logged with every checkpoint; 0: none',
    )  # fmt: skip
    parser.add_argument('--workers', type=at_least(1), default=os.cpu_count())
    parser.add_argument('--device', default=default.device, help='cpu or cuda')
    parser.add_argument('--seed', type=int, default=default.seed)


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
    tabletop.add_argument('--detours', type=int, default=default.detours)
    tabletop.add_argument('--steps', type=int, default=default.steps)
    tabletop.add_argument(
        '--rounds',
        type=_rounds,
        default=default.rounds,
        metavar='EPISODES:STEPS,...',
        help='DAgger rounds after the first stage',
    )
    _add_common(tabletop, default)
    lightvla = stages.add_parser(
        'lightvla',
        help='fine-tune a trained policy for the pruning mode lightvla',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    lightvla.add_argument(
        '--start', type=Path, required=True, help='checkpoint directory of a dense policy'
    )
    lightvla.add_argument(
        '--data', type=Path, default=default.out, help='folder searched for episode files'
    )
    lightvla.add_argument('--cache', type=Path, help='unpacked frames; default: in --out')
    lightvla.add_argument('--out', type=Path, default=Path('out/lightvla'), help='new checkpoint')
    lightvla.add_argument('--steps', type=int, default=4000)
    lightvla.add_argument('--batch-size', type=int, default=32)
    lightvla.add_argument('--learning-rate', type=float, default=3e-4)
    lightvla.add_argument(
        '--noise', choices=NOISES, default='uniform', help='on the scores, fading to 0 at the end'
    )
    lightvla.add_argument(
        '--lora-rank', type=int, default=0,
        help='train adapters of this rank (32 for a 7B model, needs peft) and the heads; '
        '0 trains all weights',
    )  # fmt: skip
    lightvla.add_argument(
        '--fresh-heads', action='store_true', help='new action head and proprio projector'
    )
    _add_common(lightvla, default)
    export = stages.add_parser(
        'export', help='write a trained checkpoint in bfloat16, with nothing but what a user needs'
    )
    export.add_argument('checkpoint', type=Path, help='trained checkpoint directory')
    export.add_argument('out', type=Path, help='new directory')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a training stage; returns the exit code."""
    args = build_parser().parse_args(argv)

    def run() -> int:
        require_device(getattr(args, 'device', 'cpu'))
        print(f'trained checkpoint: {_STAGES[args.what](args)}')
        return 0

    return exit_code_of('train', run, interrupted='the same command goes on from the last save')


def _tabletop(args: argparse.Namespace) -> Path:
    return train_embedded(Recipe(**{f.name: getattr(args, f.name) for f in fields(Recipe)}))


def _lightvla(args: argparse.Namespace) -> Path:
    shared = ('steps', 'batch_size', 'learning_rate', 'validation', 'workers', 'device', 'seed')
    return clone(
        CloningConfig(
            start=args.start,
            output=args.out,
            files=tuple(sorted(args.data.rglob('episode_*.npz'))),
            cache=args.cache or args.out / 'frames.npy',
            grounding=False,
            lightvla=Finetuning(args.noise, args.lora_rank, args.fresh_heads),
            **{name: getattr(args, name) for name in shared},
        )
    )


def _export(args: argparse.Namespace) -> Path:
    if args.out.exists() and any(args.out.iterdir()):
        raise FileExistsError(f'{args.out} is not empty')
    model = OpenVLAOFT.from_pretrained(args.checkpoint)
    save_pretrained(model, args.out, dtype=torch.bfloat16, tokenizer=args.checkpoint)
    return args.out


_STAGES = {'tabletop': _tabletop, 'lightvla': _lightvla, 'export': _export}

if __name__ == '__main__':
    raise SystemExit(main())
