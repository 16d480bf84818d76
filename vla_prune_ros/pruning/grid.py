# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Grid drop: a regular pattern of patches, whatever is in the picture (control)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla_prune_ros.pruning.base import Option, PruningMethod, Tick
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, TokenLayout, TokenState


class GridDrop(PruningMethod):
    """Keeps every k-th patch of each view, or the crossings of every k-th row and column."""

    name = 'grid'
    summary = 'keep a regular grid of patches of each view (control)'
    options = (
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
        self._phase, self._kept = 0, 0
        self._slots: dict[str, Any] = {}

    def observe(self, tick: Tick) -> None:
        """Remember where the episode's phase is kept."""
        self._slots = tick.history.slots

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Move the grid on."""
        passes = self._slots.get('grid', 0)
        self._slots['grid'] = passes + 1
        turns = self.opt.stride ** (2 if self.opt.form == 'square' else 1)
        self._phase = passes % turns if self.opt.phase == 'rotate' else 0
        return PassPlan(points=frozenset({self.opt.layer}), repeats=True)

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Keep the same patches of every view."""
        layout, stride = tokens.layout, self.opt.stride
        cells = torch.arange(layout.patches_per_view, device=tokens.ids.device)
        if self.opt.form == 'square':
            side = self.config.featurizer.grid
            row, column = divmod(self._phase, stride)
            on = (cells // side % stride == row) & (cells % side % stride == column)
            patches = cells[on]
        else:
            patches = cells[self._phase :: stride]
        self._kept = len(patches)
        views = torch.arange(layout.n_views, device=patches.device)
        starts = layout.visual.start + layout.patches_per_view * views
        return layout.keep((starts[:, None] + patches).flatten())

    def reset(self) -> None:
        """Put the grid back to its first place."""
        self._slots = {}

    def stats(self) -> dict[str, bool | int | float | str]:
        """Patches kept per view and the phase of the grid."""
        return {'keep_per_view': self._kept, 'phase': self._phase, 'layer': self.opt.layer}
