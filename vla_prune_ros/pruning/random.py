# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Random drop: the control that every pruning method has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla_prune_ros.pruning.base import Option, PruningMethod, Tick
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, TokenLayout, TokenState


class RandomDrop(PruningMethod):
    """Keeps a fixed number of patches per view, drawn uniformly without replacement.

    A reset does not rewind the generator: the draws follow from the seed and the number of draws
    before, so episodes differ from each other and a whole run can be repeated.
    """

    name = 'random'
    summary = 'keep random patches of each view (control)'
    options = (
        Option('keep_ratio', float, 0.5, 'share of each view kept, if keep is 0', 0.0, 1.0),
        Option('keep', int, 0, 'patches of each view kept; 0 means by keep_ratio', 0),
        Option('layer', int, 0, 'full layers before the cut; 0 cuts before the first', 0),
        Option(
            'redraw',
            str,
            'inference',
            'when a new set is drawn',
            choices=('inference', 'episode'),
        ),
        Option('seed', int, 0, 'seed of the generator', 0, 2**31 - 1),
    )

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        patches, depth = config.patches_per_view, config.llama.n_layers
        if self.opt.keep > patches:
            raise ValueError(f'option keep={self.opt.keep} is above {patches} patches per view')
        if self.opt.layer >= depth:
            raise ValueError(f'option layer={self.opt.layer} is not below {depth} layers')
        self.budget = self.opt.keep or max(1, round(self.opt.keep_ratio * patches))
        self._generator = torch.Generator().manual_seed(self.opt.seed)
        self._slots: dict[str, Any] = {}

    def observe(self, tick: Tick) -> None:
        """Remember where an episode's draw is kept."""
        self._slots = tick.history.slots

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Draw, or keep the episode's draw."""
        if self.opt.redraw == 'inference' or 'random' not in self._slots:
            drawn = [
                layout.view(view).start
                + torch.randperm(layout.patches_per_view, generator=self._generator)[: self.budget]
                for view in range(layout.n_views)
            ]
            self._slots['random'] = torch.cat(drawn)
        return PassPlan(points=frozenset({self.opt.layer}))

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Return the drawn patches and everything protected."""
        return tokens.layout.keep(self._slots['random'].to(tokens.ids.device))

    def reset(self) -> None:
        """Forget the episode's draw."""
        self._slots = {}

    def stats(self) -> dict[str, bool | int | float | str]:
        """Budget per view and where the cut is."""
        return {'keep_per_view': self.budget, 'layer': self.opt.layer, 'seed': self.opt.seed}
