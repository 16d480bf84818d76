# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded episodes as random training batches, with OpenVLA's random crop."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_CROP_SIDE = math.sqrt(0.9)  # training crops keep 90 % of the area, as the centre crop does
_OF_A_FRAME = ('proprio', 'block_pixels', 'plate_pixels')
_OF_A_LABEL = ('task', 'actions', 'relative')


@dataclass
class Batch:
    """One training batch.

    images: float32 [B, 2, 3, S, S] in 0..1, randomly cropped; proprio: float64 [B, 8] raw;
    actions: float32 [B, 8, 7] raw; task: int64 [B]; object_pixels: float32 [B, 2, 5, 2] (x, y
    in the cropped image; four blocks in the order of COLOURS, then the plate; NaN out of view);
    relative: float32 [B, 6] m.
    """

    images: Tensor
    proprio: Tensor
    actions: Tensor
    task: Tensor
    object_pixels: Tensor
    relative: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class DemonstrationSet:
    """All samples of some episode files: one per frame and label.

    The frames are unpacked once into the file `cache` and mapped into memory, so that several
    training processes share one copy.
    """

    def __init__(self, files: Iterable[Path], cache: Path) -> None:
        files = sorted(files)
        if not files:
            raise ValueError('no demonstration files were given')
        columns: dict[str, list[np.ndarray]] = {}
        counts = []
        for file in files:
            with np.load(file) as data:
                counts.append(len(data['proprio']))
                labels = data['task'].shape[1]
                for name in _OF_A_FRAME:
                    columns.setdefault(name, []).append(data[name].repeat(labels, axis=0))
                for name in _OF_A_LABEL:
                    value = data[name]
                    columns.setdefault(name, []).append(value.reshape(-1, *value.shape[2:]))
                columns.setdefault('frame', []).append(
                    np.arange(counts[-1]).repeat(labels) + sum(counts[:-1])
                )
        self._columns = {k: torch.from_numpy(np.concatenate(v)) for k, v in columns.items()}
        self._images = _frame_cache(files, counts, cache)

    def __len__(self) -> int:
        return len(self._columns['task'])

    @property
    def image_size(self) -> int:
        """Pixels along one side of a frame."""
        return self._images.shape[2]

    @property
    def actions(self) -> np.ndarray:
        """Every action of every chunk, float32 [N * 8, 7]."""
        return self._columns['actions'].reshape(-1, 7).numpy()

    @property
    def proprio(self) -> np.ndarray:
        """Robot states, float64 [N, 8]."""
        return self._columns['proprio'].numpy()

    def batch(self, step: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Batch `step` of worker `rank`; a pure function of its arguments.

        Every pass over the set is a new permutation, shared out between the workers, so that an
        interrupted run that goes on sees what an uninterrupted one would have seen.
        """
        together = batch_size * ranks
        per_epoch = max(1, len(self) // together)
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self), generator=generator)
        start = place * together + rank * batch_size
        generator.manual_seed(((seed + 1) * 1_000_003 + step) * 64 + rank)
        return self._batch(order[start : start + batch_size], generator)

    def _batch(self, index: Tensor, generator: torch.Generator) -> Batch:
        c = {k: v[index] for k, v in self._columns.items()}
        images = torch.from_numpy(self._images[c['frame'].numpy()])  # [B, 2, S, S, 3]
        images, offset = random_crop(images, generator)
        pixels = torch.cat([c['block_pixels'], c['plate_pixels'][:, :, None]], dim=2)
        return Batch(
            images=images,
            proprio=c['proprio'],
            actions=c['actions'],
            task=c['task'],
            object_pixels=(pixels - offset[:, :, None]) / _CROP_SIDE,
            relative=c['relative'],
        )


def random_crop(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random crop of 90 % area of each image, scaled back bilinearly.

    images: uint8 [B, V, S, S, 3]. Returns float32 [B, V, 3, S, S] in 0..1 and the offsets
    (x, y) [B, V, 2] in pixels: output pixel i samples the input at offset + 0.9487 i, which is
    the grid of the processor's centre crop for the middle offset.
    """
    batch, views, size = images.shape[:3]
    room = (1.0 - _CROP_SIDE) * (size - 1)
    offset = torch.rand(batch, views, 2, generator=generator) * room
    flat = images.flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0  # [B*V, 3, S, S]
    # grid_sample's coordinates run from -1 to 1 between the centres of the corner pixels
    shift = 2.0 * offset.flatten(0, 1) / (size - 1) - 1.0 + _CROP_SIDE  # [B*V, 2]
    theta = torch.zeros(len(flat), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = _CROP_SIDE
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(flat.shape), align_corners=True)
    cropped = F.grid_sample(flat, grid, align_corners=True)
    return cropped.unflatten(0, (batch, views)), offset


def _frame_cache(files: list[Path], counts: list[int], path: Path) -> np.ndarray:
    listing = path.with_suffix('.txt')
    wanted = '\n'.join(f'{f} {n}' for f, n in zip(files, counts, strict=True))
    if not (path.exists() and listing.exists() and listing.read_text() == wanted):
        path.parent.mkdir(parents=True, exist_ok=True)
        listing.unlink(missing_ok=True)
        with np.load(files[0]) as data:
            shape = data['images'].shape[1:]
        partial = path.with_suffix('.partial')
        frames = np.lib.format.open_memmap(
            partial, mode='w+', dtype=np.uint8, shape=(sum(counts), *shape)
        )
        at = 0
        for file, count in zip(files, counts, strict=True):
            with np.load(file) as data:
                frames[at : at + count] = data['images']
            at += count
        frames.flush()
        del frames
        partial.rename(path)
        listing.write_text(wanted)
    return np.load(path, mmap_mode='r')
