# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one walk through the decoder: segments of layers, and a selector's cuts between them.

What a segment computes follows from the weights, from the tensors of a `Space`, and from one
frozen value, the `Stage`. It sees nothing else, so it may be run directly, or recorded and found
again by that value: two equal stages do the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vla_prune_ros.vla.operations import add
from vla_prune_ros.vla.selection import (
    LayerScores,
    PassPlan,
    ScoreRequest,
    SlotCache,
    TokenLayout,
    TokenSelector,
    TokenState,
)

if TYPE_CHECKING:
    from vla_prune_ros.vla.decoder import Decoder


@dataclass(frozen=True)
class Rows:
    """Which rows a stage works on.

    Attributes:
        length: tokens of the complete sequence.
        count: rows, live ones and the filling behind them.
        source: where they are in `Space.states`.
        picked: only those rows of the source that `Space.at` names, else the first.
        cut: `Space.ids` names their tokens, else they are the first of the sequence.
        filled: some of them may be filling, to which nobody attends.
    """

    length: int
    count: int
    source: int = 0
    picked: bool = False
    cut: bool = False
    filled: bool = False

    @property
    def after(self) -> Rows:
        """The same rows behind a segment: in the place that it did not read."""
        return replace(self, source=1 if self.source != 1 else 2, picked=False)


@dataclass(frozen=True)
class Stage:
    """A piece of a pass. All fields are hashable; together they are the key of a recording."""

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """Compute; must not wait for the device, and may be run again on the same tensors."""
        raise NotImplementedError

    def written(self, space: Space) -> list[Tensor]:
        """Tensors of a static space that the work writes beside its results."""
        return []


Run = Callable[[nn.Module, 'Space', Stage], list[Tensor]]
Mark = Callable[[str], None]


def directly(network: nn.Module, space: Space, stage: Stage) -> list[Tensor]:
    """Run a stage without recording."""
    return stage.work(network, space)


def unmarked(stage: str) -> None:
    """Take no time of a stage."""


