# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`train data PATH`: is my data right? Numbers, a picture of first frames, and what is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.command_line import at_least, write_json
from vla_prune_ros.datasets import FORMATS, DataSet, open_dataset
from vla_prune_ros.datasets.looking import Findings, look_at
from vla_prune_ros.datasets.sheet import save_sheet
from vla_prune_ros.training.options import add_data_options, read_options
from vla_prune_ros.training.starting import rate_warnings, start_variant, warnings_of
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.processor import resolve_unnorm_key

HELP = 'is my data right: what is in a data set, and what is wrong with it'
_LINES = 20  # of a list that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        'Read a data set, of any format, and say what is in it and what is wrong with it. Exit'
        ' code 0: it can be trained on; 1: something of it cannot be read, or nothing is there.'
    )
    parser.add_argument('path', type=Path, help='folder or file of a data set')
    parser.add_argument(
        '--checkpoint', type=Path, help='compare with what this checkpoint directory expects'
    )
    parser.add_argument(
        '--variant', default='', help='what the files of the checkpoint do not say'
    )
    parser.add_argument('--unnorm-key', help='statistics of the checkpoint, where it has several')
    parser.add_argument(
        '--chunk', type=at_least(1), help='actions per chunk; default: of the checkpoint, or 8'
    )
    parser.add_argument(
        '--every-picture', action='store_true', help='decode all pictures, not the first ones'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('out/data'),
        help='folder of the picture and the numbers (default: %(default)s)',
    )  # fmt: skip
    add_data_options(parser)


def report(args: argparse.Namespace) -> int:
    """Look, print, write; returns the exit code."""
    data = open_dataset(args.path, read_options(args))
    config = None if args.checkpoint is None else _expected(args.checkpoint, args.variant)
    args.out.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before the work
    chunk = args.chunk or (8 if config is None else config.chunk_len)
    found = look_at(data, chunk, args.every_picture, progress=True)
    unfit = [] if config is None else mismatches(data, found, config)
    if config is not None:
        found.warnings += rate_warnings(data.name, data.rate, config.control_rate)
    if config is not None and found.statistics is not None and not unfit:
        key = resolve_unnorm_key(config.norm_stats, args.unnorm_key) if config.norm_stats else ''
        if key:
            known = config.norm_stats[key]
            found.warnings += warnings_of(data.name, found.statistics, known, config.normalisation)
    picture = args.out / f'{data.name}.png'
    if found.first:
        save_sheet(found.first, data.cameras, picture)
    numbers = args.out / f'{data.name}.json'
    write_json(numbers, as_json(data, found, chunk, unfit))
    print('\n'.join(lines(data, found, chunk)))
    if found.first:
        print(f'first frames: {picture}: are they upright, is each camera the one it is called?')
    print(f'numbers: {numbers}')
    problems = [*map(str, found.errors), *unfit]
    for title, texts in (('warning', found.warnings), ('ERROR', problems)):
        for text in texts[:_LINES]:
            print(f'{title}: {text}')
        if len(texts) > _LINES:
            print(f'{title}: and {len(texts) - _LINES} more, see {numbers}')
    usable = found.samples if not problems else 0
    print('this data can be trained on' if usable else 'this data cannot be trained on as it is')
    return 0 if usable else 1


def _expected(checkpoint: Path, variant: str) -> OpenVLAConfig | None:
    """What a checkpoint takes; None if it has no head and becomes what the data is."""
    if not (checkpoint / 'config.json').is_file():
        raise FileNotFoundError(f'no config.json in checkpoint directory {checkpoint}')
    if not variant and start_variant(checkpoint, variant, fresh=True):
        print(f'{checkpoint} has no head: it becomes what train oft --variant declares')
        return None
    return OpenVLAConfig.from_directory(checkpoint, variant)


def mismatches(data: DataSet, found: Findings, config: OpenVLAConfig) -> list[str]:
    """What a checkpoint expects and the data does not have."""
    texts = []
    for kind, wanted in (('action', config.action_dim), ('proprio', config.proprio_dim)):
        width = len((found.statistics or {}).get(kind, {'mean': []})['mean'])
        if wanted and found.statistics and width != wanted:
            cure = '--action' if kind == 'action' else '--state'
            texts.append(
                f'{data.path}: {kind} has {width} numbers, the checkpoint takes {wanted}; name'
                f' another key with {cure}'
            )
    views = config.n_views
    if len(data.cameras) != views:
        texts.append(
            f'{data.path}: {len(data.cameras)} cameras ({", ".join(data.cameras)}), the checkpoint'
            f' takes {views}; name them with --cameras'
        )
    return texts


def lines(data: DataSet, found: Findings, chunk: int) -> list[str]:
    """The report as text."""
    form = FORMATS[data.format]
    rate = 'control rate unknown' if data.rate is None else f'{data.rate:g} Hz'
    sizes = [
        f'{camera} {" and ".join(f"{w}x{h}" for w, h in found.sizes[camera]) or "not read"}'
        for camera in data.cameras
    ]
    out = [
        f'{data.name}: {form.text} ({form.detect(data.path)})',
        *(f'  {note}' for note in data.notes),
        f'  {found.episodes} episodes, {found.frames} frames, {found.samples} chunks of {chunk}'
        f' actions to train on; {rate}',
        f'  cameras: {", ".join(sizes)}',
        f'  {len(found.instructions)} instructions:',
    ]
    out += [f'  {n:7}  {text}' for text, n in found.instructions.most_common(_LINES)]
    for kind in ('action', 'proprio'):
        out += _table(kind, (found.statistics or {}).get(kind))
    if found.open_share is not None:
        changes = np.mean(found.gripper_changes) if found.gripper_changes else 0.0
        out.append(
            f'  gripper: open (1) in {found.open_share:.0%} of the steps,'
            f' {changes:.1f} changes per episode'
        )
    return out


def _table(kind: str, block: Mapping[str, Sequence[Any]] | None) -> list[str]:
    if block is None:
        return []
    names = ('min', 'q01', 'mean', 'q99', 'max', 'std')
    out = ['  ' + f'{kind:8}' + ''.join(f'{name:>10}' for name in names)]
    for number in range(len(block['mean'])):
        values = ''.join(f'{block[name][number]:10.4f}' for name in names)
        raw = 'mask' in block and not block['mask'][number]
        out.append(f'  {number:<8}{values}' + ('  not normalised' if raw else ''))
    return out


def as_json(data: DataSet, found: Findings, chunk: int, unfit: Sequence[str]) -> dict[str, Any]:
    """The report for programs."""
    return {
        'path': str(data.path),
        'name': data.name,
        'format': data.format,
        'notes': data.notes,
        'rate': data.rate,
        'cameras': {
            camera: [list(size) for size in found.sizes[camera]] for camera in data.cameras
        },
        'episodes': found.episodes,
        'frames': found.frames,
        'chunk': chunk,
        'samples': found.samples,
        'short': found.short,
        'instructions': dict(found.instructions),
        'open_share': found.open_share,
        'gripper_changes': found.gripper_changes,
        'statistics': found.statistics,
        'warnings': found.warnings,
        'errors': [
            {'file': e.file, 'episode': e.episode, 'step': e.step, 'what': e.what, 'cure': e.cure}
            for e in found.errors
        ],
        'unfit': list(unfit),
    }
