# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""FastV: after a few layers keep the visual tokens that received most attention.

Source: FastV (arXiv 2403.06764). The paper takes the mean over queries, its release the last row
only. In OpenVLA-OFT that row is the stop token behind empty action slots, so the rows are an
option and the words of the instruction are the default. The budget holds per view.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vla_prune_ros.pruning.base import BUDGET, Option, PruningMethod, Tick
from vla_prune_ros.pruning.budget import camera_quotas
from vla_prune_ros.pruning.scores import best_ids, instruction_rows
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, ScoreRequest, TokenLayout, TokenState


class FastV(PruningMethod):
    """Keeps the most attended patches of each view from one layer on."""

    name = 'fastv'
    summary = 'FastV: most attended patches after the first layers'
    budget_kind = 'exact'
    plans_ahead = True
    options = (
        BUDGET,
        Option('layers', int, 2, 'full layers in front of the cut, at most all but one', 1, 1000),
        Option('prune_ratio', float, 0.5, 'share of each view dropped, if keep is 0', 0.0, 1.0),
        Option('keep', int, 0, 'patches of each view kept; 0 means by prune_ratio', 0, 65536),
        Option(
            'rows', str, 'prompt',
            'whose attention counts: instruction, action slots, stop token or everyone',
            choices=('prompt', 'action', 'last', 'all'),
        ),
    )  # fmt: skip

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        patches = config.patches_per_view
        if self.opt.keep > patches:
            raise ValueError(f'option keep={self.opt.keep} is above {patches} patches per view')
        self.layers = min(self.opt.layers, config.llama.n_layers - 1)
        if self.opt.rows == 'action' and self.layers == 1:
            raise ValueError(
                'option rows=action needs layers=2 or more: in the first layer the action slots '
                'are zero and attend to everything alike'
            )
        self._keep = self.opt.keep or max(1, round((1 - self.opt.prune_ratio) * patches))
        self._counts: list[int] = []
        self._template_tokens = 0

    def observe(self, tick: Tick) -> None:
        """Learn how much of the prompt is boilerplate."""
        self._template_tokens = tick.template_tokens

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Ask the last full layer for its attention to the visual tokens."""
        rows = {
            'prompt': instruction_rows(layout, self._template_tokens),
            'action': layout.placeholders,
            'last': range(layout.eos, layout.length),
            'all': range(layout.length),
        }[self.opt.rows]
        request = ScoreRequest(rows, layout.visual, mean=True)
        return PassPlan(frozenset({self.layers}), {self.layers - 1: request}, repeats=True)

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Keep the best of each view."""
        layout = tokens.layout
        views, patches = layout.n_views, layout.patches_per_view
        received = tokens.scores[self.layers - 1].received().view(views, patches)
        self._counts = [self._keep] * views
        if self.budget:
            self._counts = camera_quotas(self.most_tokens(layout), views, patches)
        return layout.keep(best_ids(received, self._counts))

    def stats(self) -> dict[str, bool | int | float | str]:
        """Budget per view, where the cut is and whose attention counted."""
        count = max(self._counts, default=self._keep)
        return {'keep_per_view': count, 'layer': self.layers, 'rows': self.opt.rows}
