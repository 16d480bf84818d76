# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `evaluate`: compare pruning modes in closed loop on one suite."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_prune_ros.evaluation.rollouts import Entry, Episode, Setup

DESCRIPTION = """\
Run closed-loop episodes of a policy under several pruning modes, from the same initial states
for every mode, and write episodes.csv, summary.csv, results.json, report.md and pictures. An
interrupted run goes on where it stopped when the same command is given again."""

EXAMPLES = """\
examples:
  evaluate --modes all --episodes 200 --out out/evaluation
  evaluate --modes none,random --sweep random.keep=8,16,32,48 --episodes 80
  evaluate --modes none --variant no_local=specprune,use_local=false
  evaluate --modes none,lightvla --checkpoint DENSE --checkpoint-for lightvla=FINE_TUNED \\
      --variant dense_lightvla=none --checkpoint-for dense_lightvla=FINE_TUNED"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog='evaluate',
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        '--checkpoint', metavar='DIR',
        help='checkpoint directory or name of an embedded policy; default: the embedded policy,'
        ' and for modes that an embedded policy was trained for, that one',
    )  # fmt: skip
    p.add_argument(
        '--checkpoint-for', action='append', default=[], metavar='NAME=DIR',
        help='another checkpoint for an entry, or for the entries of a mode; may be repeated',
    )  # fmt: skip
    p.add_argument('--unnorm-key', help='key of the normalisation statistics, where several exist')
    p.add_argument(
        '--readout-start', type=int, metavar='N',
        help='first state given to the head, counted from the end; default: as trained (-58 at'
        ' published sizes); the LightVLA release takes -56',
    )  # fmt: skip
    p.add_argument('--modes', default='all', help='"all" or names with commas (default: all)')
    p.add_argument(
        '--option', action='append', default=[], metavar='MODE.KEY=VALUE',
        help='option of one mode; may be repeated',
    )  # fmt: skip
    p.add_argument(
        '--variant', action='append', default=[], metavar='NAME=MODE[,KEY=VALUE...]',
        help='a further entry under a name of its own; may be repeated',
    )  # fmt: skip
    p.add_argument(
        '--sweep', action='append', default=[], metavar='MODE.KEY=V1,V2,...',
        help='one further entry for each value of an option; may be repeated',
    )  # fmt: skip
    p.add_argument(
        '--control', default=None, metavar='R1,R2,...',
        help='also run random pruning that keeps these shares of each view, for the curve of'
        ' success against tokens; "off" for none (default with --modes all: 0.125,0.25,0.75)',
    )  # fmt: skip
    p.add_argument(
        '--episodes', type=int, default=50,
        help='episodes of every entry, spread evenly over the tasks (default: 50)',
    )  # fmt: skip
    p.add_argument('--tasks', help='task names or indices with commas; default: the whole suite')
    p.add_argument('--first-state', type=int, default=0, help='first initial state (default: 0)')
    p.add_argument('--suite', default='tabletop', help='simulation backend (default: tabletop)')
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
    p.add_argument('--threads', type=int, default=1, help='torch threads per worker (default: 1)')
    p.add_argument('--device', default='cpu', help='torch device of every worker (default: cpu)')
    p.add_argument('--dtype', default='float32', help='float32 or bfloat16 (default: float32)')
    p.add_argument('--seed', type=int, default=7, help='seed of seeded modes (default: 7)')
    p.add_argument('--max-steps', type=int, help="step limit instead of the tasks' own")
    p.add_argument('--out', type=Path, default=Path('out/evaluation'), help='output directory')
    p.add_argument('--quiet', action='store_true', help='no progress bar')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when every episode finished without an exception."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser().parse_args(argv)
    try:
        return evaluate(args, argv)
    except (ValueError, OSError, RuntimeError) as error:
        print(f'evaluate: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f'\nevaluate: interrupted; finished episodes are kept in {args.out}, the same command'
            ' goes on from there',
            file=sys.stderr,
        )
        return 130


def evaluate(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Run, summarise and write everything."""
    from tqdm import tqdm

    from vla_prune_ros.evaluation.entries import (
        assign_checkpoints,
        embedded_checkpoints,
        make_entries,
    )
    from vla_prune_ros.evaluation.report import command_line, environment
    from vla_prune_ros.evaluation.rollouts import Setup
    from vla_prune_ros.evaluation.workers import EpisodeLog, run_episodes

    checkpoint, own = args.checkpoint, {}
    if checkpoint is None:
        checkpoint, own = embedded_checkpoints(args.suite)
    setup = Setup(
        checkpoint=checkpoint,
        suite=args.suite,
        device=args.device,
        dtype=args.dtype,
        unnorm_key=args.unnorm_key,
        readout_start=args.readout_start,
        seed=args.seed,
        threads=args.threads,
    )
    entries = make_entries(args.modes, args.option, args.variant, args.sweep, args.control)
    entries = assign_checkpoints(entries, args.checkpoint_for, own)
    workers, remarks = find_workers(args, setup)
    facts, entries = describe(setup, entries)
    setup = replace(setup, sha256=facts['sha256'])
    plan = make_plan(entries, facts, args)
    fingerprint = {k: v for k, v in asdict(setup).items() if k not in ('checkpoint', 'threads')}
    log = EpisodeLog(args.out / 'episodes.jsonl', fingerprint)
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

        records = run_episodes(setup, plan, log, workers, tick, executor=args.executor)
    run = {
        'command': command_line(argv, 'evaluate'),
        'environment': environment(),
        'executor': args.executor,
        'workers': workers,
        'notes': [*notes(facts, entries, plan, done), *remarks],
        **asdict(setup),
        **facts,
    }
    rows = write_results(args.out, run, entries, records)
    return 1 if any(row['exceptions'] for row in rows) else 0


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
    from vla_prune_ros.evaluation import report, summary

    baseline = next((e.name for e in entries if e.mode == 'none' and not e.checkpoint), None)
    entries = [
        e if e.checkpoint else replace(e, checkpoint=run['checkpoint'], sha256=run['sha256'])
        for e in entries
    ]
    rows = summary.summarise(entries, records, baseline, run['mode_notes'])
    pictures = report.write_pictures(rows, records, run['dimension_names'], run['chunk_len'], out)
    results = {'run': run, 'baseline': baseline, 'entries': rows}
    (out / 'results.json').write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    summary.write_summary_csv(rows, out / 'summary.csv')
    summary.write_episodes_csv(records, out / 'episodes.csv')
    (out / 'report.md').write_text(report.markdown(run, rows, pictures), encoding='utf-8')
    print(summary.summary_table(rows, run['checkpoint']))
    print(f'\nwritten: {out / "report.md"}, results.json, summary.csv, episodes.csv, pictures')
    for row in rows:
        if row['exceptions']:
            print(
                f'{row["name"]}: {row["exceptions"]} episodes ended in an exception, see'
                f' {out / "episodes.csv"}',
                file=sys.stderr,
            )
    return rows


