# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How much each decoder layer changes the residual stream: measured once, kept in a JSON file.

I(l) = 1 - mean of cos(state entering l, state leaving l). Source: EfficientVLA (arXiv 2506.10100).
The file lies beside the checkpoint directory, not inside it, and names the weights it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_prune_ros.vla.config import read_json
from vla_prune_ros.vla.selection import PassPlan, TokenLayout, TokenState

VARIANTS = ('all', 'action')


@dataclass(frozen=True)
class LayerImportance:
    """Measured importance of every layer of one checkpoint.

    Attributes:
        sha256: digest of the weights, see `vla.checkpoint.weights_digest`.
        suite: normalisation statistics of the observations it was measured on.
        frames: number of observations.
        importance: variant -> I by layer; `all` averages over all tokens, `action` over the
            states that the action head reads.
        environment: date, software and hardware of the measurement.
    """

    sha256: str
    suite: str
    frames: int
    importance: Mapping[str, tuple[float, ...]]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def order(self, variant: str) -> list[int]:
        """Layers from the least important on."""
        values = self.importance[variant]
        return sorted(range(len(values)), key=values.__getitem__)

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        data = {
            'sha256': self.sha256,
            'suite': self.suite,
            'frames': self.frames,
            'importance': {name: list(values) for name, values in self.importance.items()},
            'least_important_first': {name: self.order(name) for name in self.importance},
            'environment': dict(self.environment),
        }
        path.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')

    @classmethod
    def load(cls, path: Path) -> LayerImportance:
        """Read the JSON file.

        Raises:
            ValueError: the file is not what `save` writes.
        """
        data = read_json(path)
        try:
            importance = {name: tuple(map(float, data['importance'][name])) for name in VARIANTS}
            loaded = cls(
                str(data['sha256']),
                str(data['suite']),
                int(data['frames']),
                importance,
                dict(data.get('environment', {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{path} does not hold the importance of layers: {error!r}'
            ) from error
        if len({len(values) for values in importance.values()}) != 1:
            raise ValueError(f'{path}: the variants do not have the same number of layers')
        return loaded


def file_beside(checkpoint: Path) -> Path:
    """Where the importance of a checkpoint's layers is kept."""
    checkpoint = checkpoint.resolve()
    return checkpoint.with_name(f'{checkpoint.name}.layers.json')


class ImportanceProbe:
    """Token selector that keeps everything and measures; one object for many passes."""

    def __init__(self, n_layers: int) -> None:
        self._sums = {name: torch.zeros(n_layers, dtype=torch.float64) for name in VARIANTS}
        self._tokens = dict.fromkeys(VARIANTS, 0)
        self._entering: Tensor | None = None
        self.passes = 0

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Ask to see the state between all layers."""
        return PassPlan(points=frozenset(range(len(self._sums['all']) + 1)))

    def select(self, point: int, tokens: TokenState) -> None:
        """Compare the state with the one before the last layer."""
        state = tokens.hidden.float()
        if point > 0:
            layout = tokens.layout
            # The states that the head reads end at the last placeholder but one.
            stop = layout.placeholders.stop - 1
            cosine = _cosine(self._entering, state)  # [n]
            self._sums['all'][point - 1] += float(cosine.sum())
            action = cosine[stop - layout.n_placeholders : stop]
            self._sums['action'][point - 1] += float(action.sum())
        self._entering = state

    def end(self, tokens: TokenState) -> None:
        """Count the pass."""
        self._tokens['all'] += len(tokens.ids)
        self._tokens['action'] += tokens.layout.n_placeholders
        self._entering = None
        self.passes += 1

    def importance(self) -> dict[str, tuple[float, ...]]:
        """I by layer over all passes so far, for both variants."""
        return {
            name: tuple((1.0 - sums / self._tokens[name]).tolist())
            for name, sums in self._sums.items()
        }


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last dimension; rows that are zero in both are unchanged: 1."""
    nothing = (a == 0).all(-1) & (b == 0).all(-1)
    return F.cosine_similarity(a, b, dim=-1).masked_fill(nothing, 1.0)
