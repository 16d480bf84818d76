# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LeRobot data sets, v2.0, v2.1 and v3.0, with pictures as images or as video.

Paths come from the templates of `meta/info.json`. The statistics beside the data are never used:
their quantiles are histogram estimates per episode, averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.datasets import lerobot_meta, video
from vla_prune_ros.datasets.base import DataError, DataSet, Episode, Picture, ReadOptions
from vla_prune_ros.datasets.cameras import guess_cameras
from vla_prune_ros.datasets.checks import checked, converted, said
from vla_prune_ros.datasets.gripper import GRIPPERS, guess
from vla_prune_ros.datasets.lerobot_meta import INFO, Entry, Info
from vla_prune_ros.datasets.parquet import read_columns, read_structs
from vla_prune_ros.datasets.pictures import Frames, as_jpeg, check_frame, turned
from vla_prune_ros.vla.pictures import encode_jpeg

_STATES, _ACTIONS = ('observation.state', 'state'), ('action', 'actions')
_COUNTED = ('timestamp', 'frame_index', 'episode_index', 'task_index')


def detect(path: Path) -> str | None:
    """Why this is such a data set; None if it is not."""
    return f'{INFO} is there' if (path / INFO).exists() else None


class LerobotSet(DataSet):
    """See the module."""

    format = 'lerobot'

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path, self.notes, self._options = path, [], options
        self.name = options.name or path.resolve().name
        self.info = Info.read(path)
        features = self.info.features
        self._state = options.state or self._key(_STATES)
        self._action = options.action or self._key(_ACTIONS)
        if not self._action:
            raise DataError(path / INFO, 'no actions', f'name them: {", ".join(features)}')
        if not self._state:
            self.notes.append('no robot state (--state)')
        wanted = [self._state, self._action, *options.cameras.values()]
        if missing := [key for key in wanted if key and key not in features]:
            raise DataError(
                path / INFO, f'no {", ".join(missing)}', f'there are: {", ".join(features)}'
            )
        self._cameras = dict(options.cameras) or guess_cameras(
            self.info.cameras(), self.notes, path
        )
        self.cameras = tuple(self._cameras)
        self.rate = options.rate or self.info.fps
        if options.rate is None:
            self.notes.append(f'{self.rate:g} Hz is what {INFO} calls fps (--rate)')
        self._tasks = lerobot_meta.read_tasks(path, self.info)
        self._entries = lerobot_meta.read_episodes(path, self.info, self._cameras.values())
        self._gripper = options.gripper

    def _key(self, names: tuple[str, ...]) -> str:
        return next((name for name in names if name in self.info.features), '')

    def __len__(self) -> int:
        return len(self._entries)

    def files(self) -> list[Path]:
        """Rows, videos and what describes them."""
        found = {e.rows for e in self._entries}
        found |= {video.file for e in self._entries for video in e.videos.values()}
        found |= set((self.path / 'meta').rglob('*.*'))
        return sorted(file for file in found if file.is_file())

    def mask(self, width: int) -> list[bool]:
        """Without a gripper to convert there is none to leave out."""
        return [True] * width if self._gripper == 'none' else super().mask(width)

    def read(self, index: int) -> Episode:
        """One episode."""
        entry = self._entries[index]
        place: dict[str, Any] = {'file': entry.rows, 'episode': str(entry.number)}
        keys = [key for key in (self._state, self._action) if key]
        columns = read_columns(entry.rows, [*keys, *_COUNTED], entry.first, entry.length, place)
        self._check_rows(entry, columns, place)
        actions = _numbers(columns[self._action], self._action, place)
        proprio = _numbers(columns[self._state], self._state, place) if self._state else None
        instructions, segments = self._said(columns['task_index'], place)
        times = columns['timestamp']
        for clip in entry.videos.values():
            video.check_length(clip.file, clip.start + times, self.info.fps, place['episode'])
        return checked(
            Episode(
                id=str(entry.number),
                file=entry.rows,
                instructions=instructions,
                actions=converted(actions, self._convention(), **place),
                proprio=proprio,
                pictures={
                    name: Frames(
                        entry.length,
                        partial(self._frames, entry, key, columns['timestamp'], place),
                    )
                    for name, key in self._cameras.items()
                },
                segments=segments,
            )
        )

    def _check_rows(self, entry: Entry, columns: dict[str, np.ndarray], place: Any) -> None:
        if (columns['episode_index'] != entry.number).any():
            raise DataError(
                what=f'rows {entry.first} to {entry.first + entry.length} are of episode'
                f' {columns["episode_index"][0]}',
                cure='rows and meta/episodes do not fit: download both again',
                **place,
            )
        steps = np.flatnonzero(columns['frame_index'] != np.arange(entry.length))
        if len(steps):
            raise DataError(
                what=f'frame_index is {columns["frame_index"][steps[0]]}',
                cure='rows are missing: leave the episode out',
                step=int(steps[0]),
                **place,
            )
        off = np.diff(columns['timestamp']) - 1 / self.info.fps
        steps = np.flatnonzero(np.abs(off) > 0.5 / self.info.fps)
        if len(steps):
            raise DataError(
                what=f'{off[steps[0]] + 1 / self.info.fps:.4f} s to the next time stamp, where'
                f' {self.info.fps:g} fps say {1 / self.info.fps:.4f} s',
                cure=f'correct fps in {INFO}, or leave the episode out',
                step=int(steps[0]),
                **place,
            )

    def _said(self, tasks: np.ndarray, place: Any) -> tuple[tuple[str, ...], tuple]:
        """Instructions, and the steps that each is for, if there are several."""
        texts = []
        for step, task in enumerate(tasks.tolist()):
            if task not in self._tasks:
                raise DataError(
                    what=f'task {task} is not among the tasks of the data set',
                    cure='download meta/ again',
                    step=step,
                    **place,
                )
            texts.append(self._tasks[task])
        return said(texts, self._options.instruction)

    def _convention(self) -> str:
        """Of the gripper: as said, or as the whole data set leaves no doubt about."""
        if not self._gripper:
            found: set[float] = set()
            for entry in self._entries:
                place = {'file': entry.rows, 'episode': str(entry.number)}
                try:
                    rows = read_columns(
                        entry.rows, [self._action], entry.first, entry.length, place
                    )
                except DataError:
                    continue
                found |= set(_numbers(rows[self._action], self._action, place)[:, -1].tolist())
                if found == {-1.0, 1.0} or found - {-1.0, 1.0}:
                    break
            self._gripper = guess(np.array(sorted(found))) or ''
            if not self._gripper:
                raise DataError(self.path, *_no_convention(found))
            self.notes.append(f'gripper: {self._gripper}, {GRIPPERS[self._gripper]} (--gripper)')
        return self._gripper

    def _frames(self, entry: Entry, key: str, times: np.ndarray, place: Any) -> Iterator[Picture]:
        turn = self._options.rotate or 0
        if key in entry.videos:
            where = entry.videos[key]
            wanted = where.start + times
            for frame in video.frames(where.file, wanted, self.info.fps, place['episode']):
                yield encode_jpeg(turned(check_frame(frame, **place), turn))
            return
        rows = read_structs(entry.rows, key, entry.first, entry.length, place)
        for step, picture in enumerate(rows):
            data = picture.get('bytes')
            if data is None:
                raise DataError(
                    what=f'{key} has no bytes, only the path {picture.get("path")!r}',
                    cure='load it with the lerobot that wrote it and save it with its pictures',
                    step=step,
                    **place,
                )
            yield as_jpeg(data, turn, step=step, **place)


def _no_convention(found: set[float]) -> tuple[str, str]:
    kinds = '; '.join(f'{name}: {text}' for name, text in GRIPPERS.items())
    return (
        f'the last number of the action goes from {min(found, default=0):g} to'
        f' {max(found, default=0):g}, which does not say whether it is a gripper and which end is'
        ' open',
        f'say it with --gripper ({kinds})',
    )


def _numbers(values: np.ndarray, key: str, place: Any) -> np.ndarray:
    if values.ndim == 1 and values.dtype != object:
        values = values[:, None]
    try:
        return np.stack(list(values)).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            what=f'{key} is not the same number of numbers at every step',
            cure='name another key',
            **place,
        ) from error
