# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Published LIBERO success rates on OpenVLA-OFT, to stand beside measured ones.

All for 10 tasks x 50 trials per suite, two cameras and proprioception. Papers disagree on the
dense baseline by up to two points, so each row names its own; and the step limit after which
an episode has failed, as the source's released evaluation has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla_prune_ros.evaluation.summary import percent, table
from vla_prune_ros.sim.libero.suites import STEP_LIMITS

SUITES = ('libero_spatial', 'libero_object', 'libero_goal', 'libero_10')


@dataclass(frozen=True)
class Published:
    """Success in percent per suite of `SUITES`; `dense` is the same paper's unpruned model.

    `limits` are step limits; those of OpenVLA-OFT hold here, in LightVLA and in VLA-Cache.
    """

    mode: str
    success: tuple[float, float, float, float]
    dense: tuple[float, float, float, float]
    source: str
    limits: tuple[int, ...] = tuple(STEP_LIMITS[suite] for suite in SUITES)

    def of(self, suite: str) -> tuple[float, float, int]:
        """Success of the method and of the paper's dense model on one suite, and its limit."""
        k = SUITES.index(suite)
        return self.success[k], self.dense[k], self.limits[k]


_OFT = (97.6, 98.4, 97.9, 94.5)
_SPECPRUNE_DENSE = (97.6, 96.5, 97.9, 94.5)
_SPECPRUNE_LIMITS = (220, 330, 450, 600)  # d3b06ed; longer episodes can only raise the success
PUBLISHED = (
    Published('none', _OFT, _OFT, 'OpenVLA-OFT (arXiv 2502.19645), 3 seeds, A100'),
    Published(
        'specprune', (98.2, 96.3, 97.7, 94.0), _SPECPRUNE_DENSE,
        'SpecPrune-VLA (arXiv 2509.05614 v1), A800', _SPECPRUNE_LIMITS,
    ),
    Published(
        'specprune', (97.4, 95.8, 97.7, 93.4), _SPECPRUNE_DENSE,
        'SpecPrune-VLA (arXiv 2509.05614 v3), alpha 0.8', _SPECPRUNE_LIMITS,
    ),
    Published('lightvla', (98.4, 98.4, 98.2, 94.6), _OFT, 'LightVLA (arXiv 2509.12594)'),
    Published(
        'vla_cache', (98.3, 97.5, 98.3, 95.4), (97.8, 97.6, 97.6, 94.2),
        'VLA-Cache (arXiv 2502.02175), on OpenVLA-OFT, RTX 4090',
    ),
    Published(
        'efficient_vla', (96.5, 91.1, 96.0, 72.1), _SPECPRUNE_DENSE,
        're-implemented in SpecPrune-VLA (arXiv 2509.05614), A800', _SPECPRUNE_LIMITS,
    ),
    Published(
        'fastv', (94.6, 95.8, 94.0, 88.8), _SPECPRUNE_DENSE,
        're-implemented in SpecPrune-VLA (arXiv 2509.05614 v3), A800', _SPECPRUNE_LIMITS,
    ),
)  # fmt: skip


def published_table(rows: Sequence[dict], suite: str, notice: str = '') -> str:
    """Measured and published success side by side; '' for a suite without published numbers.

    Args:
        rows: from `summary.summarise`.
        suite: name of the suite that was run.
        notice: what must be said of the measured numbers.
    """
    if suite not in SUITES:
        return ''
    lines = []
    for row in rows:
        found = [p for p in PUBLISHED if p.mode == row['mode']]
        for entry in found or [None]:
            method, dense, limit = entry.of(suite) if entry else ('-', '-', '-')
            source = entry.source if entry else 'no published number'
            own = [row['name'], percent(row), row['episodes']]
            lines.append([*own, method, dense, limit, source])
    measured = f'measured: {notice}' if notice else 'measured (95 % Wilson)'
    limit = f'its step limit (here {STEP_LIMITS[suite]})'
    return table(
        ['entry', measured, 'episodes', 'published %', 'its dense %', limit, 'source'], lines
    )
