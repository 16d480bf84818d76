# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Token importance gathered over layers: rank and entropy weights, moving average.

Source: SpecPrune-VLA (arXiv 2509.05614), layer-level pruning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vla_prune_ros.vla.selection import LayerScores


def rank_weights(scores: Tensor, n_present: int, decay: float) -> Tensor:
    """Weights that fall with the rank of a score: sigmoid(-k * rank), sum 1.

    Args:
        scores: [n], absent tokens -inf.
        n_present: tokens that are not absent.
        decay: k is this over the last rank; 5.3 makes the first weight 100 times the last.

    Returns:
        [n], 0 for absent tokens.
    """
    order = scores.argsort(descending=True, stable=True)
    ranks = torch.arange(len(scores), device=scores.device)
    weights = torch.sigmoid(-decay / max(1, n_present - 1) * ranks.to(scores.dtype))
    weights = weights.masked_fill(ranks >= n_present, 0.0)
    return torch.empty_like(weights).index_copy_(0, order, weights / weights.sum())


@dataclass
class Importance:
    """Moving average S_l = (1 - beta) S_(l-1) + beta * rank weight * confidence.

    Attributes:
        values: S by visual token, float32 [n_visual]; starts at 0.
        beta: share of the newest layer.
        eps: added to the entropy.
        decay: see `rank_weights`.
        confidence: weigh a layer by 1 / (mean attention entropy + eps); else every layer by 1.
    """

    values: Tensor
    beta: float
    eps: float
    decay: float
    confidence: bool

    def update(self, scores: LayerScores, n_present: int) -> None:
        """Take in one layer; its columns are all visual tokens, `n_present` of them live."""
        weights = rank_weights(scores.received(), n_present, self.decay)
        if self.confidence:
            weights = weights / (scores.entropy + self.eps)
        self.values = (1 - self.beta) * self.values + self.beta * weights

    def best(self, live: Tensor, count: int) -> Tensor:
        """Return the ids of the `count` most important of some visual tokens, int64 [count]."""
        order = self.values[live - 1].argsort(descending=True, stable=True)
        return live[order[:count]]
