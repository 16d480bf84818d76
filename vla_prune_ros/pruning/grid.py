# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Grid drop: a regular pattern of patches, whatever is in the picture (control)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla_prune_ros.pruning.base import BUDGET, Option, PruningMethod, Tick
from vla_prune_ros.pruning.budget import BudgetKind, camera_quotas
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, TokenLayout, TokenState


class GridDrop(PruningMethod):
    """Keeps every k-th patch of each view, or the crossings of every k-th row and column."""

    name = 'grid'
    summary = 'keep a regular grid of patches of each view (control)'
    budget_kind: BudgetKind = 'exact'
    plans_ahead = True
    options = (
        BUDGET,
        Option('stride', int, 2, 'distance of the patches kept', 1, 256),
        Option(
            'form', str, 'line', 'every k-th patch in reading order, or of both rows and columns',
            choices=('line', 'square'),
        ),
        Option(
            'phase', str, 'fixed', 'the grid stays in place, or moves on at each inference',
            choices=('fixed', 'rotate'),
        ),
        Option('layer', int, 0, 'full layers before the cut; 0 cuts before the first', 0, 1000),
    )  # fmt: skip

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        depth, side = config.llama.n_layers, config.featurizer.grid
        limit = side if self.opt.form == 'square' else side * side
        if self.opt.stride > limit:
            raise ValueError(f'option stride={self.opt.stride} is above {limit}')
        if self.opt.layer >= depth:
            raise ValueError(f'option layer={self.opt.layer} is not below {depth} layers')
        if self.opt.form == 'square':  # crossings come in squares only
            self.budget_kind = 'bound'
        if self.opt.phase == 'rotate':
            self.cycle = self.opt.stride ** (2 if self.opt.form == 'square' else 1)
        self._passes = self._phase = self._kept = 0
        self._slots: dict[str, Any] = {}

    def observe(self, tick: Tick) -> None:
        """Remember where the episode's phase is kept."""
        self._slots = tick.history.slots

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Move the grid on."""
        self._passes = self._slots.get('grid', 0)
        self._slots['grid'] = self._passes + 1
        return PassPlan(points=frozenset({self.opt.layer}), repeats=True, blind=True)

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Keep the same patches of every view."""
        layout, counts = tokens.layout, [0] * tokens.layout.n_views  # 0: as `stride` says
        if self.budget:
            counts = camera_quotas(self.most_tokens(layout), len(counts), layout.patches_per_view)
        patches, device = layout.patches_per_view, tokens.ids.device
        patterns = [self._pattern(patches, count, device) for count in counts]
        self._kept = len(patterns[0])
        starts = (layout.view(view).start for view in range(layout.n_views))
        kept = [start + pattern for start, pattern in zip(starts, patterns, strict=True)]
        return layout.keep(torch.cat(kept))

    def _pattern(self, patches: int, count: int, device: torch.device | str = 'cpu') -> Tensor:
        """Patches of a view, int64: at most `count`, or by `stride` if that is 0."""
        square, side, stride = self.opt.form == 'square', self.config.featurizer.grid, 0
        if not count:
            stride = self.opt.stride
        elif square:
            stride = next(k for k in range(1, side + 1) if (-(-side // k)) ** 2 <= count)
        turns = stride**2 if square else stride or -(-patches // count)
        self._phase = self._passes % turns if self.opt.phase == 'rotate' else 0
        cells = torch.arange(patches, device=device)
        if square:
            row, column = divmod(self._phase, stride)
            rows, columns = cells.view(side, side)[row::stride], slice(column, None, stride)
            return rows[:, columns].flatten()
        if stride:
            return cells[self._phase :: stride]
        return (self._phase + cells[:count] * patches // count) % patches

    def reset(self) -> None:
        """Put the grid back to its first place."""
        self._slots = {}

    def stats(self) -> dict[str, bool | int | float | str]:
        """Patches kept per view and the phase of the grid."""
        return {'keep_per_view': self._kept, 'phase': self._phase, 'layer': self.opt.layer}
