# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Making a store (see store.py): episode by episode, and nothing is ever whole in memory.

A run that was killed goes on after its last whole episode and ends with the same bytes as one
that was not: the line of an episode in `episodes.jsonl` is written when everything of it is on
the disk, and what lies behind the last line is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from vla_prune_ros.datasets.base import DataError, DataSet, Episode, ReadOptions
from vla_prune_ros.datasets.statistics import save_statistics, statistics
from vla_prune_ros.datasets.store import EPISODES, HEAD, PICTURES, column

VERSION = 1
PARTIAL = '.partial'
_RESERVE = 64 << 20  # bytes that the disk must have left


def make_store(
    data: DataSet,
    path: Path,
    options: ReadOptions | None = None,
    skip_damaged: bool = False,
    progress: bool = True,
    warn: Callable[[str], None] = print,
) -> Path:
    """Make the store of a data set, or go on making it; an existing one is left as it is.

    Args:
        data: open.
        path: of the store's folder.
        options: that the data set was opened with; other options make another store.
        skip_damaged: leave out episodes that cannot be read, instead of stopping at the first.
        progress: show a bar.
        warn: given a sentence about every episode that is left out.

    Returns:
        `path`.

    Raises:
        DataError: an episode cannot be read, or there is none that can.
        OSError: the disk is too small.
        ValueError: there is the store of another data set.
    """
    identity = {
        'version': VERSION,
        'name': data.name,
        'format': data.format,
        'cameras': list(data.cameras),
        'rate': data.rate,
        'source': digest(data, options or ReadOptions()),
        'skip_damaged': skip_damaged,
    }
    if path.exists():
        _require(path, identity)
        return path
    partial = path.with_name(path.name + PARTIAL)
    if (partial / HEAD).exists():
        _require(partial, identity)
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_json(partial / HEAD, identity)
    with _Writer(partial, data.cameras) as writer:
        _fill(writer, data, skip_damaged, progress, warn)
    if not writer.episodes:
        raise DataError(data.path, 'there is no episode that can be read')
    entry = _statistics(partial, writer.columns, data, writer.episodes)
    save_statistics(partial, {data.name: entry})
    _write_json(partial / HEAD, identity | {'columns': writer.columns})
    partial.rename(path)
    return path


