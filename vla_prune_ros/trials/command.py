# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the verbs of this room share: options, the way they end, the files they write."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vla_prune_ros.command_line import exit_code_of, verb_parser
from vla_prune_ros.ros.children import end_within

END = 60.0  # s from a signal to the end of the process on an idle machine, at most
# Both families of the tabletop suite and all four colours come first.
TASKS = '0,5,2,7,4,1,6,3'
OPTIONS: dict[str, tuple[type, str]] = {
    'modes': (str, '"all" or names with commas'),
    'episodes': (int, 'episodes per mode or task'),
    'tasks': (str, 'task names or indices, with commas'),
    'first_state': (int, 'first initial state'),
    'max_steps': (int, "step limit; 0: the tasks' own"),
    'checkpoint': (str, 'checkpoint; nothing: the embedded policy'),
    'device': (str, 'torch device of the policy'),
    'backend': (str, 'simulated robot'),
    'assets': (str, "libero: directory of its assets, or 'placeholder'"),
    'threads': (int, 'CPU threads of a model'),
    'size': (int, 'side of the pictures'),
    'note': (str, 'a sentence for the page, such as what else ran'),
    'out': (Path, 'output directory, logs of the nodes included'),
    'domain_id': (int, 'ROS_DOMAIN_ID, 0 to 101; nothing: a free one'),
    'patience': (float, 's to wait for a node or a sign of life; a busy machine gets more'),
}


def parser(verb: str, description: str, **defaults: Any) -> argparse.ArgumentParser:
    """A command line with some of the shared options, in the order of `defaults`."""
    p = verb_parser(verb, description)
    for name, default in defaults.items():
        kind, text = OPTIONS[name]
        shown = '' if default in ('', None) else f' (default: {default})'
        p.add_argument(
            f'--{name.replace("_", "-")}', type=kind, default=default, help=text + shown
        )
    return p


def run_verb(
    p: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, list[str]], int],
    argv: Sequence[str] | None,
    wrong: Callable[[argparse.Namespace], str] = lambda args: '',
) -> int:
    """Run a verb to its exit code; what ends it early is said on stderr.

    SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt once, so that the nodes are stopped in
    order; after that they are ignored, or a second one would break the teardown. A process that
    still lives `END` seconds later says where every thread is and ends with 1, with its nodes.

    Args:
        p: its command line.
        run: gets the options and the words that they came from.
        argv: the words; None: those of the process.
        wrong: says what is wrong with options; exit code 2 if anything.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = p.parse_args(argv)
    if text := wrong(args):
        print(f'{p.prog}: {text}', file=sys.stderr)
        return 2
    _interrupt_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return exit_code_of(p.prog, lambda: run(args, argv), interrupted='all nodes were stopped')


def _interrupt_on(*numbers: int) -> None:
    def interrupt(number: int, frame: object) -> None:
        for n in heard:
            signal.signal(n, signal.SIG_IGN)
        # The exception may come where it is swallowed, or inside a lock that the teardown needs.
        end_within(END)
        raise KeyboardInterrupt

    # What was ignored from the start, as by nohup, stays ignored.
    heard = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]
    for n in heard:
        signal.signal(n, interrupt)


def checkpoint_parameters(checkpoint: str) -> list[str]:
    """The node's parameters for a checkpoint of the user's, if there is one: with its cameras."""
    if not checkpoint:
        return []
    from vla_prune_ros.policy.description import cameras_of

    parameters = [f'checkpoint:={Path(checkpoint).resolve()}']
    try:
        cameras = cameras_of(checkpoint)
    except (OSError, ValueError):
        return parameters  # the node says what is wrong with it
    return [*parameters, f'cameras:=[{", ".join(cameras)}]']


def ended_well(verb: str, codes: dict[str, int]) -> bool:
    """Whether all nodes ended with 0; says which did not."""
    for name, code in codes.items():
        if code:
            print(f'{verb}: {name} ended with exit code {code}', file=sys.stderr)
    return not any(codes.values())


def write(path: Path, content: str | dict[str, Any]) -> None:
    """Write a page, or results as JSON; the directory is made."""
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + '\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
