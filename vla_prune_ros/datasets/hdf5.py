# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""HDF5 files: opened with an error that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.datasets.base import DataError
from vla_prune_ros.datasets.checks import check_file
from vla_prune_ros.datasets.optional import library

SUFFIXES = ('.hdf5', '.h5')
_BLOCK = 16  # pictures that are read together


def hdf5_files(path: Path) -> list[Path]:
    """The file itself, or the HDF5 files of a folder."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    return [path] if path.suffix in SUFFIXES and path.exists() else []


def open_hdf5(path: Path) -> Any:
    """An `h5py.File`, for reading; to be closed.

    Raises:
        DataError: it cannot be read.
        ModuleNotFoundError: h5py is missing.
    """
    h5py = library('h5py', f'{path.name}: reading HDF5')
    check_file(path)
    try:
        return h5py.File(path, 'r')
    except OSError as error:
        raise DataError(path, f'no HDF5 can be read: {error}', _again(str(error))) from error


def _again(text: str) -> str:
    whole = 'truncated' not in text
    return 'copy or download the file again' + ('' if whole else ': it ends too early')


def numbers(group: Any, key: str, file: Path, episode: str) -> np.ndarray:
    """The array float32 of a key.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    return array(group, key, file, episode).astype(np.float32)


def array(group: Any, key: str, file: Path, episode: str) -> np.ndarray:
    """The array of a key.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    dataset = member(group, key, file, episode)
    try:
        return dataset[()]
    except OSError as error:
        raise DataError(file, f'{key} cannot be read: {error}', _again(str(error)), episode) from (
            error
        )


def member(group: Any, key: str, file: Path, episode: str) -> Any:
    """What a group has under a key.

    Raises:
        DataError: nothing, or nothing that can be read.
    """
    try:
        if key in group:
            return group[key]
    except (KeyError, OSError, RuntimeError) as error:
        raise DataError(file, f'{key} cannot be read: {error}', _again(str(error)), episode) from (
            error
        )
    names: list[str] = []
    group.visit(names.append)
    raise DataError(
        file, f'no {key}', f'name it; there are: {", ".join(names) or "none"}', episode
    )


def rows(file: Path, key: str, episode: str, order: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of a data set in the file, in increasing `order`, some at a time.

    Raises:
        DataError: they cannot be read.
    """
    with open_hdf5(file) as data:
        for first in range(0, len(order), _BLOCK):
            try:
                yield from data[key][order[first : first + _BLOCK]]
            except OSError as error:
                raise DataError(
                    file,
                    f'{key} cannot be read: {error}',
                    _again(str(error)),
                    episode,
                    int(order[first]),
                ) from error
