# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What `meta/` of a LeRobot data set says: features, tasks, and where each episode lies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vla_prune_ros.datasets.base import DataError
from vla_prune_ros.datasets.checks import check_file
from vla_prune_ros.datasets.parquet import read_rows

INFO = 'meta/info.json'
VERSIONS = ('v2.0', 'v2.1', 'v3.0')
_CONVERT = 'convert it with the script convert_dataset_v1_to_v2 of lerobot'


class Video(NamedTuple):
    """A file and the time in it, s, of an episode's first frame."""

    file: Path
    start: float


class Entry(NamedTuple):
    """Where an episode lies: rows `first` to `first + length` of the file `rows`."""

    number: int
    length: int
    rows: Path
    first: int
    videos: dict[str, Video]


@dataclass(frozen=True)
class Info:
    """The part of `meta/info.json` that matters."""

    version: str
    fps: float
    chunks_size: int
    data_path: str
    video_path: str
    features: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, root: Path) -> Info:
        """Of a data set.

        Raises:
            DataError: it cannot be used.
        """
        file = root / INFO
        check_file(file)
        try:
            info = json.loads(file.read_bytes())
        except ValueError as error:
            raise DataError(file, f'no JSON: {error}', 'download it again') from error
        try:
            version = str(info['codebase_version'])
            if version not in VERSIONS:
                cure = _CONVERT if version.startswith('v1') else f'known: {", ".join(VERSIONS)}'
                raise DataError(file, f'codebase_version {version} is not known', cure)
            found = cls(
                version,
                float(info['fps']),
                int(info.get('chunks_size', 1000)),
                info['data_path'],
                info.get('video_path') or '',
                {key: {'dtype': kind['dtype'], **kind} for key, kind in info['features'].items()},
            )
        except DataError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(file, f'incomplete: {error!r}', 'download it again') from error
        if not found.fps > 0:
            raise DataError(file, f'fps is {found.fps:g}', 'write the rate of the rows into it')
        return found

    @property
    def is_v3(self) -> bool:
        """Many episodes per file."""
        return self.version.startswith('v3')

    def cameras(self) -> list[str]:
        """Keys of the colour cameras."""
        return [
            key
            for key, feature in self.features.items()
            if feature['dtype'] in ('image', 'video')
            and not (feature.get('info') or {}).get('video.is_depth_map', False)
        ]

    def is_video(self, key: str) -> bool:
        """Whether a camera is a video."""
        return self.features[key]['dtype'] == 'video'


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    check_file(file)
    # Not splitlines: it would cut texts at characters such as U+2028.
    for number, line in enumerate(file.read_bytes().split(b'\n'), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            raise DataError(file, f'line {number} is no JSON', 'download it again') from error


def read_tasks(root: Path, info: Info) -> dict[int, str]:
    """Number of a task -> instruction."""
    file = root / ('meta/tasks.parquet' if info.is_v3 else 'meta/tasks.jsonl')
    rows = read_rows(file) if info.is_v3 else _lines(file)
    # The text is the index of a pandas table, which has this name if it had none.
    index = '__index_level_0__'
    try:
        return {t['task_index']: str(t.get('task', t.get(index)) or '') for t in rows}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(file, f'no list of tasks: {error!r}', 'download it again') from error


def read_episodes(root: Path, info: Info, cameras: Iterable[str]) -> list[Entry]:
    """Every episode in order.

    Raises:
        DataError: that cannot be told.
    """
    videos = [key for key in cameras if info.is_video(key)]
    if videos and not info.video_path:
        raise DataError(root / INFO, 'no video_path, but cameras are videos', 'download it again')
    try:
        entries = _many_per_file(root, info, videos) if info.is_v3 else _own(root, info, videos)
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            root / 'meta', f'the list of episodes lacks {error}', 'download it again'
        ) from error
    if not entries:
        raise DataError(root / 'meta', 'no episodes', 'download it again')
    return entries


def _own(root: Path, info: Info, videos: list[str]) -> list[Entry]:
    """v2: one file per episode."""
    found = []
    for line in _lines(root / 'meta/episodes.jsonl'):
        number = line['episode_index']
        where = {'episode_chunk': number // info.chunks_size, 'episode_index': number}
        files = {k: root / info.video_path.format(video_key=k, **where) for k in videos}
        found.append(
            Entry(
                number,
                line['length'],
                root / info.data_path.format(**where),
                0,
                {key: Video(file, 0.0) for key, file in files.items()},
            )
        )
    return sorted(found)


def _many_per_file(root: Path, info: Info, videos: list[str]) -> list[Entry]:
    """v3: episodes one behind the other in files."""
    lines = []
    wanted = (
        'episode_index',
        'length',
        'dataset_from_index',
        'data/',
        *(f'videos/{k}/' for k in videos),
    )
    for file in sorted((root / 'meta/episodes').rglob('*.parquet')):
        lines += read_rows(file, wanted)
    begins: dict[Path, int] = {}  # file of rows -> number of its first row in the data set
    files = []
    for line in lines:
        file = root / info.data_path.format(
            chunk_index=line['data/chunk_index'], file_index=line['data/file_index']
        )
        files.append(file)
        begins[file] = min(
            begins.get(file, line['dataset_from_index']), line['dataset_from_index']
        )
    found = []
    for line, file in zip(lines, files, strict=True):
        clips = {}
        for key in videos:
            clip = root / info.video_path.format(
                video_key=key,
                chunk_index=line[f'videos/{key}/chunk_index'],
                file_index=line[f'videos/{key}/file_index'],
            )
            clips[key] = Video(clip, float(line[f'videos/{key}/from_timestamp']))
        first = line['dataset_from_index'] - begins[file]
        found.append(Entry(line['episode_index'], line['length'], file, first, clips))
    return sorted(found)
