# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A trace of every arm, and what it says: where time goes, and how much of it nothing runs.

On a GPU the gaps are times without a kernel or copy between the first and the last of a query; on
a CPU, times outside of any torch operation of the calling thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vla_prune_ros.benchmark.run import Arm
from vla_prune_ros.benchmark.scene import Query
from vla_prune_ros.evaluation.summary import table

COUNT = 3  # queries in a trace
GAP_US = 10.0  # shorter pauses between two kernels are the hardware's
_TOP = 8


def profile_arms(
    arms: Sequence[Arm], queries: Sequence[Query], instruction: str, out: Path
) -> dict[str, dict[str, Any]]:
    """Trace some queries of every arm; writes `trace_ARM.json.gz` for chrome://tracing.

    Returns:
        By arm, per query: `wall_ms`, `busy_ms`, `gap_share`, `gaps` (number of pauses above
        10 us), `launches` (operations on a CPU, kernels and copies on a GPU), and `top`, the
        most expensive operations with their ms.
    """
    activities = [ProfilerActivity.CPU]
    cuda = any(_device(arm).type == 'cuda' for arm in arms)
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    queries = [q for q in queries if not q.first][-COUNT:]
    result = {}
    for arm in arms:
        arm.answer(queries[0], instruction)
        with profile(activities=activities) as trace:
            for query in queries:
                arm.lead_to(query)
                with torch.profiler.record_function('query'):
                    arm.answer(query, instruction)
        out.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(out / f'trace_{arm.name}.json.gz'))
        result[arm.name] = _summary(trace, len(queries), cuda)
    return result


def pauses(spans: Iterable[tuple[float, float]]) -> tuple[float, list[float]]:
    """Time covered by spans, and the lengths of the pauses between them.

    Args:
        spans: start and end, in any order; they may overlap.
    """
    busy, gaps, reached = 0.0, [], None
    for start, end in sorted(spans):
        if reached is None or start > reached:
            if reached is not None:
                gaps.append(start - reached)
            busy += end - start
        else:
            busy += max(0.0, end - reached)
        reached = end if reached is None else max(reached, end)
    return busy, gaps


def _summary(trace: profile, count: int, cuda: bool) -> dict[str, Any]:
    events = trace.events()
    queries = [e for e in events if e.name == 'query' and e.device_type.name == 'CPU']
    wall = sum(e.time_range.elapsed_us() for e in queries)
    busy, gaps, launches = 0.0, [], 0
    for query in queries:
        begin, end = query.time_range.start, query.time_range.end
        inside = [
            (e.time_range.start, e.time_range.end)
            for e in events
            if _counts(e, query, cuda) and begin <= e.time_range.start < end
        ]
        covered, pauses_here = pauses(inside)
        busy, launches = busy + covered, launches + len(inside)
        gaps += [gap for gap in pauses_here if gap > GAP_US]
    key = 'self_device_time_total' if cuda else 'self_cpu_time_total'
    averages = [e for e in trace.key_averages() if e.key != 'query']
    averages.sort(key=lambda e: -getattr(e, key))
    return {
        'wall_ms': wall / 1e3 / count,
        'busy_ms': busy / 1e3 / count,
        'gap_share': 1 - busy / wall if wall else 0.0,
        'gaps': len(gaps) / count,
        'longest_gap_ms': max(gaps, default=0.0) / 1e3,
        'launches': launches / count,
        'top': [
            {'name': e.key, 'ms': getattr(e, key) / 1e3 / count, 'calls': e.count / count}
            for e in averages[:_TOP]
        ],
    }


def _counts(event: Any, query: Any, cuda: bool) -> bool:
    """Whether an event is work: a kernel or copy, or an outermost operation of that thread."""
    if cuda:
        return event.device_type.name == 'CUDA' and event.name != 'query'
    return (
        event.device_type.name == 'CPU'
        and event.thread == query.thread
        and event.cpu_parent is not None
        and event.cpu_parent.name == 'query'
    )


def _device(arm: Arm) -> torch.device:
    return arm.policy.device if arm.is_reference else arm.policy.model.device


def profile_tables(profiles: dict[str, dict[str, Any]]) -> str:
    """What the traces say, in Markdown; times under the profiler are longer than without."""
    lines = [
        [name, f'{p["wall_ms"]:.2f}', f'{p["busy_ms"]:.2f}', f'{100 * p["gap_share"]:.1f} %',
         f'{p["gaps"]:.0f}', f'{p["longest_gap_ms"]:.2f}', f'{p["launches"]:.0f}']
        for name, p in profiles.items()
    ]  # fmt: skip
    headers = ['per query, under the profiler', 'wall ms', 'busy ms', 'idle', 'gaps > 10 us',
               'longest ms', 'launches']  # fmt: skip
    text = [table(headers, lines)]
    for name, one in profiles.items():
        top = [[e['name'][:60], f'{e["ms"]:.3f}', f'{e["calls"]:.0f}'] for e in one['top']]
        text += ['', table([f'{name}: operation', 'ms', 'calls'], top)]
    return '\n'.join(text)
