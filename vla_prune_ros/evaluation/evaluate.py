# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `evaluate`: compare pruning modes in closed loop on one suite."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
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
from vla_prune_ros.evaluation.exclusive import exclusive

if TYPE_CHECKING:
    from vla_prune_ros.evaluation.rollouts import Entry, Setup

DESCRIPTION = """\
Run closed-loop episodes of a policy under several pruning modes, from the same initial states
for every mode, and write episodes.csv, summary.csv, results.json, report.md and pictures. An
interrupted run goes on where it stopped when the same command is given again."""

EXAMPLES = """\
examples:
  evaluate --modes all --episodes 200 --out out/evaluation
  evaluate --suite libero_spatial --modes none,specprune --trials 50 --checkpoint DIR \\
      --device cuda --dtype bfloat16 --workers 8 --out out/spatial
  evaluate --modes none,random --sweep random.keep=8,16,32,48 --episodes 80
  evaluate --modes none --variant no_local=specprune,use_local=false
  evaluate --modes none,lightvla --checkpoint DENSE --checkpoint-for lightvla=FINE_TUNED \\
      --variant dense_lightvla=none --checkpoint-for dense_lightvla=FINE_TUNED"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = verb_parser('evaluate', DESCRIPTION, EXAMPLES)
    p.add_argument(
        '--checkpoint', metavar='DIR',
        help='checkpoint directory or name of an embedded policy; default: the embedded policy,'
        ' and for modes that an embedded policy was trained for, that one',
    )  # fmt: skip
    p.add_argument(
        '--checkpoint-for', action='append', default=[], metavar='NAME=DIR',
        help='another checkpoint for an entry, or for the entries of a mode; may be repeated',
    )  # fmt: skip
    p.add_argument(
        '--readout-start', type=int, metavar='N',
        help='first state given to the head, counted from the end; default: as trained (-58 at'
        ' published sizes); the LightVLA release takes -56',
    )  # fmt: skip
    add_modes(p, 'entry')
    p.add_argument(
        '--sweep', action='append', default=[], metavar='MODE.KEY=V1,V2,...',
        help='one further entry for each value of an option; may be repeated',
    )  # fmt: skip
    p.add_argument(
        '--control', default=None, metavar='R1,R2,...',
        help='also run random pruning that keeps these shares of each view, for the curve of'
        ' success against tokens; "off" for none (default with --modes all: 0.125,0.25,0.75)',
    )  # fmt: skip
    number = p.add_mutually_exclusive_group()
    number.add_argument(
        '--episodes', type=at_least(1), default=50,
        help='episodes of every entry, spread evenly over the tasks (default: 50)',
    )  # fmt: skip
    number.add_argument(
        '--trials', type=at_least(1), metavar='N',
        help='episodes of every entry and task; 50 is the published LIBERO protocol',
    )  # fmt: skip
    p.add_argument(
        '--audit', action='store_true',
        help='also run every observation dense: what pruning changed, and how well that predicts'
        ' failure',
    )  # fmt: skip
    p.add_argument('--tasks', help='task names or indices with commas; default: the whole suite')
    p.add_argument(
        '--first-state', type=at_least(0), default=0, help='first initial state (default: 0)'
    )
    p.add_argument(
        '--suite', default='tabletop',
        help='tabletop, or libero_spatial, libero_object, libero_goal, libero_10, libero_90'
        ' (default: tabletop)',
    )  # fmt: skip
    p.add_argument(
        '--assets', metavar='DIR',
        help="libero: directory of its assets, or 'placeholder' for a test that is no benchmark;"
        ' default: where LIBERO looks for them',
    )  # fmt: skip
    p.add_argument(
        '--videos', type=at_least(0), metavar='N',
        help='film up to N failed episodes of every entry (default: 3 on libero, else 0)',
    )  # fmt: skip
    p.add_argument(
        '--executor', choices=('processes', 'ray'), default='processes',
        help='processes on this machine, or a ray cluster where ray is installed: that of'
        ' RAY_ADDRESS, else a new one on this machine (default: processes)',
    )  # fmt: skip
    p.add_argument(
        '--workers', type=int,
        help='episodes at once (default: one per core, with ray of the cluster, there one per GPU'
        ' if --device is one)',
    )  # fmt: skip
    p.add_argument(
        '--shared-model', action=argparse.BooleanOptionalAction, default=None,
        help='one process has the model and serves all workers (default: with --device cuda)',
    )  # fmt: skip
    p.add_argument(
        '--threads', type=at_least(1), default=1, help='torch threads per worker (default: 1)'
    )
    add_compute(p, ' of every worker')
    p.add_argument(
        '--quantization', default='none', help='none, int8, fp8 or int4 (default: none)'
    )
    p.add_argument('--seed', type=int, default=7, help='seed of seeded modes (default: 7)')
    p.add_argument(
        '--shift', default='', metavar='AXIS:LEVEL,...',
        help='a world that differs from the suite, see doc/shifts.md; levels 1 to 5, 0 and none:'
        ' as the suite is (default: none)',
    )  # fmt: skip
    p.add_argument(
        '--shift-seed', type=at_least(0), default=0, help='what shifts draw from (default: 0)'
    )
    p.add_argument('--max-steps', type=at_least(1), help="step limit instead of the tasks' own")
    p.add_argument(
        '--out',
        type=Path,
        default=Path('out/evaluation'),
        help='output directory (%(default)s)',
    )
    p.add_argument('--quiet', action='store_true', help='no progress bar')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when every episode finished without an exception."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser().parse_args(argv)

    def run() -> int:
        with exclusive(args.out):
            return evaluate(args, argv)

    kept = f'finished episodes are kept in {args.out}, the same command goes on from there'
    return exit_code_of('evaluate', run, interrupted=kept)


def evaluate(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Run, summarise and write everything."""
    from tqdm import tqdm

    from vla_prune_ros.evaluation.entries import (
        assign_checkpoints,
        embedded_checkpoints,
        make_entries,
    )
    from vla_prune_ros.evaluation.plan import describe, make_plan, notes
    from vla_prune_ros.evaluation.rollouts import Setup
    from vla_prune_ros.evaluation.workers import EpisodeLog, run_episodes
    from vla_prune_ros.sim import backend_of
    from vla_prune_ros.sim.shifts import check_backend, parse_shift, shift_text

    require_device(args.device)
    checkpoint, own = args.checkpoint, {}
    backend = backend_of(args.suite)
    libero = backend == 'libero'
    shift = parse_shift(args.shift)
    check_backend(shift, backend)
    if checkpoint is None:
        if libero:
            raise ValueError(f'--suite {args.suite} needs a --checkpoint; none comes with it')
        checkpoint, own = embedded_checkpoints(args.suite)
    setup = Setup(
        checkpoint=checkpoint,
        suite=args.suite,
        device=args.device,
        dtype=args.dtype,
        quantization=args.quantization,
        unnorm_key=args.unnorm_key,
        variant=args.model_variant,
        readout_start=args.readout_start,
        seed=args.seed,
        shift=shift_text(shift),
        shift_seed=args.shift_seed,
        threads=args.threads,
        robot_options=robot_options(args, libero),
        videos=str(args.out / 'videos'),
        max_videos=(3 if libero else 0) if args.videos is None else args.videos,
        audit=args.audit,
    )
    entries = make_entries(args.modes, args.option, args.variant, args.sweep, args.control)
    entries = assign_checkpoints(entries, args.checkpoint_for, own)
    workers, remarks = find_workers(args, setup)
    facts, entries = describe(setup, entries)
    setup = replace(setup, sha256=facts['sha256'])
    plan = make_plan(entries, facts, args)
    log = EpisodeLog(args.out / 'episodes.jsonl', setup.fingerprint())
    done = sum(log.finished(episode) is not None for episode in plan)
    often = 0.2 if sys.stderr.isatty() else 30.0  # seconds; a log file wants few lines
    with tqdm(
        total=len(plan), initial=done, unit='episode', disable=args.quiet, mininterval=often
    ) as bar:

        def tick(record: Any) -> None:
            bar.set_postfix_str(f'{record.episode.entry.name} {record.task_name}', refresh=False)
            bar.update()
            if record.error:
                tqdm.write(f'{record.episode.entry.name}, {record.task_name}: {record.error}')

        with sessions(args, setup, workers) as session:
            records = run_episodes(setup, plan, log, workers, tick, session, args.executor)
    run = {
        'command': command_line(argv, 'evaluate'),
        'environment': environment(),
        'executor': args.executor,
        'workers': workers,
        'notes': [*notes(facts, entries, plan, done), *remarks],
        'failures': [
            {
                'entry': r.episode.entry.name,
                'task': r.task_name,
                'state': r.episode.state,
                'failure': r.failure or 'worker',
                'error': r.error,
            }
            for r in records
            if r.error
        ],
        **asdict(setup),
        **facts,
    }
    rows = write_results(args.out, run, entries, records)
    return 1 if any(row['exceptions'] for row in rows) else 0


