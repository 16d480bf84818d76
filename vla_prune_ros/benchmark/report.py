# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From the samples of a benchmark to rows for JSON, targets and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_prune_ros.benchmark.reference import extra_flops
from vla_prune_ros.benchmark.roofline import Machine, floors
from vla_prune_ros.benchmark.run import Arm, Samples, mean_rows
from vla_prune_ros.evaluation.flops import LayerWork, PassWork, query_flops
from vla_prune_ros.evaluation.statistics import percentiles
from vla_prune_ros.evaluation.summary import footnotes, stages_of, table
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import TokenLayout

SCHEMA = 'vla_prune_ros/benchmark/1'
DENSE = 'dense'


def make_rows(
    arms: Sequence[Arm],
    samples: Mapping[str, Samples],
    config: OpenVLAConfig,
    layout: TokenLayout,
    machine: Machine,
    weight_bytes: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One row per arm, ready for JSON.

    Ratios of times are medians over queries of the ratio at the same query, so that a drift of
    the machine cancels.

    Args:
        arms: in the order of the rows.
        samples: of every arm, see `run`.
        config: sizes of the model.
        layout: of the complete sequence.
        machine: measured rates, for the floor.
        weight_bytes: bytes of one weight, by stage.
    """
    rows = []
    for arm in arms:
        own = samples[arm.name]
        work = own.work or [_dense_work(config, layout)]
        flops = _mean([query_flops(config, one) for one in work])
        if arm.is_reference:
            for part, more in extra_flops(config, layout.n_views, layout.length).items():
                flops[part] += more
        floor = _mean([floors(config, one, machine, weight_bytes) for one in work])
        total = sum(flops.values())
        p50 = percentiles(own.timing['total'])['p50']
        rows.append({
            'name': arm.name,
            'kind': 'reference' if arm.is_reference else 'ours',
            'mode': arm.mode,
            'options': dict(arm.options),
            'note': arm.note,
            'latency_ms': {stage: percentiles(v) for stage, v in own.timing.items()},
            'processor_ms': percentiles(own.processor_ms),
            'first_query_ms': percentiles(own.first_ms),
            'between_ms_per_step': percentiles(own.between_ms),
            'kept_last_layer': float(np.mean(own.kept)),
            'visual_rows_per_layer': mean_rows(work),
            'visual_rows_mean': float(np.mean(mean_rows(work))),
            'flops': flops,
            'flops_total': total,
            'floor_ms': floor,
            'achieved_flops': total / (p50 / 1e3),
            'of_floor': floor['total'] / p50,
            'memory_bytes': own.memory,
            'runtime': own.runtime,
        })  # fmt: skip
    _compare(rows, samples)
    return rows


def _dense_work(config: OpenVLAConfig, layout: TokenLayout) -> PassWork:
    n = layout.length
    return PassWork(layout, (LayerWork(n, n),) * config.llama.n_layers)


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in parts])) for key in parts[0]}


def _compare(rows: Sequence[dict], samples: Mapping[str, Samples]) -> None:
    """Add ratios to the references and to the dense arm, and what the FLOPs promise."""
    by_name = {row['name']: row for row in rows}
    others = [n for n in by_name if n == DENSE or by_name[n]['kind'] == 'reference']
    for row in rows:
        own = samples[row['name']]
        row['faster_than'] = {
            other: _median_ratio(samples[other].timing['total'], own.timing['total'])
            for other in others
        }
        row['less_processor_time'] = {
            other: _median_ratio(samples[other].processor_ms, own.processor_ms) for other in others
        }
        row['promised'] = row['share_of_promise'] = None
        if DENSE in by_name and row['kind'] == 'ours':
            row['promised'] = by_name[DENSE]['flops_total'] / row['flops_total']
            row['share_of_promise'] = row['faster_than'][DENSE] / row['promised']


def _median_ratio(other: Sequence[float], own: Sequence[float]) -> float:
    return float(np.median(np.array(other) / np.array(own)))


# -- targets -----------------------------------------------------------------------------------
def targets(rows: Sequence[dict], run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The targets of this project, each `met`, `not met` or `not measured`.

    Args:
        rows: from `make_rows`.
        run: with `size` (None for a checkpoint), `device`, `dtype` and perhaps `quantization`.
    """
    by_name = {row['name']: row for row in rows}
    cuda = str(run['device']).startswith('cuda')
    large = run['size'] == '7b' and cuda and run['dtype'] == 'bfloat16'
    eight = large and run.get('quantization') in ('int8', 'fp8')
    large = large and run.get('quantization') in (None, 'default', 'none')
    small = run['size'] == 'small' and not cuda

    def p50(name: str) -> float | None:
        return by_name[name]['latency_ms']['total']['p50'] if name in by_name else None

    def faster(name: str, other: str) -> float | None:
        return by_name.get(name, {}).get('faster_than', {}).get(other)

    def share(name: str) -> float | None:
        return by_name.get(name, {}).get('share_of_promise')

    pruned = ('specprune', 'lightvla')
    lines = [
        ('7b on one H100, bfloat16: dense, ms', 'at most', 15.0, p50(DENSE), large),
        ('7b: specprune, ms', 'at most', 9.0, p50('specprune'), large),
        ('7b: lightvla at 78 tokens, ms', 'at most', 8.0, p50('lightvla'), large),
        *[(f'7b in 8 bits: {m}, ms', 'at most', 6.5, p50(m), eight) for m in pruned],
        *[(f'7b: {m} against dense', 'at least', 1.7, faster(m, DENSE), large) for m in pruned],
        *[(f'7b: {m} against eager', 'at least', 4.0, faster(m, 'eager'), large) for m in pruned],
        ('small on CPU: dense against eager', 'at least', 1.3, faster(DENSE, 'eager'), small),
        *[(f'small on CPU: {m}, share of the promised speed-up', 'at least', 0.8, share(m), small)
          for m in pruned],
    ]  # fmt: skip
    result = []
    for text, sense, wanted, value, applies in lines:
        measured = value if applies else None
        state = 'not measured'
        if measured is not None:
            good = measured <= wanted if sense == 'at most' else measured >= wanted
            state = 'met' if good else 'not met'
        result.append({
            'target': text, 'sense': sense, 'wanted': wanted, 'measured': measured, 'state': state
        })  # fmt: skip
    return result


# -- tables ------------------------------------------------------------------------------------
def unit_of(rows: Sequence[dict], relative: bool) -> tuple[float, str]:
    """What a millisecond is multiplied with, and what it is called then."""
    if not relative:
        return 1.0, 'ms'
    base = next((r for r in rows if r['name'] == DENSE), rows[0])
    return 1 / base['latency_ms']['total']['p50'], f'{base["name"]} = 1'


def main_table(rows: Sequence[dict], relative: bool) -> str:
    """Times, work and what became of the promise; `relative` gives times as ratios."""
    factor, unit = unit_of(rows, relative)
    notes = [[row['note']] if row['note'] else [] for row in rows]
    names, below = footnotes([row['name'] for row in rows], notes)
    references = [r['name'] for r in rows if r['kind'] == 'reference']
    lines = []
    for name, row in zip(names, rows, strict=True):
        total = row['latency_ms']['total']
        lines.append([
            name,
            _time(total['p50'] * factor, relative), _time(total['p95'] * factor, relative),
            *[_ratio(row['faster_than'].get(other)) for other in (*references, DENSE)],
            _ratio(row['promised']), _percent(row['share_of_promise']),
            f'{row["visual_rows_mean"]:.0f}', _giga(row['flops_total']),
            _percent(row['of_floor']),
            _time(row['latency_ms'].get('select', {}).get('p50', 0.0) * factor, relative),
            _mega(row['memory_bytes'].get('weights')), _mega(row['memory_bytes'].get('working')),
        ])  # fmt: skip
    against = [f'x {other}' for other in (*references, DENSE)]
    headers = ['arm', f'p50 ({unit})', 'p95', *against, 'promised', 'share', 'visual rows',
               'GFLOP', 'of floor', 'select', 'weights MB', 'working MB']  # fmt: skip
    return '\n'.join([table(headers, lines), *(['', below] if below else [])])


def short_table(rows: Sequence[dict]) -> str:
    """Ratios alone, for pages that quote a run."""
    others = [*rows[0]['faster_than']]
    lines = [
        [row['name'], *[_ratio(row['faster_than'][other]) for other in others],
         _ratio(row['promised']), _percent(row['share_of_promise'])]
        for row in rows
    ]  # fmt: skip
    return table(['arm', *[f'x {o}' for o in others], 'promised', 'share'], lines)


def stage_table(rows: Sequence[dict], relative: bool) -> str:
    """Median and p95 of every stage, and the floor of those that are matrix products."""
    factor, unit = unit_of(rows, relative)
    stages = stages_of(rows)
    lines = []
    for row in rows:
        cells = []
        for stage in stages:
            values = row['latency_ms'].get(stage)
            cells.append('-' if values is None else ' / '.join(
                _time(values[level] * factor, relative) for level in ('p50', 'p95')
            ))  # fmt: skip
        floor = row['floor_ms']
        cells += [_time(floor[s] * factor, relative) for s in ('vision', 'decoder', 'total')]
        lines.append([row['name'], *cells])
    headers = [f'{unit}, p50 / p95', *stages, 'floor vision', 'floor decoder', 'floor']
    return table(headers, lines)


def processor_table(rows: Sequence[dict]) -> str:
    """Ratios of processor time, which other jobs on the machine disturb less."""
    others = [*rows[0]['less_processor_time']]
    lines = []
    for row in rows:
        ratios = row['less_processor_time']
        share = ratios[DENSE] / row['promised'] if row['promised'] else None
        cells = [_ratio(ratios[other]) for other in others]
        lines.append([row['name'], *cells, _ratio(row['promised']), _percent(share)])
    return table(['processor time', *[f'x {o}' for o in others], 'promised', 'share'], lines)


def target_table(results: Sequence[Mapping]) -> str:
    """What was wanted and what was measured."""
    lines = [
        [t['target'], f'{t["sense"]} {t["wanted"]:g}',
         '-' if t['measured'] is None else f'{t["measured"]:.2f}', t['state']]
        for t in results
    ]  # fmt: skip
    return table(['target', 'wanted', 'measured', ''], lines)


def _time(value: float, relative: bool) -> str:
    return f'{value:.3f}' if relative else f'{value:.2f}'


def _ratio(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.0f} %'


def _giga(value: float) -> str:
    return f'{value / 1e9:.0f}' if value > 1e11 else f'{value / 1e9:.3g}'


def _mega(value: int | None) -> str:
    return '-' if value is None else f'{value / 1e6:.0f}'
