# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of one query, from the shapes that the pass really had; 2 per multiply-add.

Matrix products and convolutions are counted: both towers, projectors, every decoder layer by its
live rows and attended keys, the side products of scores, the action head. What follows from the
instruction alone (FiLM) is computed once for each and not counted. Norms, activations,
softmax and the selection rule itself are not (below 1 % for the published sizes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vla_prune_ros.vla.config import OpenVLAConfig, TowerConfig
from vla_prune_ros.vla.decoder import Decoder
from vla_prune_ros.vla.selection import TokenLayout
from vla_prune_ros.vla.walk import DecoderOutput, Segment


@dataclass(frozen=True)
class LayerWork:
    """What one decoder layer did.

    Attributes:
        rows: rows computed, filling of a bucket included; 0 when the layer was skipped.
        keys: keys that each row attended to.
        score_products: query-key pairs of score side products.
    """

    rows: int
    keys: int
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
    for width in (config.proprio_dim, d) if config.use_proprio else ():
        yield _linear('decoder', 1, width, d, True)
    for layer in work.layers:
        yield from _layer(config, layer)
    if config.head == 'tokens':
        yield _linear('head', config.n_placeholders, d, len(config.action_ids))
        return
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
    if layer.score_products:
        yield Product('decoder', 2 * layer.score_products * d, 0)
    if layer.rows:
        for width, height in ((d, 3 * d), (d, d), (d, 2 * mlp), (mlp, d)):
            yield _linear('decoder', layer.rows, width, height)
        yield Product('decoder', 2 * 2 * layer.rows * layer.keys * d, 0)


def layer_work(segments: Iterable[Segment], depth: int) -> tuple[LayerWork, ...]:
    """What every layer of a decoder did in a pass that consisted of these segments."""
    layers = [LayerWork(0, 0)] * depth
    for segment in segments:
        requests, rows = dict(segment.scores), segment.rows.count
        keys = rows if segment.cache is None else segment.slots
        for index in segment.layers:
            request = requests.get(index)
            products = 0 if request is None else request.n_rows * keys
            layers[index] = LayerWork(rows, keys, products)
    return tuple(layers)


class WorkMeter:
    """Notes the work of every pass of a decoder in `last`, until `close`.

    It only looks at what a pass says of itself, so that it changes no bit. The decoder must be
    called as a module, with its layout.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.last: PassWork | None = None
        self._handle = decoder.register_forward_hook(self._after, with_kwargs=True)

    def close(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _after(self, decoder: Decoder, args: tuple, kwargs: dict, output: DecoderOutput) -> None:
        work = layer_work(output.segments, len(decoder.layers))
        self.last = PassWork(kwargs['layout'], work)
