# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Options of `vla_cache`, its presets, and what they mean for a model of another size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vla_prune_ros.pruning.base import BUDGET, Option
from vla_prune_ros.pruning.resets import RESETS
from vla_prune_ros.pruning.scaling import scaled_count

PRESETS: dict[str, dict[str, Any]] = {
    'default': {
        'static_k': 150, 'relevance': 'top', 'schedule': 'fixed', 'max_age': 1,
        'reference': 'writer', 'refresh_below': 0.2, 'released': False,
    },
    'paper': {
        'static_k': 100, 'relevance': 'threshold', 'schedule': 'entropy', 'max_age': 0,
        'reference': 'previous', 'refresh_below': 0.0, 'released': False,
    },
    # Its reference frame is the current one by mistake; here it is the previous one. `released`:
    # candidates in the order of their ids, at least one of them reused, relevance of fixed rows.
    'released_oft': {
        'static_k': 150, 'relevance': 'top', 'schedule': 'released', 'max_age': 0,
        'reference': 'previous', 'refresh_below': 0.0, 'released': True,
    },
}  # fmt: skip

OPTIONS = (
    BUDGET,
    *RESETS,
    Option('preset', str, 'default', 'where options are "preset" or -1', choices=(*PRESETS,)),
    Option('tau', float, 0.996, 'least similarity of a static patch', -1.0, 1.0),
    Option('static_k', int, -1, 'most static patches per camera; -1: by preset, scaled', -1),
    Option(
        'relevance', str, 'preset', 'which patches are always recomputed: the best, or those '
        'above a threshold', choices=('preset', 'top', 'threshold'),
    ),
    Option('relevant_k', int, -1, 'relevant patches per camera (top); -1: 100 scaled', -1),
    Option('relevance_threshold', float, 0.5, 'of the relevance scaled to 0..1', 0.0, 1.0),
    Option('relevance_layer', int, -1, 'layer of the relevance; -1: 15 of 32 scaled', -1),
    Option(
        'schedule', str, 'preset', 'share of the candidates reused in each layer: fixed, by '
        'attention entropy (paper), by entropy as released',
        choices=('preset', 'fixed', 'entropy', 'released'),
    ),
    Option('stages', str, '', 'fixed shares "LAYER:SHARE,..."; empty: the published, scaled'),
    Option('entropy_gain', float, 1.0, "k' of the entropy schedule", 0.0, 100.0),
    Option('max_age', int, -1, 'inferences a slot may be old; 0: any, -1: by preset', -1),
    Option('strict', bool, False, 'dense pass as soon as any slot has reached max_age'),
    Option('refresh_below', float, -1.0, 'dense pass below this reusable share; -1: preset',
           -1.0, 1.0),
    Option(
        'reference', str, 'preset', 'frame to compare with: the one that wrote the slot, or '
        'that of the previous inference', choices=('preset', 'writer', 'previous'),
    ),
)  # fmt: skip


def resolved(opt: SimpleNamespace, patches: int) -> dict[str, Any]:
    """Names of a preset and `relevant_k` with the values in force.

    Args:
        opt: values of the options.
        patches: per camera.
    """
    rule = {
        name: preset if (own := getattr(opt, name, -1)) in ('preset', -1) else own
        for name, preset in PRESETS[opt.preset].items()
    }
    if opt.static_k == -1:
        rule['static_k'] = scaled_count(rule['static_k'], patches)
    rule['relevant_k'] = scaled_count(100, patches) if opt.relevant_k == -1 else opt.relevant_k
    return rule
