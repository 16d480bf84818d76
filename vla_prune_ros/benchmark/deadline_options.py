# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Command line of the verb `deadline`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_prune_ros.command_line import at_least, listed, verb_parser

DESCRIPTION = """\
Does a budget that follows the deadline do better than fixed ones when other work comes and goes?
Measures a model on one core beside real busy loops, then plays closed-loop episodes of the
embedded policy with these latencies. Writes results.json, deadline.md and pictures."""
EXAMPLES = """\
examples:
  deadline --measure --out out/deadline           the machine alone: some minutes, keep it idle
  deadline --latencies out/deadline/results.json --out out/deadline           the episodes
  deadline --mode specprune --leads 2,4,6 --episodes 32"""
BUDGETS = ('governor', '0.0625', '0.25', '0.5', '1')


def arm(text: str) -> str:
    """Check one of `--budgets`.

    Raises:
        ValueError: it is neither a share nor a governor, or the share is not in 0..1.
    """
    name, colon, floor = text.partition(':')
    share = (float(floor) if colon else 0.0) if name == 'governor' else float(text)
    if not 0.0 <= share <= 1.0 or (share == 0.0 and name != 'governor'):
        raise ValueError(f'{text}: a share is above 0 and at most 1')
    return text


def check_mode(mode: str) -> None:
    """Raise ValueError for a pruning mode that is not there or has no budget."""
    from vla_prune_ros.pruning import MODES

    with_budget = [name for name, method in MODES.items() if method.budget_kind != 'none']
    if mode not in with_budget:
        raise ValueError(f'--mode {mode}: modes with a budget are {", ".join(with_budget)}')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = verb_parser('deadline', DESCRIPTION, EXAMPLES)
    p.add_argument('--mode', default='fastv', help='pruning mode with a budget (default: fastv)')
    p.add_argument('--size', default='small', help='model whose latency counts (default: small)')
    p.add_argument(
        '--trace', action='store_true',
        help='take the processor time of a pass for its time on a quiet core, and n loops for a'
        ' factor of n + 1: for a machine that has other work',
    )  # fmt: skip
    p.add_argument(
        '--live', default='tabletop', metavar='DIR',
        help='checkpoint of the live runs beside real busy loops (default: the embedded policy)',
    )  # fmt: skip
    p.add_argument('--core', type=int, help='core for model and loops (default: the last one)')
    p.add_argument(
        '--loads', type=listed(at_least(0), '0,1,3'), default='0,1,3',
        help='busy loops to sample beside (%(default)s)',
    )  # fmt: skip
    p.add_argument('--samples', type=at_least(2), default=6, help='of every class and load (6)')
    p.add_argument('--measure', action='store_true', help='only this; no episodes')
    p.add_argument(
        '--latencies', type=Path,
        help='results.json with samples taken earlier; with --measure the live runs are new',
    )  # fmt: skip
    p.add_argument(
        '--faster', type=float, default=1.0,
        help='episodes: of a machine so many times as fast, as a chunk lasts 0.4 s (default: 1)',
    )  # fmt: skip
    p.add_argument(
        '--leads', type=listed(at_least(1), '2,4,6,8'), default='2,4,6,8',
        help='deadlines in control steps of 50 ms: a chunk is asked for when so many actions are'
        ' left (%(default)s)',
    )  # fmt: skip
    p.add_argument(
        '--budgets', type=listed(arm, 'governor,governor:0.1875,0.25'), default=','.join(BUDGETS),
        help='what to compare: governor, governor:FLOOR (governor.floor), and fixed shares'
        ' (%(default)s)',
    )  # fmt: skip
    p.add_argument('--episodes', type=at_least(1), default=16, help='of every cell (16)')
    p.add_argument('--first-state', type=at_least(0), default=0, help='first initial state (0)')
    p.add_argument('--note', default='', help='a sentence for the page, such as what else ran')
    p.add_argument('--out', type=Path, default=Path('out/deadline'), help='output directory')
    p.add_argument('--quiet', action='store_true', help='no progress')
    return p