def robot_options(args: argparse.Namespace, libero: bool) -> dict[str, Any]:
    """Options of the simulated robot; the assets by the folder that they really are.

    Raises:
        ValueError: assets for a suite that has none.
        RuntimeError: LIBERO or its assets are missing.
    """
    if not libero:
        if args.assets:
            raise ValueError(f'--assets is for LIBERO; --suite is {args.suite}')
        return {}
    from vla_prune_ros.sim.libero.assets import find_assets

    return {'assets': str(find_assets(args.assets).path)}


def sessions(args: argparse.Namespace, setup: Setup, workers: int) -> AbstractContextManager:
    """The factory of the workers' sessions, in whose context the model may be shared.

    Raises:
        ValueError: a shared model on a cluster.
    """
    from vla_prune_ros.evaluation.rollouts import Session
    from vla_prune_ros.evaluation.shared_model import shared_model

    shared = args.shared_model
    if shared and args.executor == 'ray':
        raise ValueError('--shared-model is for --executor processes')
    if shared is None:
        on_gpu = args.device.startswith('cuda') and args.executor == 'processes'
        shared = on_gpu and workers > 1
    return shared_model(setup) if shared else nullcontext(Session)


def find_workers(args: argparse.Namespace, setup: Setup) -> tuple[int, list[str]]:
    """How many episodes run at once, and what a reader must know about where.

    Raises:
        ValueError: less than one.
        RuntimeError: a ray cluster is asked for and cannot be had.
    """
    if args.workers is not None and args.workers < 1:
        raise ValueError('--workers must be at least 1')
    if args.executor == 'processes':
        return args.workers or len(os.sched_getaffinity(0)), []
    from vla_prune_ros.evaluation.ray_executor import connect

    cluster = connect(setup)
    remark = f'run by ray on {cluster.machines} machine(s); the hardware above is that of one'
    return args.workers or cluster.workers, [remark]