def digest(data: DataSet, options: ReadOptions) -> str:
    """Of names, sizes and times of the files, and of how they are read."""
    found: list[Any] = [asdict(options) | {'cameras': list(options.cameras.items())}]
    for file in sorted(data.files()):
        state = file.stat()
        found.append([os.path.relpath(file, data.path), state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _require(path: Path, identity: Mapping[str, Any]) -> None:
    try:
        there = json.loads((path / HEAD).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} exists and is no store: {error}') from error
    other = [name for name, value in identity.items() if there.get(name) != value]
    if other:
        raise ValueError(
            f'{path} holds the data set {there.get("name")!r}, read with other files or options'
            f' ({", ".join(other)}); remove it, or name another folder'
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    partial.rename(path)


def _fill(
    writer: _Writer,
    data: DataSet,
    skip_damaged: bool,
    progress: bool,
    warn: Callable[[str], None],
) -> None:
    total = len(data)
    bar = tqdm(
        total=total, initial=writer.read, unit='episode', desc=f'store of {data.name}',
        disable=not progress,
    )  # fmt: skip
    with bar:
        for index in range(writer.read, total):
            try:
                writer.add(data.read(index))
            except DataError as error:
                writer.rewind()
                if not skip_damaged:
                    raise
                writer.leave_out(error)
                warn(f'left out: {error}')
            writer.require_space(total)
            bar.update()


def _statistics(
    path: Path, columns: Mapping[str, list], data: DataSet, episodes: int
) -> dict[str, Any]:
    actions = column(path, columns, 'actions')
    proprio = column(path, columns, 'proprio') if 'proprio' in columns else None
    if 'label_actions' in columns:  # the same state stands before every label of a step
        chunks = column(path, columns, 'label_actions')
        actions = chunks.reshape(-1, chunks.shape[-1])
        if proprio is not None:
            proprio = proprio[column(path, columns, 'label_frame')]
    return statistics(actions, proprio, data.mask(actions.shape[1]), episodes)


class _Writer:
    """Appends episodes.

    Attributes:
        columns: name -> type and shape of a row.
        episodes: how many are written.
        read: how many of the source are dealt with.
    """

    def __init__(self, path: Path, cameras: tuple[str, ...]) -> None:
        self._path, self._cameras = path, cameras
        self.columns: dict[str, list] = {}
        self.episodes = self.read = 0
        self._frames = 0
        self._ends: dict[str, int] = {}  # file -> bytes that belong to whole episodes
        self._files: dict[str, BinaryIO] = {}
        self._log = (path / EPISODES).open('ab+')
        self._log.seek(0)
        whole = 0
        for line in self._log.readlines():
            if not line.endswith(b'\n'):
                break  # the run was killed while it was written
            whole += len(line)
            self._take(json.loads(line))
        self._log.truncate(whole)
        for name in {p.name for p in path.iterdir()} - {HEAD, EPISODES}:
            if name in self._ends:
                self._file(name)
            else:
                (path / name).unlink()
        self.rewind()

    def _take(self, entry: Mapping[str, Any]) -> None:
        self.read += 1
        if 'left_out' not in entry:
            self.episodes += 1
            self._frames += entry['frames']
            self._ends, self.columns = entry['ends'], entry['columns']

    def rewind(self) -> None:
        """Cut off what does not belong to a whole episode."""
        for name, file in self._files.items():
            file.seek(0, os.SEEK_END)  # whatever waits is written
            file.truncate(self._ends.get(name, 0))
            file.seek(0, os.SEEK_END)

    def _file(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = (self._path / name).open('ab')
        return self._files[name]

    def add(self, episode: Episode) -> None:
        """Append one episode.

        Raises:
            DataError: a picture cannot be read, or numbers are of another shape than before.
        """
        columns = {'index': self._add_pictures(episode), 'actions': episode.actions}
        if episode.proprio is not None:
            columns['proprio'] = episode.proprio
        columns |= {f'extra_{name}': values for name, values in episode.extras.items()}
        if episode.labels is not None:
            columns['label_frame'] = episode.labels.frame + self._frames
            columns['label_instruction'] = episode.labels.instruction
            columns['label_actions'] = episode.labels.actions
            extras = episode.labels.extras
            columns |= {f'label_extra_{name}': values for name, values in extras.items()}
        shapes = {name: [v.dtype.name, *v.shape[1:]] for name, v in columns.items()}
        if self.episodes and shapes != self.columns:
            raise DataError(
                episode.file,
                f'numbers are {_shapes(shapes)}, in those before it {_shapes(self.columns)}',
                'leave it out: one data set has one robot',
                episode.id,
            )
        for name, values in columns.items():
            self._file(f'{name}.{values.dtype.name}').write(np.ascontiguousarray(values).data)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._write(
            {
                'id': episode.id,
                'frames': len(episode),
                'labels': 0 if episode.labels is None else len(episode.labels.frame),
                'instructions': list(episode.instructions),
                'segments': [list(segment) for segment in episode.segments],
                'columns': shapes,
                'ends': {name: file.tell() for name, file in sorted(self._files.items())},
            }
        )

    def _add_pictures(self, episode: Episode) -> np.ndarray:
        """Offset, length, height and width of every picture, int64 [T, C, 4]; 0 for JPEG."""
        index = np.zeros((len(episode), len(self._cameras), 4), dtype=np.int64)
        file = self._file(PICTURES)
        for number, camera in enumerate(self._cameras):
            step = -1
            for step, picture in enumerate(episode.pictures[camera]):
                if isinstance(picture, bytes):
                    content, size = picture, (0, 0)
                else:
                    content, size = picture.tobytes(), picture.shape[:2]
                if step < len(episode):
                    index[step, number] = file.tell(), len(content), *size
                file.write(content)
            if step + 1 != len(episode):
                raise DataError(
                    episode.file,
                    f'{len(episode)} steps, but {step + 1} pictures of {camera}',
                    'the recording was cut off: leave it out',
                    episode.id,
                )
        return index

    def leave_out(self, error: DataError) -> None:
        """Note that an episode is not in the store."""
        self._write({'left_out': str(error)})

    def _write(self, entry: dict[str, Any]) -> None:
        self._log.write(json.dumps(entry).encode() + b'\n')
        self._log.flush()
        os.fsync(self._log.fileno())
        self._take(entry)

    def require_space(self, total: int) -> None:
        """See whether the rest of `total` episodes fits on the disk.

        Raises:
            OSError: if they are like those that are written, it does not.
        """
        if self.read == total or self.read & (self.read - 1):  # after 1, 2, 4, ... episodes
            return
        written = sum(self._ends.values())
        needed = written * (total - self.read) // self.read + _RESERVE
        free = shutil.disk_usage(self._path).free
        if needed > free:
            raise OSError(
                f'{self._path}: the store needs about {needed / 1e9:.1f} GB more, the disk has'
                f' {free / 1e9:.1f} GB; name a folder on another disk'
            )

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._log, *self._files.values()):
            file.close()


def _shapes(columns: Mapping[str, list]) -> str:
    names = [name for name in columns if name not in ('index', 'label_frame')]
    return ', '.join(f'{name} {columns[name][1:]}' for name in names)
