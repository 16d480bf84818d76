# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Token importance gathered over layers: rank and entropy weights, moving average.

Source: SpecPrune-VLA (arXiv 2509.05614), layer-level pruning. Numbers of tokens may be on the
device, int64 of no dimension; the result is the same to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vla_prune_ros.vla.selection import LayerScores


def rank_weights(scores: Tensor, n_present: int | Tensor, decay: float) -> Tensor:
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
    k: float | Tensor  # a quotient that is rounded once
    if isinstance(n_present, Tensor):
        last = (n_present - 1).clamp(min=1).double()
        k = (torch.full_like(last, -decay) / last).to(scores.dtype)
    else:
        k = -decay / max(1, n_present - 1)
    weights = torch.sigmoid(k * ranks.to(scores.dtype))
    weights = weights.masked_fill(ranks >= n_present, 0.0)
    return torch.empty_like(weights).index_copy_(0, order, weights / weights.sum())


@dataclass(frozen=True)
class Importance:
    """Moving average S_l = (1 - beta) S_(l-1) + beta * rank weight * confidence.

    Attributes:
        beta: share of the newest layer.
        eps: added to the entropy.
        decay: see `rank_weights`.
        confidence: weigh a layer by 1 / (mean attention entropy + eps); else every layer by 1.
    """

    beta: float
    eps: float
    decay: float
    confidence: bool

    def after(self, values: Tensor, scores: LayerScores, n_present: int | Tensor) -> Tensor:
        """Take in one layer.

        Args:
            values: S by visual token so far, float32 [n_visual]; 0 before the first layer.
            scores: of the layer; its columns are all visual tokens.
            n_present: how many of them are live.
        """
        weights = rank_weights(scores.received(), n_present, self.decay)
        if self.confidence:
            weights = weights / (scores.entropy + self.eps)
        return (1 - self.beta) * values + self.beta * weights


def most_important(values: Tensor, live: Tensor, count: int | Tensor) -> Tensor:
    """Mark the `count` most important of the live tokens; equal ones in the order of their ids.

    Args:
        values: [n_visual].
        live: bool [n_visual].
        count: at most as many as are live.
    """
    order = values.masked_fill(~live, -torch.inf).argsort(descending=True, stable=True)
    first = torch.arange(len(live), device=live.device) < count
    return torch.empty_like(live).index_copy_(0, order, first)
