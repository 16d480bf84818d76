# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every tensor that recorded stages read and write, at fixed addresses.

Rows are a capacity: behind the live ones comes filling to which nobody attends, so that few shapes
occur and the result does not change. The visual tokens and all the others have room of their own:
the former for one of the counts of `bucket_counts` where their number follows from the data, the
latter for a prompt of the greatest length of a class (`Workspace.prompt_classes`).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from vla_prune_ros.pruning.budget import bucket_step
from vla_prune_ros.runtime.pinned import Sender
from vla_prune_ros.vla.decoder import rope_table
from vla_prune_ros.vla.model import OFTNetwork
from vla_prune_ros.vla.operations import in_use
from vla_prune_ros.vla.processor import PixelScale
from vla_prune_ros.vla.rules import Note
from vla_prune_ros.vla.selection import ScoreRequest, SlotCache, TokenLayout
from vla_prune_ros.vla.side_product import Ids
from vla_prune_ros.vla.space import Live, Rows, Space, Stage, Wanted
from vla_prune_ros.vla.walk import Segment

TEXT_STEP = 32  # rows by which the room for what is not visual grows


def bucket_counts(layout: TokenLayout) -> list[int]:
    """Visual tokens of the buckets, largest first."""
    step = bucket_step(layout.n_visual)
    return sorted({layout.n_visual, *range(0, layout.n_visual, step)}, reverse=True)


