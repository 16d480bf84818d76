# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `bench`: how fast, against what, and how fast it could be. See doc/benchmark.md."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_prune_ros.command_line import (
    add_compute,
    add_modes,
    at_least,
    command_line,
    environment,
    exit_code_of,
    require_device,
    verb_parser,
    write_json,
)

if TYPE_CHECKING:
    from vla_prune_ros.benchmark.run import Arm
    from vla_prune_ros.benchmark.subject import Subject

DESCRIPTION = """\
Time a plain path that computes as the released code does, the dense model and every pruning mode
on the same queries in turn; from camera frames to robot actions, selection included. Writes every
answer to samples.jsonl as it comes, then results.json, report.md and latency.png. Times on a CPU
are given as ratios to the dense model."""

EXAMPLES = """\
examples:
  bench --size small --threads 2
  bench --checkpoint tabletop --modes none,specprune --option specprune.alpha=0.6
  bench --size 7b --device cuda --dtype bfloat16 --image-pipeline device --ticks 60 --profile
  bench --startup"""
LIGHTVLA_TOKENS = 78 / 512  # share of the visual tokens that the paper reports on average


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = verb_parser('bench', DESCRIPTION, EXAMPLES)
    p.add_argument('--size', help='random model: tiny, small or 7b (default: small)')
    p.add_argument(
        '--layers', type=at_least(1), help='decoder layers of the random model; default: all'
    )
    p.add_argument('--checkpoint', help='checkpoint directory or name of an embedded policy')
    p.add_argument('--instruction', help='what the policy is told (default: one of LIBERO length)')
    add_modes(p, 'arm')
    p.add_argument('--no-reference', action='store_true', help='leave out the plain paths')
    p.add_argument('--ticks', type=at_least(1), default=20, help='queries counted (default: 20)')
    p.add_argument(
        '--warm-up', type=at_least(0), default=4, help='queries before those (default: 4)'
    )
    p.add_argument('--frames', default='auto', help='auto, tabletop or synthetic (default: auto)')
    add_compute(p)
    p.add_argument(
        '--threads', type=at_least(0), default=0, help='torch threads; 0: as torch decides'
    )
    p.add_argument('--runtime', help='auto, plain, graphs or compile (default: auto)')
    p.add_argument('--quantization', help='none, int8, fp8 or int4, for our arms (default: none)')
    p.add_argument('--image-pipeline', help='exact or device (default: exact)')
    p.add_argument('--profile', action='store_true', help='trace every arm and look for gaps')
    p.add_argument('--startup', action='store_true', help='measure imports and loading instead')
    p.add_argument(
        '--floors', action='store_true',
        help='measure the rates of this machine and print floors of the published decoder instead',
    )  # fmt: skip
    p.add_argument(
        '--show', type=Path, metavar='DIR',
        help='measure nothing: write page and chart of the results.json in DIR once more',
    )  # fmt: skip
    p.add_argument(
        '--page', type=Path, action='append', default=[], metavar='FILE',
        help='also put the short table of the run into this page, between the lines'
        ' "<!-- bench NAME -->" and "<!-- end -->" with the name of the output directory',
    )  # fmt: skip
    p.add_argument(
        '--require-targets', action='store_true', help='exit code 1 if a target is not met'
    )
    p.add_argument('--note', default='', help='a remark for the report, such as: shared machine')
    p.add_argument(
        '--out',
        type=Path,
        default=Path('out/bench'),
        help='output directory (%(default)s)',
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 when everything was measured and written."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser().parse_args(argv)

    def run() -> int:
        if args.show:
            from vla_prune_ros.benchmark.page import show

            show(args.show, args.page)
            return 0
        require_device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)  # now: minutes later is too late for an error
        if args.floors:
            from vla_prune_ros.benchmark.cards import print_floors

            return print_floors(args.device, args.dtype)
        if args.startup:
            from vla_prune_ros.benchmark.startup import measure_startup

            return measure_startup(args, argv)
        return measure(args, argv)

    return exit_code_of('bench', run, wrong=2)


