# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Page and pictures of the verb `deadline`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vla_prune_ros.command_line import environment_line
from vla_prune_ros.evaluation.statistics import wilson_interval
from vla_prune_ros.evaluation.summary import table

_CROWDED = (
    '- **More wanted to run than there are cores: the live part below says nothing about an idle'
    ' machine.**'
)
_TRACE = (
    '- the times below are computed, not taken beside loops: processor time of real passes, times'
    ' n + 1 for n busy loops, with a spread of 4 % and half more once in 100'
)
PAGE, LIVE, SUCCESS = 'deadline.md', 'live.png', 'success.png'
_COLOURS = ('#D55E00', '#000000', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def write(result: dict[str, Any], out: Path) -> str:
    """Write everything; returns the page."""
    machine, episodes = result['machine'], result['episodes']
    live_picture(machine, out / LIVE)
    text = [
        '# A budget that follows the deadline',
        '',
        *_machine(machine),
        f'![Latency and budget while busy loops come and go]({LIVE})',
        '',
        'Grey: busy loops on the core of the policy. Above: latency of each query, and the'
        ' deadline. Below: the budget.',
        '',
    ]
    text += _traces(result['traces'], machine)
    if episodes:
        success_picture(episodes['cells'], out / SUCCESS)
        text += _episodes(episodes, machine, result['traces']['faster'])
    page = '\n'.join(text)
    (out / PAGE).write_text(page, encoding='utf-8')
    return page


def _machine(machine: dict[str, Any]) -> list[str]:
    loads = [*machine['samples_ms']]
    shares = [*machine['samples_ms'][loads[0]]]
    lines = [
        [share, f'{machine["rows"][share]:.0f}', *[
            '{:.0f} / {:.0f}'.format(*np.percentile(machine['samples_ms'][n][share], (50, 95)))
            for n in loads
        ]]
        for share in shares
    ]  # fmt: skip
    head = ['share', 'rows per layer', *[f'{n} loops, ms p50 / p95' for n in loads]]
    runs = [
        [
            'governor' if name == 'governor' else f'fixed at {name}',
            f'{100 * run["missed"]:.0f} %',
            _settled(run['settling']),
            run['changes'],
            f'{run["share"]:.2f}',
        ]
        for name, run in machine['live'].items()
    ]
    environment = machine['environment']
    return [
        f'## On this machine, mode `{machine["mode"]}`, model `{machine["size"]}`',
        '',
        f'    {machine["command"]}',
        '',
        *([f'- {machine["note"]}'] if machine['note'] else []),
        *([_CROWDED] if max(machine['load_average']) > environment['cores'] + 2 else []),
        environment_line(environment),
        f'- {environment["cpu"]}; model and busy loops on core {machine["core"]} alone, one'
        f' thread, float32; load average of the whole machine {machine["load_average"][0]:.1f} to'
        f' {machine["load_average"][1]:.1f}',
        f'- `{machine["size"]}`, fitted: {machine["constant_ms"]:.1f} ms +'
        f' {machine["per_row_us"]:.0f} us per row',
        *([_TRACE] if machine['trace'] else []),
        '',
        table(head, lines),
        '',
        f'Live: real passes of `{machine["live_model"]}` ({machine["live_fit"][0]:.1f} ms +'
        f' {machine["live_fit"][1]:.0f} us per row) while 0, 1, 0, 3 and 0 real busy loops run.'
        f' Deadline {machine["deadline_ms"]:.0f} ms. Settled: queries after each rise of the load'
        ' until two in a row are in time.',
        '',
        table(['budget', 'missed', 'settled after', 'changes', 'mean share'], runs),
        '',
    ]


def _traces(traces: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    lines = []
    for cell in traces['cells']:
        lines.append([
            f'{cell["deadline_ms"]:.0f} ms, {_arm(cell["arm"])}',
            *[f'{100 * missed:.0f} % at {share:.2f}' for missed, share in
              cell['by_loops'].values()],
            _settled(cell['settling']),
            f'{cell["changes"]}',
        ])  # fmt: skip
    loops = [*traces['cells'][0]['by_loops']]
    head = ['deadline, budget', *[f'{n} loops: missed, mean share' for n in loops],
            'settled after', 'changes of class']  # fmt: skip
    number = sum(queries for _, queries in traces['phases'])
    return [
        '## Traces with these latencies',
        '',
        f'{number} queries in phases of {traces["phases"][0][1]}, each as long as one of the'
        f' samples of `{machine["size"]}` above, divided by {traces["faster"]:g} (a chunk of the'
        ' embedded policy lasts 400 ms). No passes and no robot here: the rule alone.',
        '',
        table(head, lines),
        '',
    ]


def _episodes(episodes: dict[str, Any], machine: dict[str, Any], faster: float) -> list[str]:
    lines = []
    for cell in episodes['cells']:
        low, high = wilson_interval(cell['successes'], cell['episodes'])
        rate = cell['successes'] / cell['episodes']
        lines.append([
            f'{cell["deadline_ms"]:.0f} ms, {_arm(cell["arm"])}',
            f'{100 * rate:.1f} % ({100 * low:.1f} to {100 * high:.1f})',
            f'{100 * cell["missed"]:.0f} %',
            f'{100 * cell["starved"]:.1f} %',
            _settled(cell['settling']),
            f'{cell["share"]:.2f}',
            f'{cell["steps"]:.0f}',
        ])  # fmt: skip
    phases = ', '.join(f'{loops} for {seconds:g} s' for loops, seconds in episodes['phases'])
    head = [
        'deadline, budget', 'success (95 % Wilson)', 'missed', 'held still', 'settled after',
        'mean share', 'steps',
    ]  # fmt: skip
    return [
        '## Success of the embedded policy with these latencies',
        '',
        f'    {episodes["command"]}',
        '',
        f'Closed loop in simulated time: the embedded policy decides, mode `{machine["mode"]}`;'
        ' each of its queries takes as long as one of the samples above with the same budget under'
        f' the same load, divided by {faster:g} and drawn at random. Busy loops:'
        f' {phases}, again and again. A chunk is asked for when as many actions are left as the'
        ' deadline is long; while it is late the robot holds still.'
        f' {episodes["cells"][0]["episodes"]} episodes per cell, the same'
        ' initial states.',
        '',
        table(head, lines),
        '',
        f'![Success and missed deadlines against the deadline]({SUCCESS})',
        '',
    ]


def _arm(name: str) -> str:
    name, _, floor = name.partition(':')
    text = name if name == 'governor' else f'fixed {name}'
    return f'{text}, floor {floor}' if floor else text


def _settled(queries: list[int]) -> str:
    return '-' if not queries else f'{np.median(queries):g} (at most {max(queries)})'


def live_picture(machine: dict[str, Any], path: Path) -> None:
    """Latency and budget over the queries of the live runs."""
    figure = Figure(figsize=(8, 5), layout='constrained')
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    loops = [step['loops'] for step in next(iter(machine['live'].values()))['steps']]
    for axes in (above, below):
        for k, n in enumerate(loops):
            axes.axvspan(k - 0.5, k + 0.5, color='#888888', alpha=0.12 * n, linewidth=0)
    for (name, run), colour in zip(machine['live'].items(), _COLOURS, strict=False):
        label = 'governor' if name == 'governor' else f'fixed at {name}'
        above.plot([step['ms'] for step in run['steps']], '.-', color=colour, label=label, lw=1)
        below.step(
            range(len(run['steps'])), [step['share'] for step in run['steps']], color=colour,
            where='mid', lw=1,
        )  # fmt: skip
    above.axhline(machine['deadline_ms'], color='#222222', linestyle='--', lw=1, label='deadline')
    above.set_yscale('log')
    above.set_ylabel('latency (ms)')
    above.legend(fontsize=8, ncols=4)
    below.set_ylabel('budget (share)')
    below.set_xlabel('query')
    below.set_ylim(0, 1.05)
    figure.savefig(path, dpi=110)


def success_picture(cells: list[dict[str, Any]], path: Path) -> None:
    """Success and missed deadlines against the deadline, one curve for each budget."""
    figure = Figure(figsize=(8, 3.6), layout='constrained')
    left, right = figure.subplots(1, 2)
    arms = list(dict.fromkeys(cell['arm'] for cell in cells))
    for k, (arm, colour) in enumerate(zip(arms, _COLOURS, strict=False)):
        own = [cell for cell in cells if cell['arm'] == arm]
        x = np.array([cell['deadline_ms'] for cell in own]) + 4 * (k - len(arms) / 2)
        rate = np.array([100 * cell['successes'] / cell['episodes'] for cell in own])
        bounds = 100 * np.array([wilson_interval(c['successes'], c['episodes']) for c in own])
        width = 2.4 if arm.startswith('governor') else 1.2
        left.errorbar(
            x, rate, yerr=[rate - bounds[:, 0], bounds[:, 1] - rate], color=colour, marker='o',
            markersize=4, lw=width, elinewidth=0.8, label=_arm(arm),
        )  # fmt: skip
        right.plot(x, [100 * cell['missed'] for cell in own], 'o-', color=colour, lw=width)
    left.set_ylim(-2, 102)
    left.set_ylabel('success (%)')
    right.set_ylim(-2, 102)
    right.set_ylabel('queries that missed the deadline (%)')
    for axes in (left, right):
        axes.set_xlabel('deadline (ms)')
    left.legend(fontsize=8)
    figure.savefig(path, dpi=110)
