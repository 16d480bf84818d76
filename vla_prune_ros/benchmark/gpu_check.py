# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `gpu_check`: everything that is to be known about a GPU, in one unattended command.

For a machine that is there for half an hour: first whether it computes correctly, then how fast.
Every step is a process of its own with a limit of its own, because an error spoils a CUDA context;
a step that fails stops no other one. Results are written as they come, what is finished is not
done again, and a call ends before its time is over, so it is called until nothing is left.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vla_prune_ros
from vla_prune_ros.benchmark.gpu_steps import STEPS, Place, Step
from vla_prune_ros.command_line import at_least, exit_code_of, verb_parser, write_json

DESCRIPTION = """\
Check and measure a GPU without anybody beside it: all tests for a GPU, the published size in every
mode, a profile, products, attention, pictures, prompts, budgets, runtimes and quantisation. Needs
a checkout and a Python with torch, triton, numpy, safetensors, tokenizers, transformers, pillow,
opencv and pytest; no ROS, no simulator, no network. Call it again to go on where it stopped."""

EXAMPLES = """\
examples:
  gpu_check --out out/gpu                        # again and again until it says that all is done
  gpu_check --out out/gpu --steps tests,quick    # only these, in this order, done before or not
  gpu_check --out out/gpu --rehearse             # everything at tiny sizes on a CPU"""
ROOT = Path(vla_prune_ros.__file__).parents[1]
_SPARE = 5.0  # s of a call for writing and for ending a step


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = verb_parser('gpu_check', DESCRIPTION, EXAMPLES)
    p.add_argument('--out', type=Path, required=True, help='directory of the results')
    p.add_argument('--steps', help=f'names with commas; default: all of {", ".join(STEPS)}')
    p.add_argument(
        '--seconds', type=at_least(1), default=540, help='this call ends before (default: 540)'
    )
    p.add_argument('--rehearse', action='store_true', help='tiny sizes on a CPU')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run steps; 0 when all that were asked for are done without a failure, else 1."""
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running step ends, too
    return exit_code_of('gpu_check', lambda: check(args), wrong=2)


def check(args: argparse.Namespace) -> int:
    """Run what is left of the steps.

    Raises:
        ValueError: unknown step.
    """
    place = Place(args.out.resolve(), ROOT, args.rehearse)
    place.out.mkdir(parents=True, exist_ok=True)
    if args.steps:
        names = args.steps.split(',')
        if unknown := [name for name in names if name not in STEPS]:
            raise ValueError(f'unknown step {unknown[0]!r}; valid: {", ".join(STEPS)}')
        todo = [STEPS[name] for name in names]
    else:
        todo = unfinished(STEPS, place.out)
    run_steps(todo, place, args.seconds)
    left = unfinished(STEPS, place.out)
    print(f'gpu_check: {place.out / "summary.md"}')
    if left:
        print(f'gpu_check: left: {", ".join(step.name for step in left)}')
    asked = {step.name for step in todo} if args.steps else set(STEPS)
    return int(any(step.name in asked for step in left))


def unfinished(steps: Mapping[str, Step], out: Path) -> list[Step]:
    """Steps without a good result: first those never tried, then those that failed."""
    states = {name: read(out, name) for name in steps}
    new = [step for name, step in steps.items() if states[name] is None]
    failed = [s for name, s in steps.items() if states[name] and states[name]['exit_code'] != 0]
    return new + failed


def read(out: Path, name: str) -> dict[str, Any] | None:
    """What is known of a step, None if it never ran to an end."""
    path = out / f'{name}.json'
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None


def run_steps(todo: Sequence[Step], place: Place, seconds: float) -> None:
    """Run steps in turn, each only if its whole limit still fits into the time."""
    deadline = time.monotonic() + seconds - _SPARE
    for step in todo:
        if time.monotonic() + step.limit(place) > deadline:
            print(f'gpu_check: {step.name} needs up to {step.limit(place):.0f} s: another call')
            continue
        print(f'gpu_check: {step.name} ...', flush=True)
        result = run_step(step, place)
        write_json(place.out / f'{step.name}.json', result)
        write_summary(place.out)
        said = 'over its time' if result['timed_out'] else f'exit code {result["exit_code"]}'
        print(f'gpu_check: {step.name}: {said} after {result["seconds"]:.0f} s', flush=True)
    write_summary(place.out)


def run_step(step: Step, place: Place) -> dict[str, Any]:
    """Run one step to its end or to its limit; its output goes to `STEP.log`."""
    folder = place.out / step.name
    folder.mkdir(parents=True, exist_ok=True)
    command = step.command(place)
    paths = [str(place.root), os.environ.get('PYTHONPATH', '')]
    environ = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))}
    environ |= {'PYTHONUNBUFFERED': '1', **step.environment}
    started, timed_out = time.monotonic(), False
    with (place.out / f'{step.name}.log').open('w', encoding='utf-8') as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=place.root, env=environ,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(step.limit(place))
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(process)
    return {
        'step': step.name,
        'command': command,
        'exit_code': 124 if timed_out else process.returncode,
        'timed_out': timed_out,
        'seconds': time.monotonic() - started,
        'rehearsed': place.rehearse,
        'result': step.result(folder),
    }


def _end(process: subprocess.Popen) -> None:
    """End a step with all that it started; it is the leader of a group of its own."""
    for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def write_summary(out: Path) -> None:
    """Write `summary.md`: a line for each step, then what each found."""
    from vla_prune_ros.evaluation.summary import table

    lines, below = [], []
    for name, step in STEPS.items():
        state = read(out, name)
        if state is None:
            lines.append([name, 'not run', '-', step.about])
            continue
        said = 'done' if state['exit_code'] == 0 else f'failed ({state["exit_code"]})'
        said = 'over its time' if state['timed_out'] else said
        lines.append([name, said, f'{state["seconds"]:.0f}', step.about])
        if rows := state['result']:
            cells = [[*map(_cell, row.values())] for row in rows]
            below += ['', f'## {name}', '', table([*rows[0]], cells)]
    text = ['# What this GPU does', '', table(['step', '', 's', 'what'], lines), *below, '']
    (out / 'summary.md').write_text('\n'.join(text), encoding='utf-8')


def _cell(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
    sys.exit(main())
