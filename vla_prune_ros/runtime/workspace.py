# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every tensor that recorded stages read and write, at fixed addresses.

Where counts vary, the rows are filled up to the next sixteenth of all visual tokens with rows to
which nobody attends, so that few shapes occur and the result does not change.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from vla_prune_ros.pruning.budget import bucket_step
from vla_prune_ros.runtime.pinned import Sender
from vla_prune_ros.vla.decoder import rope_table
from vla_prune_ros.vla.model import OFTNetwork
from vla_prune_ros.vla.processor import PixelScale
from vla_prune_ros.vla.selection import SlotCache, TokenLayout
from vla_prune_ros.vla.walk import Rows, Space, Stage


def bucket_counts(layout: TokenLayout) -> list[int]:
    """Visual tokens of the buckets, largest first."""
    step = bucket_step(layout.n_visual)
    return sorted({layout.n_visual, *range(0, layout.n_visual, step)}, reverse=True)


class Workspace(Space):
    """A space for sequences up to `capacity` tokens with a fixed number of cameras.

    Attributes:
        frames: policy images, uint8 [views, S, S, 3].
        proprio: normalised robot state, float32 [1, proprio_dim], or None where none is used.
        modulation: of the towers (FiLM), see `VisionBackbone.modulation`, or None.
        visual: visual tokens [1, V, D].
    """

    def __init__(
        self, model: OFTNetwork, n_views: int, prompt_capacity: int, slots: StaticSlots
    ) -> None:
        config, device, dtype = model.config, model.device, model.dtype
        size, width = config.image_size, config.llama.hidden_size
        self.model, self.n_views, self.prompt_capacity = model, n_views, prompt_capacity
        self.n_visual = n_views * config.patches_per_view
        self.capacity = self.layout(prompt_capacity).length
        self.frames = torch.zeros(n_views, size, size, 3, dtype=torch.uint8, device=device)
        self.proprio = self._send_proprio = None
        if config.use_proprio:
            self.proprio = torch.zeros(1, config.proprio_dim, device=device)
            self._send_proprio = Sender(self.proprio.shape, torch.float32, device)
        self.modulation = model.modulation(torch.zeros(1, 1, dtype=torch.long, device=device))
        self.visual = torch.zeros(1, self.n_visual, width, dtype=dtype, device=device)
        sequence = torch.zeros(1, self.capacity, width, dtype=dtype, device=device)
        everything = torch.arange(self.capacity + 1, device=device)  # and the id of filling
        super().__init__(
            sequence,
            rope_table(everything, config.llama.head_dim, config.llama.rope_theta, dtype),
        )
        self.states = [sequence, torch.zeros_like(sequence), torch.zeros_like(sequence)]
        self.at, self.ids = torch.zeros_like(self.everything), torch.zeros_like(self.everything)
        self.live = torch.zeros(1, dtype=torch.int32, device=device)
        self._slots, self.caches = slots, slots.caches
        self.scale = PixelScale(device)
        self._send_frames = Sender(self.frames.shape, torch.uint8, device)
        self._text: tuple[int, ...] | None = None

    def layout(self, prompt_length: int) -> TokenLayout:
        """Layout of a sequence with a prompt of this length."""
        return self.model.config.layout(self.n_views, prompt_length)

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
        sequence, config = self.states[0], self.model.config
        closing = torch.tensor([[config.eos_id]])
        words = self.model.decoder.embed_tokens(torch.cat([ids, closing], 1).to(sequence.device))
        text = self.layout(len(key)).text
        first, slots = text.start, text.stop
        end = slots + config.n_placeholders
        if self.modulation is not None:  # depends on the text alone: computed once for each
            for own, new in zip(
                self.modulation, self.model.modulation(ids.to(sequence.device)), strict=True
            ):
                own.copy_(new)
        sequence[:, :1] = words[:, :1]
        sequence[:, first:slots] = words[:, 1:-1]
        sequence[:, slots:end] = 0
        sequence[:, end] = words[:, -1]
        self._text = key

    def put(self, place: int, x: Tensor) -> None:
        """See `Space.put`."""
        self.states[place][:, : x.shape[1]].copy_(x)

    def cut(self, at: Tensor, ids: Tensor, rows: Rows) -> None:
        """See `Space.cut`; behind the live rows comes filling."""
        live = len(ids)
        self.live.fill_(live)
        self.at[:live].copy_(at)
        self.ids[:live].copy_(ids)
        self.at[live : rows.count].zero_()  # any row; finite, as a weight of 0 hides no NaN
        self.ids[live : rows.count].fill_(rows.length)

    def room(self, live: int, layout: TokenLayout) -> int:
        """See `Space.room`: the rows of the smallest bucket that holds them."""
        others = layout.length - layout.n_visual
        return others + min(n for n in bucket_counts(layout) if n >= live - others)

    def adopt(self, cache: SlotCache) -> int:
        """See `Space.adopt`."""
        return self._slots.adopt(cache)


@dataclass(frozen=True)
class See(Stage):
    """Policy images to visual tokens."""

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """See `Stage.work`."""
        pixels = space.scale(space.frames)
        space.visual.copy_(network.encode_images(pixels, space.modulation))
        return []

    def written(self, space: Space) -> list[Tensor]:
        """See `Stage.written`."""
        return [space.visual]


@dataclass(frozen=True)
class Assemble(Stage):
    """Visual tokens and robot state into the sequence, where the text is already."""

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """See `Stage.work`."""
        visual, *state = self.written(space)
        visual.copy_(space.visual)
        for row in state:
            row.copy_(network.proprio_projector(space.proprio.to(network.dtype)))
        return []

    def written(self, space: Space) -> list[Tensor]:
        """See `Stage.written`."""
        last, sequence = space.n_visual + 1, space.states[0]
        state = [] if space.proprio is None else [sequence[:, last]]
        return [sequence[:, 1:last], *state]


class StaticSlots:
    """Static buffers for the slot caches of selectors, which come and go with resets.

    Attributes:
        caches: buffers by number; a number never comes back with other buffers.
    """

    def __init__(self, limit: int = 4) -> None:
        self.caches: dict[int, SlotCache] = {}
        self._owners: dict[int, Callable[[], SlotCache | None]] = {}
        self._numbers, self._limit = count(), limit

    def adopt(self, cache: SlotCache) -> int:
        """Move a cache into static buffers, if it is not there already; returns their number.

        Buffers without an owner are taken over, or go when there are more than the limit.
        """
        free = []
        for number, owner in self._owners.items():
            if owner() is cache:
                return number
            if owner() is None:
                free.append(number)
        number = next((i for i in free if _like(self.caches[i], cache)), None)
        if number is None:
            for old in free[: max(0, len(self.caches) + 1 - self._limit)]:
                del self.caches[old], self._owners[old]
            number = next(self._numbers)
            self.caches[number] = cache.empty_like()
        own = self.caches[number]
        if any(cache.filled):
            for mine, theirs in zip(
                [*own.keys, *own.values], [*cache.keys, *cache.values], strict=True
            ):
                mine.copy_(theirs)
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
