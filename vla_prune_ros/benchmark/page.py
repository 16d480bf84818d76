# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a benchmark: what ran where, and the tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_prune_ros.benchmark.report import (
    SCHEMA,
    main_table,
    processor_table,
    short_table,
    stage_table,
    target_table,
    unit_of,
)
from vla_prune_ros.command_line import environment_line
from vla_prune_ros.evaluation.summary import layer_table

RESULTS, REPORT, CHART = 'results.json', 'report.md', 'latency.png'
SAMPLES = 'samples.jsonl'


def markdown(
    run: Mapping[str, Any],
    rows: Sequence[dict],
    results: Sequence[dict],
    profiles: Mapping[str, Any],
    relative: bool,
) -> str:
    """The page.

    Args:
        run: from `bench.describe`.
        rows: from `report.make_rows`.
        results: from `report.targets`.
        profiles: from `profile.profile_arms`; may be empty.
        relative: times as multiples of the dense arm.
    """
    env, machine = run['environment'], run['machine']
    load = ' to '.join(f'{value:.1f}' for value in run['load_average'])
    text = [
        f'# Benchmark of `{run["subject"]}`',
        '',
        f'    {run["command"]}',
        '',
        *([f'- {run["note"]}'] if run['note'] else []),
        *_caution(run, relative),
        f'- {run["parameters"] / 1e6:.1f} M parameters, {run["dtype"]}; {run["tokens"]} tokens,'
        f' of them {run["visual_tokens"]} visual and {run["prompt_tokens"]} of the'
        ' prompt; batch 1',
        f'- device {run["device"]}, GPU {env["gpu"] or "none"}, {env["cpu"]},'
        f' {run["threads"]} torch thread(s) of {env["cores"]} cores, load average {load}',
        f'- runtime {run["runtime"]}, quantization {run["quantization"]}, image pipeline'
        f' {run["image_pipeline"]}',
        f'- {run["ticks"]} queries after {run["warm_up"]} dropped ones, `{run["frames"]}` frames,'
        ' arms in turn; first queries of an episode are kept apart',
        f'- this machine: {machine["flops"] / 1e9:.0f} GFLOP/s in matrix products of this type,'
        f' {machine["bandwidth"] / 1e9:.1f} GB/s',
        environment_line(env),
        '',
        main_table(rows, relative),
        '',
        '![time of a query by stage](latency.png)',
        '',
        '`x NAME`: how many times faster than that arm (median over queries of the ratio at the'
        ' same query). `promised`: FLOPs of the dense model divided by those of the arm. `share`:'
        ' speed-up over the dense model divided by the promise. `of floor`: least time that'
        ' matrix products of this work can take on this machine, divided by the median.',
        '',
        '## Stages',
        '',
        stage_table(rows, relative),
        '',
        *_processor(rows, relative),
        '## Visual tokens computed in each decoder layer',
        '',
        layer_table(rows, 'visual rows in layer', 0),
        '',
        '## Targets',
        '',
        target_table(results),
        '',
    ]
    if profiles:
        from vla_prune_ros.benchmark.profile import profile_tables

        text += ['## Profile', '', profile_tables(profiles), '']
    return '\n'.join(text)


def show(out: Path, pages: Sequence[Path] = ()) -> None:
    """Print the tables of a `results.json`; write page and chart beside it.

    Args:
        out: its directory.
        pages: that take the short table in, see `page.insert`.

    Raises:
        FileNotFoundError: nothing was measured there.
        ValueError: the file is of another kind, or a page has no place for the table.
    """
    content = json.loads((out / RESULTS).read_text(encoding='utf-8'))
    if content.get('schema') != SCHEMA:
        raise ValueError(f'{out / RESULTS} is not of the schema {SCHEMA}')
    run, rows, results = content['run'], content['arms'], content['targets']
    relative = not str(run['device']).startswith('cuda')
    page = markdown(run, rows, results, content['profiles'], relative)
    (out / REPORT).write_text(page, encoding='utf-8')
    written = [RESULTS, REPORT, *_draw(run, rows, out, relative)]
    for path in pages:
        insert(path, out.resolve().name, short_table(rows))
    print(f'\n{main_table(rows, relative)}\n')
    print(f'{stage_table(rows, relative)}\n')
    print(f'{target_table(results)}\n')
    print(f'bench: wrote {", ".join(str(out / name) for name in written)}')


def _draw(run: dict, rows: list[dict], out: Path, relative: bool) -> list[str]:
    """Draw the chart where matplotlib is there; returns the names of the files."""
    try:
        from vla_prune_ros.evaluation.plots import latency_by_stage
    except ImportError as error:
        print(f'bench: no {CHART} ({error}); bench --show {out} draws it later', file=sys.stderr)
        return []
    place = run['environment']['cpu'] if relative else run['environment']['gpu']
    title = f'{run["subject"]}, {run["dtype"]}, {place}'
    latency_by_stage(rows, out / CHART, *unit_of(rows, relative), title)
    return [CHART]


def insert(path: Path, name: str, table: str) -> None:
    """Put a table between the lines `<!-- bench NAME -->` and `<!-- end -->` of a page.

    Raises:
        ValueError: the page has no such lines.
    """
    text = path.read_text(encoding='utf-8')
    before, mark, rest = text.partition(f'<!-- bench {name} -->\n')
    _, end, after = rest.partition('<!-- end -->')
    if not (mark and end):
        raise ValueError(f'{path} has no lines "<!-- bench {name} -->" and "<!-- end -->"')
    path.write_text(f'{before}{mark}{table}\n{end}{after}', encoding='utf-8')


def _caution(run: Mapping[str, Any], relative: bool) -> list[str]:
    """Said where other jobs must have taken cores away."""
    cores = run['environment']['cores']
    if not relative or max(run['load_average'][0], run['load_average'][1]) <= cores:
        return []
    return [
        '- **More threads wanted to run than there are cores: times below are not to be quoted.**'
    ]


def _processor(rows: Sequence[dict], relative: bool) -> list[str]:
    if not relative:
        return []
    return [
        '## Processor time',
        '',
        'Of all threads together. On a machine that is shared the ratios of a run with one thread'
        ' are closer to the truth than those of the times above; with several threads, waiting in'
        ' a loop for each other counts as well.',
        '',
        processor_table(rows),
        '',
    ]
