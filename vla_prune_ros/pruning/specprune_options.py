# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Options of `specprune`, and what they mean for a model of another size than the published one.

Budgets are given for 256 patches per view, totals for two such views, layer numbers for 32
layers; all three are scaled to the model at hand.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from vla_prune_ros.pruning.base import BUDGET, Option
from vla_prune_ros.pruning.resets import RESETS
from vla_prune_ros.pruning.scaling import (
    PUBLISHED_PATCHES,
    scaled_count,
)

OPTIONS = (
    BUDGET,
    *RESETS,
    Option('alpha', float, 0.8, 'multiplies the three budgets', 0.01, 100.0),
    Option('k_local', int, 24, 'V_local: tokens per layer and view of 256 patches', 0, 4096),
    Option('k_global', int, 30, 'V_global: tokens per layer and view of 256 patches', 0, 4096),
    Option('k_dynamic', int, 20, 'V_dynamic: patches per view of 256 patches', 0, 4096),
    Option('fine_factor', float, 5 / 3, 'multiplies the budgets in the fine mode', 1.0, 10.0),
    Option('use_local', bool, True, 'keep what the first layers of this pass attend to'),
    Option('use_global', bool, True, 'keep what deep layers of the last query attended to'),
    Option('use_dynamic', bool, True, 'keep patches that changed'),
    Option('full_layers', int, 2, 'layers in front of the cut, at most all but one', 1, 1000),
    Option('global_layers', str, '14,31', 'score layers of V_global, from 0, out of 32'),
    Option(
        'global_merge', str, 'union',
        'V_global: best of each layer, or best by the mean over layers', choices=('union', 'mean'),
    ),
    Option('tau', float, 0.986, 'a patch changed if its similarity is below this', -1.0, 1.0),
    Option('distance_base', float, 7.0, 'reference frame distance at rest (steps)', 0.0, 100.0),
    Option('distance_slope', float, -1.0, 'change of the distance with speed', -100.0, 0.0),
    Option('distance_offset', int, 4, 'added to the rounded distance (steps)', -100, 100),
    Option('clamp_to_last_query', bool, True, 'reference frame no newer than the last query'),
    Option('layer_cuts', bool, True, 'prune further in deeper layers'),
    Option('cut_layers', str, '5,10,15,20', 'layers behind which this happens, from 0, out of 32'),
    Option('cut_share', float, 0.1, 'share of the remaining visual tokens cut', 0.0, 0.9),
    Option('min_tokens', int, 60, 'cuts leave this many of 512 visual tokens', 0, 65536),
    Option('beta', float, 0.2, 'share of the newest layer in the importance', 0.0, 1.0),
    Option('eps', float, 1e-6, 'added to the attention entropy (nats)', 0.0, 1.0),
    Option('rank_decay', float, 5.3, 'fall of the rank weight over all ranks', 0.0, 100.0),
    Option('confidence_weighting', bool, True, 'weigh layers by 1 / attention entropy'),
    Option('controller', bool, True, 'choose coarse or fine by the executed actions; else coarse'),
    Option('enter_translation', float, 0.4, 'fine below this translation (robot units)', 0.0, 1e3),
    Option('enter_rotation', float, 0.2, 'fine below this rotation (robot units)', 0.0, 1e3),
    Option('leave_translation', float, 0.6, 'coarse above this translation', 0.0, 1e3),
    Option('leave_rotation', float, 0.3, 'coarse above this rotation', 0.0, 1e3),
    Option('hold_steps', int, 8, 'control steps between two changes of the mode', 0, 100000),
    Option('requery_on_enter', bool, False, 'ask for a new chunk on entering the fine mode'),
)  # fmt: skip


@dataclass(frozen=True)
class Budgets:
    """Tokens per view (and score layer) of each set."""

    local: int
    recalled: int
    changed: int


def budgets(options: Any, patches: int, fine: bool) -> Budgets:
    """Budgets in the coarse or the fine mode for views of `patches` patches.

    A set whose base is not 0 gets at least one token. Fine is never below coarse, because the
    fine factor is at least 1.
    """
    return _sizes(options, options.alpha * (options.fine_factor if fine else 1.0), patches)


def _sizes(options: Any, factor: float, patches: int) -> Budgets:
    def size(base: int) -> int:
        return min(patches, max(1, scaled_count(factor * base, patches))) if base else 0

    return Budgets(size(options.k_local), size(options.k_global), size(options.k_dynamic))


def fitting(options: Any, patches: int, most: int, lists: Budgets) -> Budgets:
    """The largest budgets, in the proportions of the options, whose union fits.

    Args:
        options: those of the mode; `alpha` and `fine_factor` take no part.
        patches: of a view.
        most: tokens of a view that the union may have.
        lists: how many lists of each kind are united.

    Returns:
        Sizes whose sum over all lists is at most `most`; the least there are, one token for each
        list, where even that does not fit.
    """
    bases = (options.k_local, options.k_global, options.k_dynamic)
    # A size changes where factor * base * patches / 256 passes a half.
    steps = sorted(
        (k + 0.5) * PUBLISHED_PATCHES / (base * patches) + 1e-9
        for base in bases if base for k in range(patches)
    )  # fmt: skip

    def too_many(factor: float) -> bool:
        size = _sizes(options, factor, patches)
        total = (
            size.local * lists.local
            + size.recalled * lists.recalled
            + size.changed * lists.changed
        )
        return total > most

    held = bisect_left(steps, True, key=too_many)
    return _sizes(options, steps[held - 1] if held else 0.0, patches)
