# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ALOHA's HDF5 files, `episode_K.hdf5`, as they are recorded or preprocessed for OpenVLA-OFT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_prune_ros.datasets.base import DataError, DataSet, Episode, Picture, ReadOptions
from vla_prune_ros.datasets.checks import checked, converted
from vla_prune_ros.datasets.hdf5 import hdf5_files, member, numbers, open_hdf5, rows
from vla_prune_ros.datasets.pictures import Frames, check_frame, turned
from vla_prune_ros.vla.pictures import encode_jpeg

CAMERAS = ('cam_high', 'cam_left_wrist', 'cam_right_wrist')
_IMAGES, _STATE, _ACTION = 'observations/images', 'observations/qpos', 'action'
_SIDE = 256  # pixels that the authors' preprocessing brings pictures to, bicubic
_SPLITS = ('train', 'val')


def detect(path: Path) -> str | None:
    """Why this is such a data set; None if it is not."""
    files = _files(path)
    for file in files:
        try:
            with open_hdf5(file) as data:
                if _STATE in data:
                    return f'{len(files)} HDF5 files with /{_STATE}'
        except DataError:
            continue
    named = [file for file in files if re.fullmatch(r'episode_\d+', file.stem)]
    return f'{len(named)} HDF5 files episode_*, none of them readable' if named else None


def _files(path: Path) -> list[Path]:
    """Of a folder, and of its splits; in the order of their numbers."""
    folders = [path, *(path / split for split in _SPLITS if (path / split).is_dir())]
    return sorted((f for folder in folders for f in hdf5_files(folder)), key=_number)


def _number(file: Path) -> tuple[Path, int, str]:
    digits = re.search(r'(\d+)$', file.stem)
    return file.parent, int(digits[1]) if digits else 0, file.name


class AlohaSet(DataSet):
    """See the module."""

    format = 'aloha_hdf5'

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path, self._options = path, options
        folder = (path if path.is_dir() else path.parent).resolve()
        named = folder.parent if folder.name in _SPLITS else folder
        self.name = options.name or named.name
        self._keys = dict(options.cameras) or {name: name for name in CAMERAS}
        self.cameras, self.rate = tuple(self._keys), options.rate
        self._instruction = options.instruction or ' '.join(named.name.split('_'))
        self._files = _files(path)
        self.notes = (
            []
            if options.instruction
            else [f'instruction {self._instruction!r} is the name of the folder (--instruction)']
        )
        if self.rate is None:
            self.notes.append('the files do not say the control rate (--rate)')
        self._gripper = options.gripper or 'none'

    def __len__(self) -> int:
        return len(self._files)

    def files(self) -> list[Path]:
        """The episodes."""
        return self._files

    def mask(self, width: int) -> list[bool]:
        """Two arms: everything is normalised (OpenVLA-OFT, oxe/materialize.py)."""
        return [True] * width if self._gripper == 'none' else super().mask(width)

    def read(self, index: int) -> Episode:
        """One file."""
        file = self._files[index]
        name = str(file.relative_to(self.path).with_suffix('')) if file != self.path else file.stem
        place: dict[str, Any] = {'file': file, 'episode': name}
        with open_hdf5(file) as data:
            if data.attrs.get('compress', False):
                raise DataError(
                    what='its pictures are compressed (attribute compress)',
                    cure='decompress them with the scripts of the fork that recorded it',
                    **place,
                )
            actions = numbers(data, self._options.action or _ACTION, **place)
            proprio = numbers(data, self._options.state or _STATE, **place)
            lengths = {}
            for key in self._keys.values():
                frames = member(data, f'{_IMAGES}/{key}', **place)
                check_frame(np.empty((1, *frames.shape[1:]), frames.dtype)[0], **place)
                lengths[key] = len(frames)
        order = {key: np.arange(n) for key, n in lengths.items()}
        turn = self._options.rotate or 0
        return checked(
            Episode(
                id=name,
                file=file,
                instructions=(self._instruction,),
                actions=converted(actions, self._gripper, **place),
                proprio=proprio,
                pictures={
                    ours: Frames(lengths[key], partial(_frames, file, name, key, order[key], turn))
                    for ours, key in self._keys.items()
                },
            )
        )


def _frames(file: Path, episode: str, key: str, order: np.ndarray, turn: int) -> Iterator[Picture]:
    for frame in rows(file, f'{_IMAGES}/{key}', episode, order):
        if frame.shape[:2] != (_SIDE, _SIDE):
            picture = Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            frame = np.asarray(picture)
        yield encode_jpeg(turned(frame, turn))
