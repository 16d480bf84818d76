# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of one query, from the shapes that the pass really had; 2 per multiply-add.

Matrix products and convolutions are counted: both towers, projectors, every decoder layer by its
live rows and attended keys, the side products of scores, the action head. Norms, activations,
softmax and the selection rule itself are not (below 1 % for the published sizes).
"""

from __future__ import annotations

from collections.abc import Iterable
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
    return linear + attention + 2 * work.score_products * d


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


def layer_work(segments: Iterable[Segment], depth: int) -> tuple[LayerWork, ...]:
    """What every layer of a decoder did in a pass that consisted of these segments."""
    layers = [LayerWork(0, 0)] * depth
    for segment in segments:
        requests, rows = dict(segment.scores), segment.rows.count
        keys = rows if segment.cache is None else segment.rows.length
        for index in segment.layers:
            request = requests.get(index)
            products = 0 if request is None else len(request.rows) * keys
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
