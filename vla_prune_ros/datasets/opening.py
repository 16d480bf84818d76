# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which format a path has: found by looking, one module per format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vla_prune_ros.datasets import aloha_hdf5, lerobot, libero_hdf5, rlds, tabletop
from vla_prune_ros.datasets.base import DataError, DataSet, ReadOptions


class Format(NamedTuple):
    """A reader: what it reads, why a path is of its kind (or None), and how to open it."""

    text: str
    detect: Callable[[Path], str | None]
    open: Callable[[Path, ReadOptions], DataSet]


FORMATS = {
    'lerobot': Format('LeRobot v2.0, v2.1, v3.0', lerobot.detect, lerobot.LerobotSet),
    'libero_hdf5': Format('LIBERO HDF5', libero_hdf5.detect, libero_hdf5.LiberoSet),
    'rlds': Format('RLDS', rlds.detect, rlds.RldsSet),
    'aloha_hdf5': Format('ALOHA HDF5', aloha_hdf5.detect, aloha_hdf5.AlohaSet),
    'tabletop': Format('tabletop episodes', tabletop.detect, tabletop.TabletopSet),
}


def open_dataset(path: str | Path, options: ReadOptions | None = None) -> DataSet:
    """Open a data set of any format.

    Args:
        path: folder or file; a folder with one data set in it does, too.
        options: what the files do not say.

    Raises:
        DataError: there is nothing, nothing known, or more than one.
        ModuleNotFoundError: a library that the format needs is not installed.
        ValueError: an option is not known.
    """
    path, options = Path(path), options or ReadOptions()
    if options.format and options.format not in FORMATS:
        raise ValueError(f'unknown format {options.format!r}; valid: {", ".join(FORMATS)}')
    if not path.exists():
        raise DataError(path, 'there is nothing', 'give the folder of a data set')
    found = look(path, options.format)
    if not found and path.is_dir():
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
        found = [one for folder in folders for one in look(folder, options.format)]
    if len(found) != 1:
        raise DataError(path, *_unclear(found, options.format))
    folder, name, _ = found[0]
    return FORMATS[name].open(folder, options)


def look(path: Path, only: str = '') -> list[tuple[Path, str, str]]:
    """Path, format and reason for each format that the path can be of."""
    names = [only] if only else list(FORMATS)
    reasons = ((name, FORMATS[name].detect(path)) for name in names)
    return [(path, name, reason) for name, reason in reasons if reason]


def _unclear(found: list[tuple[Path, str, str]], only: str) -> tuple[str, str]:
    if found:
        text = '; '.join(f'{path}: {FORMATS[name].text}, {why}' for path, name, why in found)
        return f'{len(found)} data sets', f'give one of them, or --format: {text}'
    kinds = FORMATS[only].text if only else ', '.join(f.text for f in FORMATS.values())
    return 'no data set was found here', f'looked for: {kinds}'
