# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stores of demonstrations as training batches.

A batch is a pure function of step, seed and its place in the step, so that neither an interruption
nor the number of processes, nor gradient accumulation, changes what is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.datasets import Samples, Store
from vla_prune_ros.training.augment import SIDE, draw
from vla_prune_ros.training.recipe import Recipe
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.normalisation import Normaliser
from vla_prune_ros.vla.pictures import decode_jpeg, resize
from vla_prune_ros.vla.tokenizer import PromptTokenizer


@dataclass
class Batch:
    """One training batch, or a part of it.

    Attributes:
        images: uint8 [B, V, S, S, 3], before crop and colours.
        draws: float32 [B, V, 6], see `augment.draw`.
        ids: int64 [B, L], prompts, padded at the right.
        mask: bool [B, L], False on padding.
        proprio: float32 [B, P] normalised; [B, 0] without.
        actions: float32 [B, K, A] normalised.
        seed: int64 [B], of what else is drawn for a sample.
        extras: further numbers of the data set [B, ...].
    """

    images: Tensor
    draws: Tensor
    ids: Tensor
    mask: Tensor
    proprio: Tensor
    actions: Tensor
    seed: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self)[:-1]}
        return Batch(**tensors, extras={k: v.to(device) for k, v in self.extras.items()})