def measure(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """The ladder."""
    # All of it now: what is missing must not cost a finished measurement.
    import torch

    from vla_prune_ros.benchmark.journal import Journal
    from vla_prune_ros.benchmark.page import RESULTS, SAMPLES, show
    from vla_prune_ros.benchmark.profile import profile_arms
    from vla_prune_ros.benchmark.report import SCHEMA, make_rows, targets
    from vla_prune_ros.benchmark.roofline import measure_machine
    from vla_prune_ros.benchmark.run import measure_memory, run_ladder
    from vla_prune_ros.benchmark.scene import FRAMES, make_queries

    if args.frames not in FRAMES:
        raise ValueError(f'--frames {args.frames} is not one of {", ".join(FRAMES)}')
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f'--dtype {args.dtype} is not float32, bfloat16 or float16')
    load = [os.getloadavg()[0]]
    subject = make_subject(args, dtype)
    arms = make_arms(args, subject, dtype)
    config = subject.model.config
    frames, queries = make_queries(args.frames, args.ticks + args.warm_up, config.chunk_len)
    queries = [query.fitted(config) for query in queries]
    if all(query.first for query in queries[args.warm_up :]):
        raise ValueError('every counted query would begin an episode: more --ticks or --warm-up')
    machine = measure_machine(args.device, dtype)
    plain = all(arm.is_reference or _runtime(arm) == 'plain' for arm in arms)
    decoder = subject.model.decoder if plain else None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for arm in arms:
            if not arm.is_reference:
                arm.policy.warm_up(instruction=subject.instruction)  # records what it can
    with Journal(args.out / SAMPLES) as journal:
        samples = run_ladder(
            arms, queries, subject.instruction, args.warm_up, decoder, _progress, journal.note
        )
    if not plain:  # graphs hide what they do: count it in a pass without them, on the same frames
        _count_work(args, subject, arms, samples, queries)
    machine = machine.better(measure_machine(args.device, dtype))
    measure_memory(arms, samples, queries[-1], subject.instruction)
    load.append(os.getloadavg()[0])
    prompt = subject.processor.prompt(subject.instruction)[0].shape[1]
    layout = config.layout(config.n_views, prompt)
    run = describe(args, argv, subject, layout, machine, frames, load)
    rows = make_rows(arms, samples, config, layout, machine, _weight_bytes(args, dtype))
    results = targets(rows, run)
    content = {'schema': SCHEMA, 'run': run, 'arms': rows, 'targets': results, 'profiles': {}}
    write_json(args.out / RESULTS, content)  # at once: all that follows may still fail
    if args.profile:
        content['profiles'] = profile_arms(arms, queries, subject.instruction, args.out)
        write_json(args.out / RESULTS, content)
    show(args.out, args.page)
    return 1 if args.require_targets and any(t['state'] == 'not met' for t in results) else 0


def make_subject(args: argparse.Namespace, dtype: Any) -> Subject:
    """The model of the run."""
    from vla_prune_ros.benchmark.subject import checkpoint_subject, random_subject

    if args.checkpoint and args.size:
        raise ValueError('give --size or --checkpoint, not both')
    if args.checkpoint and args.layers:
        raise ValueError('--layers is for a random model, not for a --checkpoint')
    if args.unnorm_key and not args.checkpoint:
        raise ValueError('--unnorm-key is for a --checkpoint')
    if args.checkpoint:
        return checkpoint_subject(
            args.checkpoint, dtype, args.device, args.instruction, args.unnorm_key,
            args.model_variant,
        )  # fmt: skip
    size, variant = args.size or 'small', args.model_variant
    return random_subject(size, dtype, args.device, args.instruction, args.layers, variant)


