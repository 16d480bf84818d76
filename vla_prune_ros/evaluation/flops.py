# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of one query, from the shapes that the pass really had; 2 per multiply-add.

Matrix products and convolutions are counted: both towers, projectors, every decoder layer by its
live rows and attended keys, the side products of scores, the action head. Norms, activations,
softmax and the selection rule itself are not (below 1 % for the published sizes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True)
class Product:
    """One matrix product.

    Attributes:
        stage: of the timers, which it is booked to.
        flops: 2 per multiply-add.
        weights: numbers read of a weight, 0 for attention.
        projector: it maps pictures or robot state to the width of the decoder.
    """

    stage: str
    flops: int
    weights: int
    projector: bool = False


def query_products(config: OpenVLAConfig, work: PassWork) -> Iterator[Product]:
    """Every matrix product of one query; cameras share one call of each tower."""
    views, visual = work.layout.n_views, work.layout.n_visual
    for tower in (config.featurizer, config.fused_featurizer):
        yield from _tower(tower, views)
    d, dim = config.llama.hidden_size, config.vision_dim
    for width, height in ((dim, 4 * dim), (4 * dim, d), (d, d)):
        yield _linear('vision', visual, width, height, True)
    for width in (config.proprio_dim, d):
        yield _linear('decoder', 1, width, d, True)
    for layer in work.layers:
        yield from _layer(config, layer)
    for width, height in (
        (config.action_dim * d, d), (d, d), (d, d), (d, config.action_dim)
    ):  # fmt: skip
        yield _linear('head', config.chunk_len, width, height)


def tower_flops(tower: TowerConfig) -> int:
    """One picture through one tower; the last block is not built."""
    return sum(product.flops for product in _tower(tower, 1))


def layer_flops(config: OpenVLAConfig, work: LayerWork) -> int:
    """One decoder layer, with the scores asked of it."""
    return sum(product.flops for product in _layer(config, work))


def query_flops(config: OpenVLAConfig, work: PassWork) -> dict[str, int]:
    """FLOPs of each part of one query: vision, projectors, decoder, head."""
    flops = dict.fromkeys(('vision', 'projectors', 'decoder', 'head'), 0)
    for product in query_products(config, work):
        flops['projectors' if product.projector else product.stage] += product.flops
    return flops


def _linear(stage: str, rows: int, width: int, height: int, projector: bool = False) -> Product:
    return Product(stage, 2 * rows * width * height, width * height, projector)


def _tower(tower: TowerConfig, views: int) -> Iterator[Product]:
    dim, n = tower.dim, tower.n_patches + tower.n_prefix
    yield _linear('vision', views * tower.n_patches, 3 * tower.patch_size**2, dim)
    for _ in range(tower.depth - 1):
        for width, height in (
            (dim, 3 * dim), (dim, dim), (dim, tower.mlp_hidden), (tower.mlp_hidden, dim)
        ):  # fmt: skip
            yield _linear('vision', views * n, width, height)
        yield Product('vision', views * 2 * 2 * n * n * dim, 0)


def _layer(config: OpenVLAConfig, layer: LayerWork) -> Iterator[Product]:
    d, mlp = config.llama.hidden_size, config.llama.mlp_hidden
    if layer.ahead_rows:
        yield _linear('decoder', layer.ahead_rows, d, 3 * d)
    if layer.score_products:
        yield Product('decoder', 2 * layer.score_products * d, 0)
    if layer.rows:
        for width, height in ((d, 3 * d), (d, d), (d, 2 * mlp), (mlp, d)):
            yield _linear('decoder', layer.rows, width, height)
        yield Product('decoder', 2 * 2 * layer.rows * layer.keys * d, 0)


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