def describe(setup: Setup, entries: Sequence[Entry]) -> tuple[dict, list[Entry]]:
    """Facts of checkpoints and suite, and the entries with the digests of their weights.

    Building every entry once finds a bad option or checkpoint early.
    """
    import torch

    from vla_prune_ros.evaluation.rollouts import Session, checkpoint_directory

    session = Session(setup)
    try:
        info, robot = session.policy.info(), session.robot
        facts = {
            'sha256': info['sha256'],
            'pruning_trained': info['pruning_trained'],
            'readout_start': info['readout_start'],
            'mode_notes': {},
            'dimension_names': list(info['dimension_names']),
            'chunk_len': session.policy.config.chunk_len,
            'tasks': [task.name for task in robot.tasks],
            'n_initial_states': robot.n_initial_states,
        }
        described = list(entries)
        own = checkpoint_directory(setup.checkpoint).resolve()
        # One checkpoint after the other, so that each is loaded once.
        for k in sorted(range(len(entries)), key=lambda k: entries[k].checkpoint or ''):
            entry = entries[k]
            if entry.checkpoint and checkpoint_directory(entry.checkpoint).resolve() == own:
                entry = replace(entry, checkpoint=None)
            policy = session.use(entry.checkpoint)
            policy.set_pruning(entry.mode, **entry.options)
            info = policy.info()
            if info['note']:
                facts['mode_notes'][entry.name] = info['note']
            described[k] = replace(entry, sha256=info['sha256'] if entry.checkpoint else '')
        return facts, described
    finally:
        session.close()
        del session  # the workers load their own; a GPU may not hold one more
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def make_plan(entries: Sequence[Entry], facts: dict, args: argparse.Namespace) -> list[Episode]:
    """All episodes: initial states outermost, so that an interrupted run is still paired."""
    from vla_prune_ros.evaluation.rollouts import Episode

    tasks = [_task_index(t, facts['tasks']) for t in args.tasks.split(',')] if args.tasks else None
    tasks = tasks or list(range(len(facts['tasks'])))
    last = args.first_state + (args.episodes - 1) // len(tasks)
    if args.episodes < 1 or args.first_state < 0 or last >= facts['n_initial_states']:
        raise ValueError(
            f'{args.episodes} episodes over {len(tasks)} tasks from state {args.first_state} on do'
            f' not fit into the {facts["n_initial_states"]} initial states of each task'
        )
    plan = []
    for k in range(args.episodes):
        task, state = tasks[k % len(tasks)], args.first_state + k // len(tasks)
        for entry in entries:
            plan.append(Episode(entry, task, state, args.max_steps, keep_actions=k == 0))
    return plan


def _task_index(text: str, names: Sequence[str]) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdigit() and int(text) < len(names):
        return int(text)
    raise ValueError(f'unknown task {text!r}; valid: {", ".join(names)}')


def notes(facts: dict, entries: Sequence[Entry], plan: Sequence[Episode], done: int) -> list[str]:
    """Remarks for the head of the report."""
    states = sorted({episode.state for episode in plan})
    remarks = [
        f'{len(plan) // len(entries)} episodes per entry over'
        f' {len({e.task for e in plan})} of {len(facts["tasks"])} tasks, initial states'
        f' {states[0]} to {states[-1]} of {facts["n_initial_states"]}'
    ]
    if done:
        remarks.append(f'{done} of {len(plan)} episodes were taken over from an earlier run')
    return remarks