class Workspace(Space):
    """A space for prompts up to a length and a fixed number of cameras.

    Attributes:
        frames: policy images, uint8 [views, S, S, 3].
        proprio: normalised robot state, float32 [1, proprio_dim], or None where none is used.
        modulation: of the towers (FiLM), see `VisionBackbone.modulation`, or None.
        capacity: rows of the longest sequence.
        prompt_capacity: tokens of the longest prompt.
    """

    joins = True

    def __init__(
        self, model: OFTNetwork, n_views: int, prompt_capacity: int, slots: StaticSlots
    ) -> None:
        config, device, dtype = model.config, model.device, model.dtype
        size, width = config.image_size, config.llama.hidden_size
        self.model, self.n_views = model, n_views
        self.n_visual = n_views * config.patches_per_view
        layout = self.layout(prompt_capacity)
        self.capacity = self._full(layout)
        self.prompt_capacity = prompt_capacity + self.capacity - layout.length
        self.frames = torch.zeros(n_views, size, size, 3, dtype=torch.uint8, device=device)
        self.proprio = self._send_proprio = None
        if config.use_proprio:
            self.proprio = torch.zeros(1, config.proprio_dim, device=device)
            self._send_proprio = Sender(self.proprio.shape, torch.float32, device)
        self.modulation = model.modulation(torch.zeros(1, 1, dtype=torch.long, device=device))
        sequence = torch.zeros(1, self.capacity, width, dtype=dtype, device=device)
        everything = torch.arange(self.capacity + 1, device=device)  # and the id of filling
        super().__init__(
            sequence,
            rope_table(everything, config.llama.head_dim, config.llama.rope_theta, dtype),
        )
        self.everything = everything
        self.cuts = {0: Live(everything, everything, self._count())}
        self._stay: dict[int, Tensor] = {}  # cut -> which rows of its source
        self._notes: dict[Note, Tensor] = {}
        self.static = {0: sequence}  # places that recordings read and write
        ranges = 2 * config.llama.n_layers  # of queries and of keys
        self._ranges = torch.zeros(ranges, 3, dtype=torch.long, device=device)
        self._send_ranges = Sender(self._ranges.shape, torch.long, device)
        self._slots, self.caches = slots, slots.caches
        self.scale = PixelScale(device)
        self._send_frames = Sender(self.frames.shape, torch.uint8, device)
        self._text: tuple[int, ...] | None = None

    def layout(self, prompt_length: int) -> TokenLayout:
        """Layout of a sequence with a prompt of this length."""
        return self.model.config.layout(self.n_views, prompt_length)

    def prompt_classes(self, shortest: int = 1) -> list[int]:
        """Longest prompt of every class, those of `shortest` tokens and more."""
        spare = self._full(self.layout(shortest)) - self.layout(shortest).length
        return [*range(shortest + spare, self.prompt_capacity + 1, TEXT_STEP)]

    def load(self, frames: np.ndarray | Tensor, proprio: np.ndarray | None) -> None:
        """Send policy images and robot state on their way; returns before they have arrived."""
        if isinstance(frames, Tensor):
            self.frames.copy_(frames)
        else:
            self._send_frames.send(frames, self.frames)
        if self._send_proprio is not None:
            self._send_proprio.send(proprio[None], self.proprio)

    def set_text(self, ids: Tensor) -> None:
        """Put the prompt, the empty slots and EOS into the sequence, if they are others.

        Args:
            ids: int64 [1, L], on the CPU.
        """
        key = tuple(ids[0].tolist())
        if key == self._text:
            return
        sequence, config = self.static[0], self.model.config
        closing = torch.tensor([[config.eos_id]])
        words = self.model.decoder.embed_tokens(torch.cat([ids, closing], 1).to(sequence.device))
        layout = self.layout(len(key))
        first, slots, end = layout.text.start, layout.placeholders.start, layout.eos
        if self.modulation is not None:  # depends on the text alone: computed once for each
            for own, new in zip(
                self.modulation, self.model.modulation(ids.to(sequence.device)), strict=True
            ):
                own.copy_(new)
        sequence[:, :1] = words[:, :1]
        sequence[:, first:slots] = words[:, 1:-1]
        sequence[:, slots:] = 0  # what fills up, too: finite, as a weight of 0 hides no NaN
        sequence[:, end] = words[:, -1]
        self.cuts[0].count.fill_(layout.length)
        self._text = key

    def cut(self, number: int, at: Tensor, ids: Tensor, count: int) -> None:
        """See `Space.cut`; here they are only marked, see `rows`."""
        self.stay(number).zero_().index_fill_(0, at, True)

    def stay(self, number: int) -> Tensor:
        """See `Space.stay`."""
        if number not in self._stay:
            everything = self.everything
            self.cuts[number] = Live(everything, torch.zeros_like(everything), self._count())
            self._stay[number] = torch.zeros_like(everything, dtype=torch.bool)
        return self._stay[number]

    def note(self, note: Note) -> Tensor:
        """See `Space.note`; what recordings know by its address stays, whatever comes later."""
        if note not in self._notes:
            device = self.everything.device
            self._notes[note] = torch.zeros(note.shape, dtype=note.dtype, device=device)
        self.notes[note.name] = self._notes[note]
        return self._notes[note]

    def rows(self, rows: Rows) -> Tensor:
        """See `Space.rows`; what a cut left moves to the front, behind it comes filling."""
        if not rows.picked:
            return super().rows(rows)
        source, own = self.states[rows.source][0], self.cuts[rows.cut]
        stay, ids = (t[: len(source)] for t in (self._stay[rows.cut], self.cuts[rows.cut - 1].ids))
        assert own.count is not None
        compact = in_use(source.device).compact
        return compact(stay, source, ids, own.ids[: rows.count], own.count, self.capacity)[None]

    def room(self, live: int, layout: TokenLayout, most: int, exact: bool) -> int:
        """See `Space.room`."""
        if not exact:
            most = min(n for n in bucket_counts(layout) if n >= most)
        return most + self._full(layout) - layout.n_visual

    def room_for(self, ids: range, layout: TokenLayout) -> int:
        """See `Space.room_for`; what holds tokens of the prompt grows with its class."""
        text = layout.text
        grows = ids.start < text.stop and ids.stop > text.start
        return len(ids) + (self._full(layout) - layout.length if grows else 0)

    def ask(self, requests: Mapping[int, ScoreRequest], layout: TokenLayout) -> dict[int, Wanted]:
        """See `Space.ask`."""
        before, wanted = self._asked, super().ask(requests, layout)
        if self._asked != before:
            ranges = np.zeros(self._ranges.shape, np.int64)
            for row, ids in zip(ranges, self._asked, strict=False):
                row[:] = ids.start, ids.step, len(ids)
            self._send_ranges.send(ranges, self._ranges)
        return wanted

    def asked(self, number: int, count: int) -> Ids:
        """See `Space.asked`."""
        start, step, n = self._ranges[number]
        place = self.everything[:count]
        return Ids(start + step * place, place < n)

    def adopt(self, cache: SlotCache) -> int:
        """See `Space.adopt`."""
        return self._slots.adopt(cache, self.capacity + 1)

    def place(self, number: int) -> Tensor:
        """Where a recording leaves the states for what follows it."""
        if number not in self.static:
            self.static[number] = torch.zeros_like(self.static[0])
        return self.static[number]

    def _full(self, layout: TokenLayout) -> int:
        """Rows of a sequence without cuts."""
        others = layout.length - layout.n_visual
        return layout.n_visual + -(-others // TEXT_STEP) * TEXT_STEP

    def _count(self) -> Tensor:
        return torch.zeros(1, dtype=torch.int32, device=self.model.device)


@dataclass(frozen=True)
class See(Stage):
    """Policy images and robot state into the sequence, where the text is already."""

    name = 'vision'

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """See `Stage.work`."""
        pixels = space.scale(space.frames)
        visual, *state = self.written(space)
        visual.copy_(network.encode_images(pixels, space.modulation))
        for row in state:
            row.copy_(network.proprio_projector(space.proprio.to(network.dtype)))
        return []

    def written(self, space: Space) -> list[Tensor]:
        """See `Stage.written`."""
        last, sequence = space.n_visual + 1, space.static[0]
        state = [] if space.proprio is None else [sequence[:, last]]
        return [sequence[:, 1:last], *state]


@dataclass(frozen=True)
class Joined(Stage):
    """Stages that are run, and recorded, as one.

    States between them stay where they are made; only those behind the last one have a place. What
    goes in is not changed, so the work may be repeated.
    """

    stages: tuple[Stage, ...]

    @property
    def last(self) -> Rows | None:
        """Where the states are behind the last segment; None without one."""
        segments = [stage for stage in self.stages if isinstance(stage, Segment)]
        return segments[-1].rows.after if segments else None

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """See `Stage.work`."""
        inner = copy.copy(space)
        inner.states, inner.scores = {**space.static}, {}
        results = [result for stage in self.stages for result in stage.work(network, inner)]
        if (rows := self.last) is not None:
            space.place(rows.source)[:, : rows.count].copy_(inner.states[rows.source])
        return results

    def written(self, space: Space) -> list[Tensor]:
        """See `Stage.written`."""
        found = [tensor for stage in self.stages for tensor in stage.written(space)]
        if (rows := self.last) is not None:
            found.append(space.place(rows.source)[:, : rows.count])
        return found


class StaticSlots:
    """Static buffers for the slot caches of selectors, which come and go with resets.

    Attributes:
        caches: buffers by number; a number never comes back with other buffers.
    """

    def __init__(self, limit: int = 4) -> None:
        self.caches: dict[int, SlotCache] = {}
        self._owners: dict[int, Callable[[], SlotCache | None]] = {}
        self._numbers, self._limit = count(), limit

    def adopt(self, cache: SlotCache, slots: int) -> int:
        """Move a cache into static buffers, if it is not there already; returns their number.

        Buffers without an owner are taken over, or go when there are more than the limit.

        Args:
            cache: of a selector.
            slots: of the buffers, at least its length.
        """
        free = []
        for number, owner in self._owners.items():
            if owner() is cache:
                return number
            if owner() is None:
                free.append(number)
        empty = cache.empty_like(slots)
        number = next((i for i in free if _like(self.caches[i], empty)), None)
        if number is None:
            for old in free[: max(0, len(self.caches) + 1 - self._limit)]:
                del self.caches[old], self._owners[old]
            number = next(self._numbers)
            self.caches[number] = empty
        own = self.caches[number]
        if any(cache.filled):
            for mine, theirs in zip(
                [*own.keys, *own.values], [*cache.keys, *cache.values], strict=True
            ):
                mine[: cache.length].copy_(theirs[: cache.length])
        cache.keys, cache.values = own.keys, own.values
        self._owners[number] = weakref.ref(cache)
        return number

    def used_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(
            tensor.numel() * tensor.element_size()
            for own in self.caches.values()
            for tensor in (*own.keys, *own.values)
        )


def _like(a: SlotCache, b: SlotCache) -> bool:
    x, y = a.keys[0], b.keys[0]
    return (x.shape, x.dtype, x.device, len(a.keys)) == (y.shape, y.dtype, y.device, len(b.keys))
