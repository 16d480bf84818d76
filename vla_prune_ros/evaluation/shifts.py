# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `shifts`: what shifted worlds there are, how they look, and what they did to the modes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_prune_ros.command_line import at_least, command_line, exit_code_of, verb_parser

DESCRIPTION = """\
List the axes of shifted worlds, draw what each looks like, or compare finished evaluations of
several shifts."""

EXAMPLES = """\
examples:
  shifts list
  shifts picture --out doc/shifts.png
  shifts table out/shifts/none out/shifts/jump-5 --out out/shifts/table"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = verb_parser('shifts', DESCRIPTION, EXAMPLES)
    verbs = p.add_subparsers(dest='what', required=True, metavar='list|picture|table')
    verbs.add_parser('list', help='axes with the severities of levels 1 to 5')
    picture = verbs.add_parser('picture', help='one picture with every axis at every level')
    picture.add_argument(
        '--out', type=Path, default=Path('out/shifts.png'), help='PNG file (default: %(default)s)'
    )
    picture.add_argument(
        '--task', default='put_red_on_plate', help='task that is shown (default: %(default)s)'
    )
    picture.add_argument('--state', type=int, default=3, help='initial state (default: 3)')
    table = verbs.add_parser(
        'table', help='success, differences, interactions and recovery over several shifts'
    )
    table.add_argument(
        'runs', nargs='+', type=Path,
        help='output directories of `evaluate`, each of one shift; one without any',
    )  # fmt: skip
    table.add_argument(
        '--least', type=at_least(1), default=1, metavar='N',
        help='leave out cells of fewer episodes (default: 1)',
    )  # fmt: skip
    table.add_argument(
        '--against', choices=('dense', 'base'), default='dense',
        help='what entries are compared with: dense on the same weights, or the entry of the same '
        'mode with the largest part of its options (default: dense)',
    )  # fmt: skip
    table.add_argument(
        '--out', type=Path, default=Path('out/shift_table'), help='directory (%(default)s)'
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser().parse_args(argv)
    runs = {'list': _list, 'picture': _picture, 'table': _table}
    return exit_code_of(
        'shifts', lambda: runs[args.what](args, argv), interrupted='nothing was written'
    )


def _list(args: argparse.Namespace, argv: Sequence[str]) -> int:
    from vla_prune_ros.evaluation.summary import table
    from vla_prune_ros.sim.shifts import AXES

    rows = [
        [
            name,
            shift.summary,
            shift.unit,
            ', '.join(f'{level:g}' for level in shift.levels),
            ', '.join(shift.backends),
        ]
        for name, shift in AXES.items()
    ]
    print(table(['axis', 'what', 'unit', 'levels 1 to 5', 'robots'], rows))
    return 0


def _picture(args: argparse.Namespace, argv: Sequence[str]) -> int:
    from vla_prune_ros.evaluation.shift_pictures import contact_sheet

    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(args.task, args.state).save(args.out, optimize=True)
    print(f'written: {args.out}')
    return 0


def _table(args: argparse.Namespace, argv: Sequence[str]) -> int:
    from vla_prune_ros.evaluation.shift_report import write_report

    command = command_line(argv, 'shifts')
    print(write_report(args.runs, args.out, command, args.least, args.against))
    print(f'\nwritten: {args.out / "report.md"}, results.json, success.png')
    return 0