def make_arms(args: argparse.Namespace, subject: Subject, dtype: Any) -> list[Arm]:
    """The lines of the comparison: the plain paths, the dense model, the modes."""
    from vla_prune_ros.benchmark.report import DENSE
    from vla_prune_ros.benchmark.run import Arm
    from vla_prune_ros.evaluation.entries import make_entries

    ours, fast = [], settings(args)
    for entry in make_entries(args.modes, args.option, args.variant, control='off'):
        options = dict(entry.options)
        config = subject.model.config
        if entry.mode == 'lightvla' and config.pruning_trained != 'lightvla':
            options.setdefault(
                'keep', round(LIGHTVLA_TOKENS * config.n_views * config.patches_per_view)
            )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # what matters is in the note
            policy = subject.policy(entry.mode, **fast, **options)
        fast.pop('quantization', None)  # the arms share one model, which now is quantised
        name = DENSE if entry.name == 'none' else entry.name
        ours.append(Arm(name, policy, entry.mode, options, policy.info()['note']))
    if args.no_reference:
        return ours
    # Last, because a runtime may have moved the weights; on its own where they were changed.
    changed = args.quantization not in (None, 'none') or args.runtime == 'compile'
    plain = make_subject(args, dtype) if changed else subject
    return [*references(plain), *ours]


def references(subject: Subject) -> list[Arm]:
    """Both plain paths."""
    from vla_prune_ros.benchmark.reference import ReferencePolicy
    from vla_prune_ros.benchmark.run import Arm

    return [
        Arm(
            name,
            ReferencePolicy(subject.model, subject.processor, attention),
            'reference',
            {'attention': attention},
            note,
        )
        for name, attention, note in (
            ('eager', 'maps', 'plain path with attention maps, the baseline of pruning papers'),
            ('released', 'fused', 'plain path with the fused attention of the released policy'),
        )
    ]


def settings(args: argparse.Namespace) -> dict[str, str]:
    """What the command line says about making it fast."""
    given = {
        'runtime': args.runtime,
        'quantization': args.quantization,
        'image_pipeline': args.image_pipeline,
    }
    return {key: value for key, value in given.items() if value}


def describe(args, argv, subject, layout, machine, frames, load) -> dict[str, Any]:
    """Everything that a reader needs to judge the numbers."""
    import torch

    return {
        'command': command_line(argv, 'bench'),
        'environment': environment(),
        'subject': subject.name,
        'size': None if args.checkpoint else subject.name,
        'parameters': subject.parameters,
        'tokens': layout.length,
        'visual_tokens': layout.n_visual,
        'prompt_tokens': layout.prompt_length,
        'device': args.device,
        'dtype': args.dtype,
        'threads': torch.get_num_threads(),
        **{key: value or 'default' for key, value in (
            ('runtime', args.runtime), ('quantization', args.quantization),
            ('image_pipeline', args.image_pipeline),
        )},
        'frames': frames,
        'ticks': args.ticks,
        'warm_up': args.warm_up,
        'machine': {'flops': machine.flops, 'bandwidth': machine.bandwidth},
        'load_average': load,
        'note': args.note,
    }  # fmt: skip


def _count_work(args, subject, arms, samples, queries) -> None:
    """Fill in the work of arms whose runtime cannot be watched."""
    from vla_prune_ros.benchmark.run import Arm, run_ladder

    twins = []
    for arm in arms:
        if arm.is_reference:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            policy = subject.policy(arm.mode, runtime='plain', **arm.options)
        twins.append(Arm(arm.name, policy, arm.mode))
    counted = run_ladder(
        twins, queries, subject.instruction, args.warm_up, subject.model.decoder, _progress
    )
    for name, own in counted.items():
        samples[name].work = own.work


def _runtime(arm: Arm) -> str:
    return arm.policy.info().get('runtime', 'plain')


def _weight_bytes(args: argparse.Namespace, dtype: Any) -> dict[str, float]:
    """Bytes of a weight by stage; quantisation is about the decoder."""
    from vla_prune_ros.benchmark.cards import FOUR_BITS

    size = float(dtype.itemsize)
    small = {'int8': 1.0, 'fp8': 1.0, 'int4': FOUR_BITS}
    return {'vision': size, 'decoder': small.get(args.quantization, size), 'head': size}


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        print(f'\rbench: query {done}/{total}', end='\n' if done == total else '',
              file=sys.stderr, flush=True)  # fmt: skip