class Batches:
    """All samples of some stores, normalised, as a stream without end."""

    def __init__(
        self,
        stores: Sequence[Store],
        config: OpenVLAConfig,
        statistics: Sequence[Mapping[str, Any]],
        tokenizer: PromptTokenizer,
        recipe: Recipe,
        seed: int = 0,
        held_out: float = 0.0,
        threads: int = 1,
    ) -> None:
        """Take all samples but those of held-out episodes.

        Args:
            stores: of the data sets; each counts by its number of samples.
            config: of the model.
            statistics: to normalise by, one for each store.
            tokenizer: of the model.
            recipe: crop, colours, labels and batch size.
            seed: of order and changes.
            held_out: share of the episodes that are left for `validation`, by their names.
            threads: that decode pictures.

        Raises:
            ValueError: the data cannot feed this model.
        """
        self._config, self._tokenizer, self._recipe, self._seed = config, tokenizer, recipe, seed
        self._held_out, self._stores = held_out, list(stores)
        self._prompts: dict[str, list[int]] = {}
        for store in stores:
            self._check(store)
        self._normalisers = [
            Normaliser(entry, config.action_dim, config.proprio_dim, config.normalisation)
            for entry in statistics
        ]
        parts = [self._split(store, False) for store in stores]
        self._samples = [samples for samples in parts if samples is not None]
        for store, part in zip(stores, parts, strict=True):
            if part is None:
                store.samples(config.chunk_len)  # says if it has none at all
                raise ValueError(
                    f'{store.path}: every episode that is as long as a chunk would be held out'
                )
        self._ends = np.cumsum([len(samples) for samples in self._samples])
        self._threads = ThreadPoolExecutor(threads, 'decode')

    def __len__(self) -> int:
        """Samples that are trained on."""
        return int(self._ends[-1])

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """Part `part` of the batch of a step; all parts have the same size.

        Every pass over the data is a new permutation; the next begins where it ends.
        """
        whole, views = self._recipe.batch_size, len(self._stores[0].cameras)
        size = whole // parts
        mine = slice(part * size, (part + 1) * size)
        passes, places = np.divmod(np.arange(step * whole, (step + 1) * whole)[mine], len(self))
        index = np.array(
            [_order(len(self), self._seed, int(n))[k] for n, k in zip(passes, places, strict=True)]
        )
        generator = torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + step)
        draws = draw(whole, views, generator, self._recipe.crop, self._recipe.colour)
        seeds = torch.randint(2**62, (whole,), generator=generator)
        return self._batch(self._samples, index, self._ends, draws[mine], seeds[mine])

    def validation(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` of the held-out samples, with the policy's own crop."""
        parts = [self._split(store, True) for store in self._stores]
        for number, samples in enumerate(parts):
            for start in range(0, 0 if samples is None else len(samples), size):
                assert samples is not None
                index = np.arange(start, min(start + size, len(samples)))
                draws = torch.tensor([(1 - SIDE) / 2] * 2 + [0.0, 1.0, 1.0, 0.0])
                views = len(self._stores[number].cameras)
                ends = np.cumsum([0 if k != number else len(samples) for k in range(len(parts))])
                shape = (len(index), views, 6)
                seeds = torch.from_numpy(index)
                yield self._batch(parts, index, ends, draws.expand(shape), seeds)

    def _check(self, store: Store) -> None:
        config, path = self._config, store.path
        if store.actions.shape[1] != config.action_dim:
            raise ValueError(
                f'{path}: actions have {store.actions.shape[1]} numbers, those of the model'
                f' {config.action_dim}'
            )
        width = 0 if store.proprio is None else store.proprio.shape[1]
        if config.use_proprio and width != config.proprio_dim:
            raise ValueError(
                f'{path}: the robot state has {width} numbers, that of the model'
                f' {config.proprio_dim}; name another with --state'
            )
        if len(store.cameras) != config.n_views:
            raise ValueError(
                f'{path} has {len(store.cameras)} camera(s), {", ".join(store.cameras)}, the model'
                f' takes {config.n_views}, {", ".join(config.cameras)}; name them with --cameras'
            )
        if store.cameras != self._stores[0].cameras:
            raise ValueError(
                f'{path} has the cameras {", ".join(store.cameras)}, {self._stores[0].path}'
                f' {", ".join(self._stores[0].cameras)}; name the same with --cameras'
            )

    def _split(self, store: Store, held_out: bool) -> Samples | None:
        """Samples of one part of the episodes; None if no chunk is in them."""
        chosen = [
            number
            for number, entry in enumerate(store.episodes)
            if (_share(f'{store.name}/{entry["id"]}') < self._held_out) is held_out
        ]
        chunk = self._config.chunk_len
        chosen = [number for number in chosen if store.has_chunk(number, chunk)]
        return store.samples(chunk, chosen) if chosen else None

    def _batch(
        self,
        samples: Sequence[Samples | None],
        index: np.ndarray,
        ends: np.ndarray,
        draws: Tensor,
        seeds: Tensor,
    ) -> Batch:
        which = np.searchsorted(ends, index, side='right')
        starts = np.concatenate([[0], ends[:-1]])
        rows = [self._row(int(s), samples[s], int(i - starts[s])) for s, i in zip(which, index)]  # noqa: B905
        pictures = [p for row in rows for p in row['pictures']]
        size, views = self._config.image_size, len(rows[0]['pictures'])
        images = np.stack(list(self._threads.map(lambda p: _frame(*p, size), pictures)))
        prompts = [row['prompt'] for row in rows]
        longest = max(map(len, prompts))
        ids = [p + [self._config.pad_id] * (longest - len(p)) for p in prompts]
        mask = [[True] * len(p) + [False] * (longest - len(p)) for p in prompts]
        stacked = {
            name: torch.from_numpy(np.stack([row[name] for row in rows]))
            for name in set.intersection(*map(set, rows)) - {'pictures', 'prompt'}
        }
        return Batch(
            images=torch.from_numpy(images).unflatten(0, (-1, views)),
            draws=draws,
            ids=torch.tensor(ids),
            mask=torch.tensor(mask),
            proprio=stacked.pop('proprio'),
            actions=stacked.pop('actions'),
            seed=seeds,
            extras=stacked,
        )

    def _prompt(self, text: str) -> list[int]:
        if text not in self._prompts:
            self._prompts[text] = self._tokenizer.prompt_ids(text)
        return self._prompts[text]

    def _row(self, number: int, samples: Samples | None, index: int) -> dict[str, Any]:
        assert samples is not None
        store, normaliser = self._stores[number], self._normalisers[number]
        frame = int(samples.frame[index])
        actions = normaliser.normalise_actions(samples.actions(np.array([index]))[0])
        if self._recipe.clip_labels:
            actions = np.where(normaliser.action.mask, actions.clip(-1, 1), actions)
        state = np.zeros(0)
        if self._config.use_proprio and store.proprio is not None:
            state = normaliser.normalise_proprio(store.proprio[frame])
        text = store.instructions[samples.instruction[index]]
        row: dict[str, Any] = {
            'pictures': [(store, frame, camera) for camera in range(len(store.cameras))],
            'prompt': self._prompt(text),
            'proprio': state.astype(np.float32),
            'actions': actions.astype(np.float32),
        }
        row |= {name: values[frame] for name, values in store.extras.items()}
        labels = store.label_extras.items()
        return row | {name: values[samples.at[index]] for name, values in labels}


def _share(name: str) -> float:
    """A number in 0..1 that belongs to a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], 'big') / 2**48


@lru_cache(maxsize=2)
def _order(count: int, seed: int, number: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randperm(count, generator=generator).numpy()


def _frame(store: Store, frame: int, camera: int, size: int) -> np.ndarray:
    """A picture as the network's size wants it, uint8 [size, size, 3]."""
    picture = store.picture(frame, camera)
    return resize(decode_jpeg(picture) if isinstance(picture, bytes) else picture, size)
