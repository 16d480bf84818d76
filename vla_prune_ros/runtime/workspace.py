# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every tensor that recorded stages read and write, at fixed addresses."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.runtime.pinned import Sender
from vla_prune_ros.vla.decoder import rope_table
from vla_prune_ros.vla.model import OpenVLAOFT
from vla_prune_ros.vla.processor import PixelScale
from vla_prune_ros.vla.selection import SlotCache, TokenLayout

_TEXTS = 64  # instructions whose embeddings are kept


class Workspace:
    """Buffers for sequences up to `capacity` tokens with a fixed number of cameras.

    Attributes:
        frames: policy images, uint8 [views, S, S, 3].
        proprio: normalised robot state, float32 [1, proprio_dim].
        visual: visual tokens [1, V, D].
        sequence: assembled sequence [1, capacity, D]; nothing but `assemble` writes it.
        rows: live rows that enter a stage, and filling, [1, capacity, D].
        out: rows that leave a stage [1, capacity, D].
        ids: absolute ids of `rows`, filling has that of the first token that is not there.
        everything: 0, 1, 2, ...
        rope: see `rope_table`, for every position and the filling.
    """

    def __init__(self, model: OpenVLAOFT, n_views: int, prompt_capacity: int) -> None:
        config, device, dtype = model.config, model.device, model.dtype
        size, width = config.image_size, config.llama.hidden_size
        self.model, self.n_views, self.prompt_capacity = model, n_views, prompt_capacity
        self.n_visual = n_views * config.patches_per_view
        self.capacity = self.layout(prompt_capacity).length
        self.frames = torch.zeros(n_views, size, size, 3, dtype=torch.uint8, device=device)
        self.proprio = torch.zeros(1, config.proprio_dim, device=device)
        self.visual = torch.zeros(1, self.n_visual, width, dtype=dtype, device=device)
        self.sequence, self.rows, self.out = (
            torch.zeros(1, self.capacity, width, dtype=dtype, device=device) for _ in range(3)
        )
        self.everything = torch.arange(self.capacity + 1, device=device)
        self.ids = self.everything[:-1].clone()
        self.rope = rope_table(
            self.everything, config.llama.head_dim, config.llama.rope_theta, dtype
        )
        self._scale = PixelScale(device)
        self._send_frames = Sender(self.frames.shape, torch.uint8, device)
        self._send_proprio = Sender(self.proprio.shape, torch.float32, device)
        self._texts: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._text: tuple[int, ...] | None = None

    def layout(self, prompt_length: int) -> TokenLayout:
        """Layout of a sequence with a prompt of this length."""
        config = self.model.config
        return TokenLayout(
            self.n_views, config.patches_per_view, prompt_length, config.n_placeholders
        )

    def load(self, frames: np.ndarray | Tensor, proprio: np.ndarray) -> None:
        """Send policy images and robot state on their way; returns before they have arrived."""
        if isinstance(frames, Tensor):
            self.frames.copy_(frames)
        else:
            self._send_frames.send(frames, self.frames)
        self._send_proprio.send(proprio[None], self.proprio)

    def set_text(self, ids: Tensor) -> None:
        """Put the prompt, the empty slots and EOS into the sequence; ids int64 [1, L], on the CPU.

        Embeddings are looked up once per instruction.
        """
        key = tuple(ids[0].tolist())
        if key == self._text:
            return
        if key not in self._texts:
            self._texts[key] = self._embed(ids)
            if len(self._texts) > _TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        text, first = self._texts[key], self.n_visual + 2
        self.sequence[:, :1] = text[:, :1]
        self.sequence[:, first : first + text.shape[1] - 1] = text[:, 1:]
        self._text = key

    def _embed(self, ids: Tensor) -> Tensor:
        """Embeddings of prompt, placeholders and EOS, [1, L + slots + 1, D]."""
        model, length, slots = self.model, ids.shape[1], self.model.config.n_placeholders
        text = torch.zeros(
            1, length + slots + 1, self.visual.shape[-1], dtype=model.dtype, device=model.device
        )
        embed = model.decoder.embed_tokens
        text[:, :length] = embed(ids.to(model.device))
        text[:, -1] = embed(torch.tensor([model.config.eos_id], device=model.device))
        return text

    @property
    def assembled(self) -> Tensor:
        """The part of `sequence` that `assemble` writes."""
        return self.sequence[:, 1 : self.n_visual + 2]

    def see(self) -> list[Tensor]:
        """Stage: policy images to visual tokens."""
        self.visual.copy_(self.model.encode_images(self._scale(self.frames)))
        return []

    def assemble(self) -> list[Tensor]:
        """Stage: visual tokens and robot state into the sequence."""
        model, last = self.model, self.n_visual + 1
        self.sequence[:, 1:last].copy_(self.visual)
        self.sequence[:, last].copy_(model.proprio_projector(self.proprio.to(model.dtype)))
        return []

    def compact(self, source: Tensor, ids: Tensor, kept: Tensor, rows: int, length: int) -> Tensor:
        """Move the kept rows to the front of `rows` and fill up with rows that nobody reads.

        Args:
            source: states of the live rows [1, >= m, D], another buffer than `rows`.
            ids: absolute ids of the live rows, int64 [m].
            kept: ids that stay, int64 [k].
            rows: rows of the next stage, at least k.
            length: of the complete sequence, which is the id of filling.

        Returns:
            The kept ids, a view of `ids`.
        """
        live = len(kept)
        at = torch.searchsorted(ids, kept)
        torch.index_select(source[0], 0, at, out=self.rows[0, :live])
        if kept.untyped_storage().data_ptr() == self.ids.untyped_storage().data_ptr():
            kept = kept.clone()
        self.ids[:live].copy_(kept)
        if rows > live:
            self.rows[0, live:rows].zero_()  # finite, as a weight of 0 does not hide a NaN
            self.ids[live:rows].fill_(length)
        return self.ids[:live]


