# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How many tokens another mode keeps, for a control that keeps as many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla_prune_ros.pruning.base import PruningMethod
from vla_prune_ros.vla.selection import PassPlan, SlotCache, TokenLayout, TokenState


class Reference:
    """Passes everything on to a mode and notes what it keeps of each view at every cut.

    Attributes:
        method: the mode.
        plan: its plan of the latest pass.
        counts: cut point -> tokens kept per view in the latest pass.
        finished: the latest pass came to its end.
    """

    def __init__(self, method: PruningMethod) -> None:
        self.method = method
        self.plan = PassPlan()
        self.counts: dict[int, list[int]] = {}
        self.finished = False

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """See `TokenSelector.begin`."""
        self.counts, self.finished = {}, False
        self.plan = self.method.begin(layout, embeddings)
        return self.plan

    def select(self, point: int, tokens: TokenState) -> Tensor | None:
        """See `TokenSelector.select`."""
        kept = self.method.select(point, tokens)
        ids, layout = tokens.ids if kept is None else kept, tokens.layout
        visual = ids[(ids > 0) & (ids < layout.proprio)]
        views = (visual - 1) // layout.patches_per_view
        self.counts[point] = torch.bincount(views, minlength=layout.n_views).tolist()
        return kept

    def end(self, tokens: TokenState) -> None:
        """See `TokenSelector.end`."""
        self.method.end(tokens)
        self.finished = True


def same_kind(cache: SlotCache) -> SlotCache:
    """Return an empty cache of the same shape."""
    keys = cache.keys[0]
    heads, head_dim = keys.shape[1], keys.shape[-1]
    return SlotCache(len(cache.keys), cache.length, heads, head_dim, keys.dtype, keys.device)


def parse_options(method: type[PruningMethod], text: str) -> dict[str, Any]:
    """Read options written as `alpha=0.4 use_global=false`.

    Raises:
        ValueError: not of this form, or the mode has no such option or takes no such value.
    """
    known, values = {option.name: option for option in method.options}, {}
    for word in text.split():
        name, equals, value = word.partition('=')
        if not equals or name not in known:
            valid = ', '.join(known) or 'none'
            raise ValueError(f'{word!r}: mode {method.name!r} takes NAME=VALUE with names {valid}')
        values[name] = known[name].parse(value)
    return values