class Space:
    """The tensors of a pass that stages read and write; here they are new in each pass.

    Attributes:
        states: the assembled sequence [B, n, D], and two places that segments write in turn.
        rope: see `rope_table`.
        key_mask: bool [B, n], False hides a key from everyone (padding), or None.
        everything: 0, 1, 2, ...
        at: rows of the source that the latest cut left, int64 [rows].
        ids: their absolute ids; that of filling is the length of the sequence.
        live: int32 [1], how many rows are no filling.
        caches: slot caches by number.
    """

    def __init__(self, sequence: Tensor, rope: Tensor, key_mask: Tensor | None = None) -> None:
        self.states: list[Tensor] = [sequence] * 3
        self.rope, self.key_mask = rope, key_mask
        self.everything = torch.arange(sequence.shape[1], device=sequence.device)
        self.at = self.ids = self.everything
        self.live: Tensor | None = None  # here nothing is filled
        self.caches: dict[int, SlotCache] = {}

    def put(self, place: int, x: Tensor) -> None:
        """Leave the states of a segment in a place."""
        self.states[place] = x

    def cut(self, at: Tensor, ids: Tensor, rows: Rows) -> None:
        """Name the rows that stay, by their place in the source and by their absolute ids."""
        self.at, self.ids = at, ids

    def room(self, live: int, layout: TokenLayout) -> int | None:
        """Rows to compute where a varying count left so many; None: exactly those."""
        return None

    def adopt(self, cache: SlotCache) -> int:
        """Take a cache in and return its number."""
        self.caches = {0: cache}
        return 0

    def rows(self, rows: Rows) -> Tensor:
        """States of some rows, [B, count, D]."""
        source = self.states[rows.source]
        return source[:, self.at[: rows.count]] if rows.picked else source[:, : rows.count]

    def tokens(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Absolute ids of some rows, int64 [count], and which are there, bool [B, count]."""
        ids = (self.ids if rows.cut else self.everything)[: rows.count]
        return ids, (ids < rows.length)[None] if rows.filled else self.key_mask


@dataclass(frozen=True)
class Segment(Stage):
    """Some layers between two cut points.

    Attributes:
        layers: those that are run.
        rows: what enters; `rows.after` is what leaves.
        scores: layer and request, where scores are wanted.
        cache: number of the cache in `Space.caches`, or None.
    """

    layers: tuple[int, ...]
    rows: Rows
    scores: tuple[tuple[int, ScoreRequest], ...] = ()
    cache: int | None = None

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """Run the layers of a decoder; returns the fields of the scores in turn."""
        rows, n = self.rows, self.rows.length
        x, (ids, there) = space.rows(rows), space.tokens(rows)
        rope = space.rope[..., ids, :] if rows.cut else space.rope[..., :n, :]
        cache = None if self.cache is None else space.caches[self.cache]
        bias = None if there is None or cache is not None else bias_of(there, x.dtype)
        live = space.live if rows.filled and cache is None else None
        requests, found = dict(self.scores), []
        delta = None
        for index in self.layers:
            layer, request = network.layers[index], requests.get(index)  # type: ignore[index]
            x, q, k, v = layer.enter(x, delta, rope)
            key_ids, shown = ids, there
            if cache is not None:
                k, v = cache.write(index, ids, k, v)
                key_ids, shown = space.everything[:n], None
            if request is not None:
                found += side_product(q[0], k[0], request, ids, key_ids, shown)
            x, delta = layer.leave(x, q, k, v, bias, live)
        x = add(x, delta)
        space.put(rows.after.source, x)
        return found

    def written(self, space: Space) -> list[Tensor]:
        """See `Stage.written`."""
        return [space.states[self.rows.after.source][:, : self.rows.count]]


@dataclass
class DecoderOutput:
    """Result of a decoder pass.

    Attributes:
        hidden: states after the last layer, before the final norm, [B, m, D].
        ids: absolute ids of these rows, int64 [m].
        entered: absolute ids of the rows that entered the last layer, int64.
        rows: where the states are in the space.
        segments: what was run.
    """

    hidden: Tensor
    ids: Tensor
    entered: Tensor
    rows: Rows
    segments: tuple[Segment, ...]


def walk(
    decoder: Decoder,
    space: Space,
    length: int,
    selector: TokenSelector | None = None,
    layout: TokenLayout | None = None,
    run: Run = directly,
    mark: Mark = unmarked,
) -> DecoderOutput:
    """Run all layers on the sequence in `space.states[0]`; see `Decoder.forward`."""
    depth = len(decoder.layers)
    plan, number = PassPlan(), None
    rows, ids = Rows(length, length), space.everything[:length]
    entered, position = ids, 0
    scores: dict[int, LayerScores] = {}
    segments: list[Segment] = []
    if selector is not None:
        mark('decoder')
        plan = selector.begin(layout, space.states[0][0, :length])
        mark('select')
        check_plan(plan, layout, depth)
        if plan.cache is not None:
            number = space.adopt(plan.cache)
    for bound in sorted({*plan.points, depth}):
        if bound > position:
            layers = tuple(i for i in range(position, bound) if i not in plan.skip_layers)
            if plan.cache is not None:
                plan.cache.book(layers, len(ids))
            wanted = tuple((i, plan.scores[i]) for i in layers if i in plan.scores)
            segments.append(Segment(layers, rows, wanted, number))
            found = iter(run(decoder, space, segments[-1]))
            for layer, request in wanted:
                scores[layer] = LayerScores(*islice(found, 3 + request.entropy))
            entered, position, rows = ids, bound, rows.after
        if bound not in plan.points:
            continue
        mark('decoder')
        state = TokenState(layout, ids, space.rows(rows)[0, : len(ids)], scores)
        kept = selector.select(bound, state)
        mark('select')
        if kept is None:
            continue
        check_kept(kept, ids, layout)
        room = None if plan.repeats else space.room(len(kept), layout)
        # Where counts vary, a bucket that happens to be full is treated like the others.
        filled = room is not None and len(kept) < length
        count = len(kept) if room is None else room
        rows = replace(rows, count=count, picked=True, cut=True, filled=filled)
        space.cut(torch.searchsorted(ids, kept), kept, rows)
        ids = kept
    hidden = space.rows(rows)[:, : len(ids)]
    if selector is not None:
        mark('decoder')
        selector.end(TokenState(layout, ids, hidden[0], scores))
        mark('select')
    return DecoderOutput(hidden, ids, entered, rows, tuple(segments))


def bias_of(shown: Tensor, dtype: torch.dtype) -> Tensor:
    """What hides keys from everyone, made once for all layers; bool [B, keys] to [B, 1, 1, keys].

    Torch would make it of a bool mask in every layer.
    """
    nothing = torch.zeros(shown.shape, dtype=dtype, device=shown.device)
    return nothing.masked_fill_(~shown, -torch.inf)[:, None, None]


def side_product(
    q: Tensor,
    k: Tensor,
    request: ScoreRequest,
    ids: Tensor,
    key_ids: Tensor,
    shown: Tensor | None = None,
) -> list[Tensor]:
    """Explicit attention of a few rows, beside the fused kernel.

    Args:
        q: rotated queries [heads, m, head_dim].
        k: rotated keys [heads, keys, head_dim].
        request: the rows and columns wanted.
        ids: absolute ids of the queries, ascending, int64 [m].
        key_ids: absolute ids of the keys, ascending, int64 [keys].
        shown: bool [1, keys], False hides a key; None shows all.

    Returns:
        The fields of `LayerScores`, entropy only if it was requested.
    """
    row_at, row_there = _locate(request.rows, ids)
    column_at, column_there = _locate(request.columns, key_ids)
    logits = q[:, row_at].float() @ k.float().transpose(1, 2) / math.sqrt(q.shape[-1])
    if shown is not None:
        logits = logits.masked_fill(~shown, -torch.inf)
    probs = logits.softmax(-1)  # [heads, rows, keys]
    picked = probs[..., column_at].masked_fill(~(row_there[:, None] & column_there), -torch.inf)
    if not request.entropy:
        return [picked, row_there, column_there]
    each = torch.special.entr(probs).sum(-1).mean(0)  # [rows]
    entropy = each.masked_fill(~row_there, 0.0).sum() / row_there.sum()
    return [picked, row_there, column_there, entropy]


def _locate(wanted: range, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Row of each wanted id among ascending ids (any row if absent), and whether it is there."""
    all_ids = torch.arange(wanted.start, wanted.stop, wanted.step, device=ids.device)
    at = torch.searchsorted(ids, all_ids).clamp(max=len(ids) - 1)
    return at, ids[at] == all_ids


def check_plan(plan: PassPlan, layout: TokenLayout, depth: int) -> None:
    """Check what a selector wants.

    Raises:
        ValueError: cuts, scores, layers or cache do not go together or with this model.
    """
    if plan.points and not 0 <= min(plan.points) <= max(plan.points) <= depth:
        raise ValueError(f'cut points {sorted(plan.points)} are not within 0..{depth}')
    layers = {*plan.scores, *plan.skip_layers}
    if layers and not 0 <= min(layers) <= max(layers) < depth:
        raise ValueError(f'layers {sorted(layers)} are not within 0..{depth - 1}')
    if unscored := sorted({*plan.scores} & plan.skip_layers):
        raise ValueError(f'scores are requested from skipped layers {unscored}')
    if plan.cache is not None and plan.cache.length != layout.length:
        raise ValueError(
            f'the cache has {plan.cache.length} slots, the sequence {layout.length} tokens'
        )


def check_kept(kept: Tensor, ids: Tensor, layout: TokenLayout) -> None:
    """Check a selector's answer; values only on the CPU, where looking costs no device sync.

    Raises:
        ValueError: not int64, not ascending, not live, or a protected token is missing.
    """
    if kept.dtype != torch.int64 or kept.ndim != 1 or kept.device != ids.device:
        raise ValueError('a selector returns absolute ids as a vector of int64 on its device')
    if len(kept) > len(ids) or len(kept) < layout.length - layout.n_visual:
        raise ValueError(f'a selector returned {len(kept)} ids of {len(ids)} live tokens')
    if kept.device.type != 'cpu':
        return
    if bool((kept.diff() <= 0).any()):
        raise ValueError('a selector must return ascending ids without duplicates')
    if not bool(torch.isin(kept, ids).all()):
        raise ValueError('a selector returned ids that are not live')
    if int((kept >= layout.proprio).sum()) + int(kept[0] == 0) != layout.length - layout.n_visual:
        raise ValueError('a selector dropped a protected token')
