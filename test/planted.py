# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A pruning mode driven with embeddings and attention that are planted, without a network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.pruning import History, PruningMethod, Tick, make_selector
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import LayerScores, TokenLayout, TokenState


class Planted:
    """One query after the other; attention is as planted, of what is computed only.

    Attributes:
        dense: whether the latest query was complete.
    """

    def __init__(self, config: OpenVLAConfig, mode: str, views: int = 2, **options) -> None:
        self.selector: PruningMethod = make_selector(mode, config, **options)
        self.layout = TokenLayout(views, config.patches_per_view, 12, config.n_placeholders)
        self.history = History()
        self.dense = True

    def looks(self, seed: int = 0, width: int = 64) -> Tensor:
        """Embeddings of all patches, each unlike any other, [n_visual, width]."""
        g = torch.Generator().manual_seed(seed)
        return torch.nn.functional.normalize(
            torch.randn(self.layout.n_visual, width, generator=g), dim=-1
        )

    def query(self, looks: Tensor, text: Tensor, action: Tensor, actions=()) -> set[int]:
        """Run a query; returns the patches (0..n_visual-1) that entered the last layer.

        Args:
            looks: embeddings of the patches [n_visual, D].
            text: what state, instruction and their like would attend to, [n_visual].
            action: what the action slots would attend to, [n_visual].
            actions: executed before, float64 [k, 7].
        """
        layout, selector = self.layout, self.selector
        if len(actions):
            self.history.record_executed(np.asarray(actions, dtype=np.float64))
        frames = np.zeros((layout.n_views, 56, 56, 3), np.uint8)
        selector.observe(Tick(frames, 4, self.history))
        embeddings = torch.zeros(layout.length, looks.shape[1])
        embeddings[layout.visual.start : layout.visual.stop] = looks
        plan = selector.begin(layout, embeddings)
        ids, scores = torch.arange(layout.length), {}
        for bound in (*sorted(plan.points), 10**6):
            for layer, request in plan.scores.items():
                if layer < bound and layer not in scores:
                    scores[layer] = self._scores(layer, request, ids, text, action)
            if bound in plan.points:
                hidden = torch.zeros(len(ids), looks.shape[1])
                ids = selector.select(bound, TokenState(layout, ids, hidden, scores))
                assert bool((ids.diff() > 0).all())
        selector.end(TokenState(layout, ids, torch.zeros(len(ids), looks.shape[1]), scores))
        self.history.close_query(frames)
        self.dense = not plan.points
        return {int(i) - 1 for i in ids if layout.visual.start <= i < layout.visual.stop}

    def _scores(self, layer, request, ids, text, action) -> LayerScores:
        """Attention shared by those that are there, as a softmax would.

        In the first layer the action slots are empty and attend to everything alike.
        """
        action = action if layer else torch.ones_like(action)
        columns = torch.arange(request.columns.start, request.columns.stop)
        there = torch.isin(columns, ids)
        rows = torch.arange(request.rows.start, request.rows.stop)
        slots = self.layout.placeholders
        of_action = (rows >= slots.start) & (rows < slots.stop)
        wanted = torch.where(of_action[:, None], action, text).masked_fill(~there, 0.0)
        probs = (wanted / wanted.sum(1, keepdim=True)).masked_fill(~there, -torch.inf)
        return LayerScores(probs[None], torch.ones(len(rows), dtype=torch.bool), there)
