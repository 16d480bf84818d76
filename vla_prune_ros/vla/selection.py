# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which tokens take part in the decoder: the token layout and the selector interface.

Ids are places in the complete, unpruned sequence. They are the only names by which tokens are
known outside the decoder; a row number of a compacted sequence never leaves it. Cut points are
integers k in 0..n_layers and mean "before layer k" (0: before the decoder, k: after layer k-1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vla_prune_ros.vla.rules import Rule


@dataclass(frozen=True)
class TokenLayout:
    """Where everything is: BOS | views | proprio, if used | prompt | placeholders | EOS.

    Attributes:
        n_views: number of cameras.
        patches_per_view: visual tokens per camera.
        prompt_length: prompt tokens with BOS and the closing blank piece (L).
        n_placeholders: empty action slots.
        state_tokens: 1, or 0 for a model that does not take the state of the robot.
    """

    n_views: int
    patches_per_view: int
    prompt_length: int
    n_placeholders: int
    state_tokens: int = 1

    @property
    def n_visual(self) -> int:
        """Visual tokens of all views; their ids are 1..n_visual."""
        return self.n_views * self.patches_per_view

    @property
    def length(self) -> int:
        """Tokens of the complete sequence."""
        others = self.state_tokens + self.prompt_length + self.n_placeholders + 1
        return self.n_visual + others

    @property
    def visual(self) -> range:
        """Ids of all visual tokens."""
        return range(1, 1 + self.n_visual)

    def view(self, index: int) -> range:
        """Ids of the visual tokens of one camera, row-major over its patches."""
        if not 0 <= index < self.n_views:
            raise IndexError(f'view {index} of {self.n_views}')
        start = 1 + index * self.patches_per_view
        return range(start, start + self.patches_per_view)

    @property
    def proprio(self) -> int:
        """Id of the robot-state token; without one, of the first token of the prompt."""
        return 1 + self.n_visual

    @property
    def text(self) -> range:
        """Ids of the prompt tokens after BOS, the closing blank piece included."""
        start = self.proprio + self.state_tokens
        return range(start, start + self.prompt_length - 1)

    @property
    def placeholders(self) -> range:
        """Ids of the empty action slots; slot k belongs to step k // action_dim."""
        return range(self.text.stop, self.text.stop + self.n_placeholders)

    @property
    def eos(self) -> int:
        """Id of the closing token, the last one."""
        return self.length - 1

    @property
    def protected(self) -> tuple[range, range]:
        """Ids that no selector may drop: BOS, and everything behind the visual tokens."""
        return range(1), range(self.proprio, self.length)

    def keep(self, visual: Tensor) -> Tensor:
        """Return the protected ids together with some visual ids, ascending.

        Args:
            visual: visual ids to keep, any order, no duplicates, int64 [k].

        Returns:
            int64 [k + length - n_visual] on the device of `visual`.
        """
        first, rest = (torch.arange(r.start, r.stop, device=visual.device) for r in self.protected)
        return torch.cat([first, visual.sort().values, rest])


@dataclass(frozen=True)
class ScoreRequest:
    """Attention probabilities that a selector wants from one layer, for a few query rows.

    Attributes:
        rows: query ids, ascending.
        columns: key ids, ascending.
        entropy: also report the mean entropy of the rows' distributions over all keys.
        mean: only what `LayerScores.received` says leaves the layer, as one row of one head.
    """

    rows: range
    columns: range
    entropy: bool = False
    mean: bool = False


@dataclass(frozen=True)
class LayerScores:
    """Softmax over all attended keys of `q k^T / sqrt(d)` after RoPE, in float32.

    Shapes are those of the request, whatever was pruned before: rows and columns that are no
    longer there hold -inf, so no step here depends on the data (CUDA graphs, no device sync).

    Attributes:
        probs: [heads, rows, columns]; [1, 1, columns] where only the mean was requested.
        row_present, column_present: bool, whether the id was live (or supplied by a cache).
        entropy: mean over heads and present rows in nats, scalar, or None if not requested.
    """

    probs: Tensor
    row_present: Tensor
    column_present: Tensor
    entropy: Tensor | None = None

    def received(self) -> Tensor:
        """Mean over heads and present rows: what each column gets; [columns], absent = -inf."""
        if self.probs.shape[:2] == (1, 1):
            return self.probs[0, 0]  # absent columns are -inf already
        probs = self.probs.masked_fill(~self.row_present[:, None], 0.0)
        mean = probs.mean(0).sum(0) / self.row_present.sum()
        return mean.masked_fill(~self.column_present, -torch.inf)

    def given(self) -> Tensor:
        """Mean over heads, sum over columns: what each row gives; [rows], absent = -inf."""
        probs = self.probs.masked_fill(~self.column_present, 0.0)
        return probs.mean(0).sum(-1).masked_fill(~self.row_present, -torch.inf)


class SlotCache:
    """Keys and values of every layer by absolute slot, so that some rows need no recomputing.

    With a cache, live rows write their slots and attention runs over all slots. A pass in which
    every token is live fills a layer; before that its cached slots hold nothing valid. Rows that
    only fill up a capacity write behind the slots of the tokens, where the buffers are larger.
    """

    def __init__(
        self,
        n_layers: int,
        length: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (length, heads, head_dim)
        self.length = length
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.filled = [False] * n_layers

    def book(self, layers: Iterable[int], live: int) -> None:
        """Note that layers are run with so many live rows.

        Raises:
            ValueError: not all tokens are live and a layer was never filled.
        """
        for layer in layers:
            if live == self.length:
                self.filled[layer] = True
            elif not self.filled[layer]:
                raise ValueError(
                    f'layer {layer} of the cache is read before a complete pass filled it'
                )

    def write(
        self, layer: int, ids: Tensor, k: Tensor, v: Tensor, slots: int
    ) -> tuple[Tensor, Tensor]:
        """Write the live rows' keys and values, return those of all slots.

        Args:
            layer: decoder layer.
            ids: absolute ids of the live rows, int64 [m]; those of filling are no token's.
            k: keys [1, heads, m, head_dim], already rotated for their position.
            v: values of the same shape.
            slots: how many are returned, the length or, where there is room, more.

        Returns:
            keys, values: [1, heads, slots, head_dim], views of the buffers.
        """
        out = []
        for buffer, new in ((self.keys[layer], k), (self.values[layer], v)):
            buffer.index_copy_(0, ids, new[0].transpose(0, 1).to(buffer.dtype))
            out.append(buffer[:slots].transpose(0, 1)[None])
        return out[0], out[1]

    def empty_like(self, length: int = 0) -> SlotCache:
        """Return an empty cache of the same shape, or of another length."""
        keys = self.keys[0]
        length = length or self.length
        return SlotCache(
            len(self.keys), length, *keys.shape[1:], dtype=keys.dtype, device=keys.device
        )


@dataclass(frozen=True)
class PassPlan:
    """What a selector wants from one decoder pass.

    Attributes:
        points: cut points at which `select` is called.
        scores: score requests by layer.
        skip_layers: layers that are left out (the residual stream passes through).
        cache: keys and values that dropped rows leave behind, or None: dropped means gone.
        repeats: the cuts leave the same few counts in every pass, whatever is in the picture, so
            that work may be recorded for exactly those; else the rows are filled up to one of a
            few counts, see `Space.room`.
        blind: no cut looks at states or scores, so that all may be asked for beforehand; `select`
            gets none.
        most: cut point -> visual tokens that it may leave at most, where passes of different
            counts share one of a few such numbers, which together stand for one piece of work.
        varies: hardly any pass is like another, so that recording it would not pay.
        rules: what decides at cut points, all of them or none, where stages are run together:
            then it is a stage like others, and `select` is not asked.
        notes: tensors that the rules read, by name; those of other shapes, types or names make
            other recordings.
        counted: cut points with a rule behind which the host reads how many visual tokens are
            left, so that the rows that follow are no more than a bucket of it; else they are as
            many as the rule may leave. A number is taken for the count instead (rehearsals).
    """

    points: frozenset[int] = frozenset()
    scores: Mapping[int, ScoreRequest] = field(default_factory=dict)
    skip_layers: frozenset[int] = frozenset()
    cache: SlotCache | None = None
    repeats: bool = False
    blind: bool = False
    most: Mapping[int, int] = field(default_factory=dict)
    varies: bool = False
    rules: Mapping[int, Rule] = field(default_factory=dict)
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    counted: Mapping[int, int | None] = field(default_factory=dict)


@dataclass
class TokenState:
    """What a selector sees at a cut point.

    Attributes:
        layout: the complete sequence.
        ids: absolute ids of the live rows, ascending, int64 [m].
        hidden: state of the live rows at this point, [m, D].
        scores: requested scores of the layers run so far in this pass.
        notes: what rules left in this pass. Where they did, the number of live rows may be known
            to the device only: then ids and states are followed by filling, whose ids are no
            token's.
    """

    layout: TokenLayout
    ids: Tensor
    hidden: Tensor
    scores: dict[int, LayerScores]
    notes: Mapping[str, Tensor] = field(default_factory=dict)


class TokenSelector(Protocol):
    """Decides which tokens stay. One object serves one sequence (batch 1) at a time.

    It may have an attribute `plans_ahead`, True if `begin` looks at the shape and the type of the
    embeddings only, so that it may be called before they are there.
    """

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Plan a pass over the assembled sequence `embeddings` [n, D]."""

    def select(self, point: int, tokens: TokenState) -> Tensor | None:
        """Return the absolute ids that stay live, int64 ascending, or None for all of them."""

    def end(self, tokens: TokenState) -> None:
        """See the state after the last layer (before the final norm) and all scores."""


class SelectorProxy:
    """Passes everything on to a selector: the base of what watches one or interferes with it.

    It is asked at every cut, so rules of the selector do not act.

    Attributes:
        inner: the selector.
        plan: its plan of the latest pass, without rules.
    """

    def __init__(self, inner: TokenSelector) -> None:
        self.inner, self.plan = inner, PassPlan()

    @property
    def plans_ahead(self) -> bool:
        """As the selector."""
        return getattr(self.inner, 'plans_ahead', False)

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """See `TokenSelector.begin`."""
        self.plan = replace(self.inner.begin(layout, embeddings), rules={}, counted={})
        return self.plan

    def select(self, point: int, tokens: TokenState) -> Tensor | None:
        """See `TokenSelector.select`."""
        return self.inner.select(point, tokens)

    def end(self, tokens: TokenState) -> None:
        """See `TokenSelector.end`."""
        self.inner.end(tokens)
