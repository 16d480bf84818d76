# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the command lines of the verbs share. Knows no room, and torch only where it is asked."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    'vla_prune_ros', 'torch', 'transformers', 'numpy', 'mujoco', 'robosuite', 'hf-libero',
)  # fmt: skip


# -- arguments ---------------------------------------------------------------------------------
def verb_parser(verb: str, description: str | None, examples: str = '') -> argparse.ArgumentParser:
    """A parser that leaves texts as they are written."""
    return argparse.ArgumentParser(
        prog=verb,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_modes(parser: argparse.ArgumentParser, line: str) -> None:
    """Add `--modes`, `--option` and `--variant`; `line` is what one mode is in the comparison."""
    parser.add_argument(
        '--modes', default='all', metavar='MODE[:KEY=VALUE...],...',
        help='"all" or names with commas, each with options if wanted, such as'
        ' none,specprune:budget=0.25 (default: all)',
    )  # fmt: skip
    parser.add_argument(
        '--option', action='append', default=[], metavar='MODE.KEY=VALUE',
        help='option of one mode; may be repeated',
    )  # fmt: skip
    parser.add_argument(
        '--variant', action='append', default=[], metavar='NAME=MODE[,KEY=VALUE...]',
        help=f'a further {line} under a name of its own; may be repeated',
    )  # fmt: skip


def add_compute(parser: argparse.ArgumentParser, whose: str = '') -> None:
    """Add `--device`, `--dtype`, `--unnorm-key` and `--model-variant`.

    `whose` says which processes they are for.
    """
    parser.add_argument('--device', default='cpu', help=f'torch device{whose} (default: cpu)')
    parser.add_argument(
        '--dtype', default='float32', help='of the weights: float32, bfloat16 or float16'
        ' (default: float32)',
    )  # fmt: skip
    parser.add_argument(
        '--unnorm-key', help='key of the normalisation statistics, where several exist'
    )
    parser.add_argument(
        '--model-variant', default='', metavar='NAME[,KEY=VALUE...]',
        help='what the files of the checkpoint do not say; see doc/variants.md',
    )  # fmt: skip


def at_least(least: int) -> Callable[[str], int]:
    """Type of an argument: a whole number from `least` on."""

    def whole(text: str) -> int:
        if not text.removeprefix('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {least} on')
        return int(text)

    return whole


def listed(kind: Callable[[str], Any], example: str) -> Callable[[str], list[Any]]:
    """Type of an argument: values with commas, `example` for one."""

    def values(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(',')]
        except ValueError:
            raise argparse.ArgumentTypeError(
                f'{text!r} is no list with commas such as {example}'
            ) from None

    return values


def require_device(name: str) -> None:
    """Check a torch device before anything is loaded.

    Raises:
        RuntimeError: no such kind of device.
        ValueError: there is none on this machine.
    """
    import torch

    if torch.device(name).type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'--device {name}: torch finds no GPU here')


# -- endings and results -----------------------------------------------------------------------
def exit_code_of(verb: str, run: Callable[[], int], wrong: int = 1, interrupted: str = '') -> int:
    """Run a verb; what ends it early is said in one line on stderr.

    Args:
        verb: its name.
        run: returns the exit code.
        wrong: exit code after an error.
        interrupted: what to say about a run that was interrupted; exit code 130.
    """
    try:
        return run()
    except BrokenPipeError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f'{verb}: {error}', file=sys.stderr)
        return wrong
    except KeyboardInterrupt:
        print(f'\n{verb}: interrupted{interrupted and f"; {interrupted}"}', file=sys.stderr)
        return 130


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result for programs; folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def command_line(arguments: Sequence[str], verb: str) -> str:
    """The command that made the results, as it can be typed again."""
    return shlex.join(['python', '-m', 'vla_prune_ros', verb, *arguments])


def environment() -> dict[str, Any]:
    """Versions and hardware, for the head of every result."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name == 'vla_prune_ros':
                packages[name] = 'source tree'
    return {
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'python': platform.python_version(),
        'system': platform.platform(),
        'cpu': processor_name(),
        'cores': len(os.sched_getaffinity(0)),
        'gpu': torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        'packages': packages,
    }


def environment_line(env: Mapping[str, Any]) -> str:
    """Date and software of `environment` as a line of a page."""
    packages = ', '.join(f'{name} {version}' for name, version in env['packages'].items())
    return f'- {env["date"]}, {packages}, Python {env["python"]}, {env["system"]}'


def processor_name() -> str:
    """Model name of the CPU, or its kind where the system does not tell."""
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
