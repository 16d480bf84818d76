# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model in stages of fixed shape, each recorded once and replayed: vision, assembly, the
decoder between two cut points, read-out and head.

Selectors run between the stages and are the same as in the plain path. After a cut the rows are
filled up to a bucket with rows that no one attends to, so that few shapes occur and the result
does not change. Whatever cannot be recorded runs eagerly in the same buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.runtime.capture import GraphBackend
from vla_prune_ros.runtime.stages import Stages
from vla_prune_ros.runtime.workspace import SlotSets, Workspace
from vla_prune_ros.vla.decoder import check_kept, side_product
from vla_prune_ros.vla.model import OFTOutput, OpenVLAOFT
from vla_prune_ros.vla.selection import (
    LayerScores,
    PassPlan,
    SlotCache,
    TokenLayout,
    TokenSelector,
    TokenState,
)

_BUCKETS = 16  # sizes of a bucket: sixteenths of all visual tokens


def bucket_counts(layout: TokenLayout) -> list[int]:
    """Visual tokens of the buckets, largest first."""
    step = max(1, layout.n_visual // _BUCKETS)
    return sorted({layout.n_visual, *range(0, layout.n_visual, step)}, reverse=True)


@dataclass(frozen=True)
class _Segment:
    """Everything that Python decides about the layers between two cut points."""

    first: int
    last: int
    rows: int
    length: int
    whole: bool  # reads the assembled sequence, else the compacted rows
    filled: bool
    skipped: tuple[int, ...]
    scores: tuple[tuple[int, range, range, bool, bool], ...]
    slots: int = -2  # set of static slots; -2: no cache


class StaticModel:
    """Runs an OpenVLA-OFT network as recorded stages; batch 1."""

    def __init__(
        self,
        model: OpenVLAOFT,
        backend: Callable[[], GraphBackend],
        max_graphs: int = 512,
        max_bytes: int = 2 << 30,
    ) -> None:
        """Prepare; the buffers are made at the first pass.

        Args:
            model: in its final place and type.
            backend: makes an empty backend.
            max_graphs: most stages kept; the least recently used one goes.
            max_bytes: memory of recordings at which all of them go.
        """
        self.model = model
        self.stages = Stages(backend, max_graphs, max_bytes)
        self._space: Workspace | None = None
        self._slots = SlotSets()

    def stats(self) -> dict[str, int | str]:
        """Counts and memory of the recordings."""
        stages = self.stages
        return {
            'graphs': len(stages),
            'captures': stages.captures,
            'replays': stages.replays,
            'fallbacks': stages.fallbacks,
            'evicted': stages.evicted,
            'last_fallback': stages.last_fallback,
            'graph_bytes': stages.used_bytes + self._slots.used_bytes(),
            'graph_limit_bytes': stages.max_bytes,
        }

    @torch.inference_mode()
    def __call__(
        self,
        frames: np.ndarray | Tensor,
        input_ids: Tensor,
        proprio: np.ndarray,
        selector: TokenSelector | None = None,
        readout_start: int | None = None,
        mark: Callable[[str], None] = lambda stage: None,
    ) -> OFTOutput:
        """Run a pass without waiting for the device, except where a selector must know a count.

        Args:
            frames: policy images uint8 [views, S, S, 3], of numpy or on the device.
            input_ids: int64 [1, L], on the CPU.
            proprio: normalised state [proprio_dim].
            selector: see `OpenVLAOFT.forward`.
            readout_start: see `OpenVLAOFT.read_out`.
            mark: see `OpenVLAOFT.forward`.

        Returns:
            Views of static buffers: valid until the next pass.
        """
        space = self._workspace(len(frames), input_ids.shape[1])
        layout = space.layout(input_ids.shape[1])
        self.stages.said = ''
        space.load(frames, proprio)
        space.set_text(input_ids)
        self.stages.run(('vision', space.n_views), space.see, [space.visual])
        mark('vision')
        self.stages.run(('assemble', space.n_views), space.assemble, [space.assembled])
        mark('assemble')
        decoding = _Decoding(self, space, layout, selector)
        decoding.run()
        mark('decoder')
        actions, readout = decoding.act(readout_start)
        mark('head')
        entered = decoding.entered
        return OFTOutput(
            actions=actions,
            readout=readout,
            embeddings=space.sequence[:, : layout.length],
            kept=entered[1 : 1 + len(entered) - (layout.length - layout.n_visual)],
            position_ids=decoding.ids.clone(),
            layout=layout,
        )

    def _workspace(self, n_views: int, prompt_length: int) -> Workspace:
        space = self._space
        fits = space is not None and space.n_views == n_views
        if not fits or prompt_length > space.prompt_capacity:
            if space is not None:
                self.stages.clear()
            capacity = 64
            while capacity < prompt_length:
                capacity *= 2
            space = self._space = Workspace(self.model, n_views, capacity)
        return space


class _Decoding:
    """One pass through the decoder: segments, and the selector's cuts between them."""

    def __init__(
        self,
        owner: StaticModel,
        space: Workspace,
        layout: TokenLayout,
        selector: TokenSelector | None,
    ) -> None:
        self.owner, self.space, self.layout, self.selector = owner, space, layout, selector
        self.decoder, self.n = owner.model.decoder, layout.length
        self.ids = space.everything[: self.n]
        self.entered = self.ids
        self.live = self.rows = self.n
        self.source = space.sequence  # where the live rows are
        self.scores: dict[int, LayerScores] = {}
        self.plan = PassPlan()
        self.cache: SlotCache | None = None
        self.slots, self.refuse, self.masked = -2, '', False

    def run(self) -> None:
        """Run all layers."""
        depth = len(self.decoder.layers)
        if self.selector is not None:
            self.plan = self.selector.begin(self.layout, self.space.sequence[0, : self.n])
            self.decoder.check_plan(self.plan, self.layout)
            self._take_over_cache()
            if any(
                isinstance(r, Tensor)
                for s in self.plan.scores.values()
                for r in (s.rows, s.columns)
            ):
                self.refuse = 'scores of rows that are not a range'
        position = 0
        for bound in sorted({*self.plan.points, depth}):
            ahead = self.plan.scores.get(bound)
            if bound > position or (bound == 0 and ahead is not None and ahead.ahead):
                self._segment(position, bound)
                position = bound
            if bound in self.plan.points:
                self._cut(bound)
        if self.selector is not None:
            state = TokenState(self.layout, self.ids, self._states(), self.scores)
            self.selector.end(state)

    def act(self, readout_start: int | None) -> list[Tensor]:
        """Read out and regress the actions: [B, chunk_len, action_dim], [B, slots, D]."""
        model, space, n = self.owner.model, self.space, self.n
        slots = model.config.n_placeholders
        start = -(slots + 2) if readout_start is None else readout_start
        if not -self.live <= start <= -slots:
            raise ValueError(f'readout_start {start} is not within {-self.live}..{-slots}')
        source, rows, live = self.source, self.rows, self.live
        ids = self._buffer_ids()
        wanted = space.everything[n + start : n + start + slots]

        def work() -> list[Tensor]:
            at = torch.searchsorted(ids, wanted)
            states = model.decoder.norm(source[:, at])
            return [model.action_head(states), states]

        def by_rows() -> list[Tensor]:
            states = model.read_out(source[:, :live], start)
            return [model.action_head(states), states]

        if n + start < self.layout.proprio:
            return self.owner.stages.run(None, by_rows, refuse='read-out of visual rows')
        key = ('head', self._name(source), rows, n, start)
        return self.owner.stages.run(key, work)

    def _states(self) -> Tensor:
        return self.source[0, : self.live]

    def _name(self, buffer: Tensor) -> str:
        space = self.space
        names = {'sequence': space.sequence, 'rows': space.rows, 'out': space.out}
        return next(name for name, tensor in names.items() if tensor is buffer)

    def _buffer_ids(self) -> Tensor:
        """Ids of all rows, filling included, at a fixed address for each shape."""
        whole = self.ids.data_ptr() == self.space.everything.data_ptr()
        return (self.space.everything if whole else self.space.ids)[: self.rows]

    def _take_over_cache(self) -> None:
        self.cache = self.plan.cache
        if self.cache is not None:
            self.slots = self.owner._slots.adopt(self.cache)
            if self.slots == -1:
                self.refuse = 'more slot caches than static buffers'

    def _cut(self, point: int) -> None:
        state = TokenState(self.layout, self.ids, self._states(), self.scores)
        kept = self.selector.select(point, state)
        space, plan = self.space, self.plan
        if kept is None:
            return
        check_kept(kept, self.ids, self.layout)
        source = self.source
        if source is space.rows:  # two cuts without a layer between them
            source = space.out
            source[:, : self.live].copy_(space.rows[:, : self.live])
        self.live, self.rows = len(kept), self._bucket(len(kept))
        # Where counts vary, a bucket that happens to be full is treated like the others.
        varies = bool(plan.bucket) or not plan.repeats
        self.masked = self.live < self.rows or (varies and self.rows < self.n)
        self.ids = space.compact(source, self.ids, kept, self.rows, self.n)
        self.source = space.rows

    def _bucket(self, live: int) -> int:
        """Rows of the stages behind a cut that left so many live."""
        if self.plan.bucket:
            return self.plan.rows(live, self.layout)
        if self.plan.repeats:
            return live
        others = self.n - self.layout.n_visual
        return others + min(n for n in bucket_counts(self.layout) if n >= live - others)

    def _segment(self, first: int, last: int) -> None:
        space, plan = self.space, self.plan
        if self.source is space.out:  # no cut in front
            space.rows[:, : self.rows].copy_(space.out[:, : self.rows])
            if self.ids.data_ptr() == space.everything.data_ptr():
                space.ids[: self.rows].copy_(self.ids)
                self.ids = space.ids[: self.rows]
            self.source = space.rows
        layers = [i for i in range(first, last) if i not in plan.skip_layers]
        if self.cache is not None:
            for layer in layers:
                self.cache.book(layer, self.live)
        requests = [
            (layer, s.rows, s.columns, s.entropy, s.ahead)
            for layer, s in sorted(plan.scores.items())
            if (first < layer <= last or layer == first == 0 if s.ahead else layer in layers)
            and layer not in self.scores
        ]
        segment = _Segment(
            first,
            last,
            self.rows,
            self.n,
            self.source is space.sequence,
            self.masked,
            tuple(sorted(plan.skip_layers)),
            tuple(requests) if not self.refuse else (),
            self.slots,
        )
        wanted = [layer for layer, *_ in requests]

        def work() -> list[Tensor]:
            return self._layers(segment, wanted)

        flat = iter(self.owner.stages.run(segment, work, [space.out[:, : self.rows]], self.refuse))
        for layer in wanted:
            fields = [next(flat) for _ in range(5)]
            entropy = next(flat) if plan.scores[layer].entropy else None
            self.scores[layer] = LayerScores(*fields, entropy)
        if last == len(self.decoder.layers):
            self.entered = self.ids.clone()
        self.source = space.out

    def _layers(self, segment: _Segment, wanted: list[int]) -> list[Tensor]:
        """Stage: the layers of a segment, from `sequence` or `rows` to `out`."""
        space, n, plan = self.space, segment.length, self.plan
        everything = space.everything[:n]
        if segment.whole:
            x, ids, rope = space.sequence[:, :n], everything, space.rope[..., :n, :]
        else:
            x, ids = space.rows[:, : segment.rows], space.ids[: segment.rows]
            rope = space.rope[..., ids, :]
        there = ids < n if segment.filled else None
        mask = None if there is None or self.cache is not None else there[None, None, None]
        scores: dict[int, LayerScores] = {}
        for index in range(segment.first, segment.last + 1):
            request = plan.scores.get(index) if index in wanted else None
            if request is not None and request.ahead:
                q, k, _ = self.decoder.layers[index].qkv(x, rope)
                scores[index] = side_product(q[0], k[0], request, ids, ids, there)
            if index == segment.last or index in plan.skip_layers:
                continue
            layer = self.decoder.layers[index]
            q, k, v = layer.qkv(x, rope)
            key_ids, shown = ids, there
            if self.cache is not None:
                k, v = self.cache.write(index, ids, k, v)
                key_ids, shown = everything, None
            if request is not None and not request.ahead:
                scores[index] = side_product(q[0], k[0], request, ids, key_ids, shown)
            x = layer.finish(x, q, k, v, mask)
        space.out[:, : segment.rows].copy_(x)
        flat = []
        for layer in wanted:
            s = scores[layer]
            flat += [s.probs, s.rows, s.columns, s.row_present, s.column_present]
            flat += [] if s.entropy is None else [s.entropy]
        return flat
