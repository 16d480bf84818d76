# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of one query, from the shapes that the pass really had; 2 per multiply-add.

Matrix products and convolutions are counted: both towers, projectors, every decoder layer by its
live rows and attended keys, the side products of scores, the action head. Norms, activations,
softmax and the selection rule itself are not (below 1 % for the published sizes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vla_prune_ros.vla.config import OpenVLAConfig, TowerConfig
from vla_prune_ros.vla.decoder import Decoder
from vla_prune_ros.vla.selection import (
    PassPlan,
    ScoreRequest,
    TokenLayout,
    TokenSelector,
    TokenState,
)


@dataclass(frozen=True)
class LayerWork:
    """What one decoder layer did.

    Attributes:
        rows: rows computed, filling of a bucket included; 0 when the layer was skipped.
        keys: keys that each row attended to.
        ahead_rows: rows whose queries, keys and values were computed once more, before a cut, for
            scores only.
        score_products: query-key pairs of score side products.
    """

    rows: int
    keys: int
    ahead_rows: int = 0
    score_products: int = 0


@dataclass(frozen=True)
class PassWork:
    """What one query did: the sequence it started from, and every layer."""

    layout: TokenLayout
    layers: tuple[LayerWork, ...]

    @property
    def visual_rows(self) -> tuple[int, ...]:
        """Visual tokens computed in each layer; everything else in a sequence always stays."""
        others = self.layout.length - self.layout.n_visual
        return tuple(max(0, layer.rows - others) for layer in self.layers)


def tower_flops(tower: TowerConfig) -> int:
    """One picture through one tower; the last block is not built."""
    n = tower.n_patches + tower.n_prefix
    embed = 2 * tower.n_patches * 3 * tower.patch_size**2 * tower.dim
    linear = 2 * n * (4 * tower.dim**2 + 2 * tower.dim * tower.mlp_hidden)
    attention = 2 * 2 * n * n * tower.dim
    return embed + (tower.depth - 1) * (linear + attention)


def layer_flops(config: OpenVLAConfig, work: LayerWork) -> int:
    """One decoder layer, with the scores asked of it."""
    d, mlp = config.llama.hidden_size, config.llama.mlp_hidden
    linear = 2 * work.rows * (4 * d * d + 3 * d * mlp)
    attention = 2 * 2 * work.rows * work.keys * d
    scores = 2 * work.score_products * d + 2 * work.ahead_rows * 3 * d * d
    return linear + attention + scores


def query_flops(config: OpenVLAConfig, work: PassWork) -> dict[str, int]:
    """FLOPs of each part of one query: vision, projectors, decoder, head."""
    d, dim = config.llama.hidden_size, config.vision_dim
    views, visual = work.layout.n_views, work.layout.n_visual
    towers = tower_flops(config.featurizer) + tower_flops(config.fused_featurizer)
    projector = 2 * visual * (4 * dim * dim + 4 * dim * d + d * d)
    proprio = 2 * (config.proprio_dim * d + d * d)
    head = 2 * config.chunk_len * (config.action_dim * d * d + 2 * d * d + d * config.action_dim)
    return {
        'vision': views * towers,
        'projectors': projector + proprio,
        'decoder': sum(layer_flops(config, layer) for layer in work.layers),
        'head': head,
    }


def layer_work(
    plan: PassPlan, layout: TokenLayout, depth: int, cuts: Mapping[int, int]
) -> tuple[LayerWork, ...]:
    """What every layer does, given the plan of a pass and how many tokens each cut left.

    Args:
        plan: the selector's plan.
        layout: the complete sequence.
        depth: number of decoder layers.
        cuts: cut point -> live tokens after it.
    """
    live = rows = layout.length  # rows: the live ones and those that fill up a bucket
    layers = []
    for index in range(depth):
        request = plan.scores.get(index)
        ahead_rows = score_products = 0
        if request is not None and request.ahead:
            ahead_rows, score_products = rows, _products(request, live)
        if index in cuts:
            live, rows = cuts[index], plan.rows(cuts[index], layout)
        if index in plan.skip_layers:
            layers.append(LayerWork(0, 0, ahead_rows, score_products))
            continue
        if request is not None and not request.ahead:
            seen = live if plan.cache is None else layout.length
            score_products = _products(request, seen)
        keys = rows if plan.cache is None else layout.length
        layers.append(LayerWork(rows, keys, ahead_rows, score_products))
    return tuple(layers)


def _products(request: ScoreRequest, keys: int) -> int:
    return len(request.rows) * keys


class _Watched:
    """Stands between the decoder and a selector and notes plan and cuts."""

    def __init__(self, inner: TokenSelector) -> None:
        self.inner = inner
        self.plan = PassPlan()
        self.cuts: dict[int, int] = {}

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        self.plan = self.inner.begin(layout, embeddings)
        return self.plan

    def select(self, point: int, tokens: TokenState) -> Tensor | None:
        kept = self.inner.select(point, tokens)
        self.cuts[point] = len(tokens.ids) if kept is None else len(kept)
        return kept

    def end(self, tokens: TokenState) -> None:
        self.inner.end(tokens)


class WorkMeter:
    """Notes the work of every pass of a decoder in `last`, until `close`.

    It only watches plan and counts, so a pass costs a few microseconds more and gives the same
    bits. The decoder must be called as a module, with its layout.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.last: PassWork | None = None
        self._depth = len(decoder.layers)
        self._watched: _Watched | None = None
        self._handles = (
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, with_kwargs=True),
        )

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        selector = kwargs.get('selector')
        self._watched = None if selector is None else _Watched(selector)
        return args, {**kwargs, 'selector': self._watched}

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        layout = kwargs['layout']
        plan, cuts = PassPlan(), {}
        if self._watched is not None:
            plan, cuts = self._watched.plan, self._watched.cuts
        self.last = PassWork(layout, layer_work(plan, layout, self._depth, cuts))