class SlotSets:
    """Static buffers for the slot caches of selectors, which come and go with resets."""

    def __init__(self, limit: int = 4) -> None:
        self._sets: list[tuple[Callable[[], SlotCache | None], SlotCache]] = []
        self._limit = limit

    def adopt(self, cache: SlotCache) -> int:
        """Move a cache into static buffers, if it is not there already.

        Returns:
            Number of the set of buffers, or -1 if all are taken: the cache keeps its own.
        """
        for number, (owner, _) in enumerate(self._sets):
            if owner() is cache:
                return number
        number = next(
            (
                i
                for i, (owner, own) in enumerate(self._sets)
                if owner() is None and _like(own, cache)
            ),
            None,
        )
        if number is None:
            if len(self._sets) == self._limit:
                return -1
            number = len(self._sets)
            keys = cache.keys[0]
            sizes = (len(cache.keys), cache.length, *keys.shape[1:])
            self._sets.append((lambda: None, SlotCache(*sizes, keys.dtype, keys.device)))
        own = self._sets[number][1]
        if any(cache.filled):
            for mine, theirs in zip(
                [*own.keys, *own.values], [*cache.keys, *cache.values], strict=True
            ):
                mine.copy_(theirs)
        cache.keys, cache.values = own.keys, own.values
        self._sets[number] = (weakref.ref(cache), own)
        return number

    def used_bytes(self) -> int:
        """Memory of all sets."""
        return sum(
            tensor.numel() * tensor.element_size()
            for _, own in self._sets
            for tensor in (*own.keys, *own.values)
        )


def _like(a: SlotCache, b: SlotCache) -> bool:
    x, y = a.keys[0], b.keys[0]
    return (x.shape, x.dtype, x.device, len(a.keys)) == (y.shape, y.dtype, y.device, len(b.keys))
