# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `train`: demonstrations, behaviour cloning and fine-tuning, resumable at every stage."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from vla_prune_ros.command_line import at_least, exit_code_of, require_device
from vla_prune_ros.training import data_report
from vla_prune_ros.training.embedded import BATCH, Stages, train_embedded
from vla_prune_ros.training.finetune import finetune
from vla_prune_ros.training.lora import FOLDER, load_adapters, merged, with_base
from vla_prune_ros.training.options import add_finetuning, fitting, needed_memory, run_of
from vla_prune_ros.training.processes import torchrun_team
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import save_pretrained
from vla_prune_ros.vla.stored import FILM_FILE

_FINETUNED = {
    'oft': 'fine-tune a policy on demonstrations, with every visual token',
    'lightvla': 'fine-tune a trained policy for the pruning mode lightvla',
}


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
    default = Stages(out=Path('out/train'))
    tabletop.add_argument('--out', type=Path, default=default.out, help='working folder')
    for name, least, text in (
        ('episodes', 1, 'demonstrations that serve one instruction'),
        ('detours', 0, 'and that begin by serving another one'),
        ('steps', 1, 'of the first stage'),
    ):
        tabletop.add_argument(
            f'--{name}', type=at_least(least), default=getattr(default, name), help=text
        )
    tabletop.add_argument(
        '--rounds', type=_rounds, metavar='EPISODES:STEPS,...',
        default=','.join(f'{episodes}:{steps}' for episodes, steps in default.rounds),
        help='DAgger rounds after the first stage',
    )  # fmt: skip
    tabletop.add_argument(
        '--validation', type=at_least(0), default=default.validation,
        help='closed-loop episodes whose success is logged with every checkpoint; 0: none',
    )  # fmt: skip
    tabletop.add_argument(
        '--workers', type=at_least(1), default=fitting(BATCH), help='CPU processes'
    )
    tabletop.add_argument('--device', default=default.device, help='cpu or cuda')
    tabletop.add_argument('--seed', type=int, default=default.seed, help='of all that is drawn')
    for kind, text in _FINETUNED.items():
        add_finetuning(stages.add_parser(kind, help=text, description=text), kind)
    data_report.add_arguments(stages.add_parser('data', help=data_report.HELP))
    merge = stages.add_parser(
        'merge', help='add adapters to the weights that they were trained on'
    )
    merge.add_argument('base', type=Path, help='checkpoint directory')
    merge.add_argument(
        'adapter', type=Path,
        help='folder of adapters, ours or the authors\', and of the heads if they have any',
    )  # fmt: skip
    merge.add_argument('out', type=Path, help='new directory')
    merge.add_argument('--variant', default='', help='what the files do not say')
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
        if args.what == 'data':
            return data_report.report(args)
        done = _STAGES[args.what](args)
        if done is not None:
            print(f'trained checkpoint: {done}')
        return 0

    goes_on = args.what in ('tabletop', *_FINETUNED)
    kept = 'the same command goes on from the last save' if goes_on else ''
    return exit_code_of('train', run, interrupted=kept)


def _tabletop(args: argparse.Namespace) -> Path:
    return train_embedded(Stages(**{f.name: getattr(args, f.name) for f in fields(Stages)}))


def _finetune(args: argparse.Namespace) -> Path | None:
    with torchrun_team(args.device) as team:
        if args.dry_run:
            print(needed_memory(args, args.what, team))
            return None
        path = finetune(run_of(args, args.what, team), team=team)
        return path if team is None or team.rank == 0 else None


def _merge(args: argparse.Namespace) -> Path:
    _require_empty(args.out)
    with tempfile.TemporaryDirectory() as scratch:
        both = with_base(args.base, args.adapter, Path(scratch))
        model = OpenVLAOFT.from_pretrained(both, variant=args.variant)
    folder = args.adapter.parent if args.adapter.name == FOLDER else args.adapter
    load_adapters(model, args.adapter, towers=not any(folder.glob(f'{FILM_FILE}--*.pt')))
    save_pretrained(merged(model), args.out, dtype=torch.bfloat16, tokenizer=args.base)
    return args.out


def _export(args: argparse.Namespace) -> Path:
    _require_empty(args.out)
    model = OpenVLAOFT.from_pretrained(args.checkpoint)
    save_pretrained(model, args.out, dtype=torch.bfloat16, tokenizer=args.checkpoint)
    return args.out


def _require_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f'{folder} is not empty')


_STAGES = {
    'tabletop': _tabletop,
    'oft': _finetune,
    'lightvla': _finetune,
    'merge': _merge,
    'export': _export,
}

if __name__ == '__main__':
    raise SystemExit(main())
