# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes of the tabletop's scripted experts: `episode_*.npz` of `train tabletop`.

Their pictures went through JPEG and to their size when they were recorded, and every recorded
instant has chunks of its own, for one or more instructions.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_prune_ros.datasets.base import DataError, DataSet, Episode, Labels, Picture, ReadOptions
from vla_prune_ros.datasets.checks import check_file, checked
from vla_prune_ros.datasets.pictures import Frames

VIEWS = ('agentview', 'wrist')
RATE = 20.0  # Hz
PATTERN = 'episode_*.npz'
_OF_A_FRAME = ('block_pixels', 'plate_pixels')
_OF_A_LABEL = ('task', 'relative')
_DAMAGE = (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error)


def detect(path: Path) -> str | None:
    """Why this is such a data set; None if it is not."""
    found = _files(path)
    return f'{len(found)} files {PATTERN}' if found else None


def _files(path: Path) -> list[Path]:
    """Episode files of a folder and of its folders."""
    if not path.is_dir():
        return []
    return sorted([*path.glob(PATTERN), *path.glob(f'*/{PATTERN}')])


class TabletopSet(DataSet):
    """See the module."""

    format = 'tabletop'

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path, self.notes = path, []
        self.name = options.name or 'tabletop'
        self.cameras, self.rate = VIEWS, options.rate or RATE
        self._files = _files(path)

    def __len__(self) -> int:
        return len(self._files)

    def files(self) -> list[Path]:
        """The episode files."""
        return self._files

    def read(self, index: int) -> Episode:
        """One file."""
        file = self._files[index]
        check_file(file)
        try:
            with np.load(file) as data:
                arrays = {name: data[name] for name in data.files if name != 'images'}
        except _DAMAGE as error:
            raise _damaged(file, error) from error
        needed = {'proprio', 'actions', 'instructions', *_OF_A_FRAME, *_OF_A_LABEL}
        if missing := sorted(needed - arrays.keys()):
            raise DataError(file, f'has no {", ".join(missing)}', 'delete it and collect again')
        tasks, actions = arrays['task'], arrays['actions'].astype(np.float32)
        steps, answers = tasks.shape
        labels = Labels(
            np.arange(steps).repeat(answers),
            tasks.reshape(-1).astype(np.int64),
            actions.reshape(-1, *actions.shape[2:]),
            {n: arrays[n].reshape(-1, *arrays[n].shape[2:]) for n in _OF_A_LABEL},
        )
        return checked(
            Episode(
                id=str(file.relative_to(self.path).with_suffix('')),
                file=file,
                instructions=tuple(map(str, arrays['instructions'])),
                actions=np.ascontiguousarray(actions[:, 0, 0]),
                proprio=arrays['proprio'].astype(np.float32),
                pictures={name: self._pictures(file, v, steps) for v, name in enumerate(VIEWS)},
                labels=labels,
                extras={name: arrays[name] for name in _OF_A_FRAME},
            )
        )

    def _pictures(self, file: Path, view: int, steps: int) -> Frames:
        def frames() -> Iterator[Picture]:
            try:
                with np.load(file) as data:
                    images = data['images'][:, view]
            except (*_DAMAGE, IndexError) as error:
                raise _damaged(file, error) from error
            yield from images

        return Frames(steps, frames)


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(file, f'cannot be read: {error}', 'delete it and collect again')