def write_results(
    out: Path, run: dict, entries: Sequence[Entry], records: Sequence[Any]
) -> list[dict]:
    """Summarise the records, print the table and write all files; returns the rows."""
    from vla_prune_ros.evaluation import auditing as audit
    from vla_prune_ros.evaluation import report, summary
    from vla_prune_ros.evaluation.published import published_table

    baseline = next((e.name for e in entries if e.mode == 'none' and not e.checkpoint), None)
    entries = [
        e if e.checkpoint else replace(e, checkpoint=run['checkpoint'], sha256=run['sha256'])
        for e in entries
    ]
    rows = summary.summarise(entries, records, baseline, run['mode_notes'])
    audit.add_audits(rows, records)
    for row in rows:  # a table that is copied away from its page must say it, too
        row['note'] = '; '.join(filter(None, (run['notice'], row['note'])))
    pictures = report.write_pictures(rows, records, run['dimension_names'], run['chunk_len'], out)
    write_json(out / 'results.json', {'run': run, 'baseline': baseline, 'entries': rows})
    summary.write_summary_csv(rows, out / 'summary.csv')
    summary.write_episodes_csv(records, out / 'episodes.csv')
    (out / 'report.md').write_text(report.markdown(run, rows, pictures), encoding='utf-8')
    if run['notice']:
        print(run['notice'])
    print(summary.summary_table(rows, run['checkpoint']))
    if published := published_table(rows, run['suite'], run['notice']):
        print(f'\n{published}')
    if audited := audit.audit_table(rows):
        print(f'\n{audited}')
    print(f'\nwritten: {out / "report.md"}, results.json, summary.csv, episodes.csv, pictures')
    for row in rows:
        if row['exceptions']:
            print(
                f'{row["name"]}: {row["exceptions"]} episodes ended in an exception'
                f' ({row["environment_failures"]} failures of the environment), see'
                f' {out / "episodes.csv"}',
                file=sys.stderr,
            )
    return rows
