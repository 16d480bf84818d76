# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""RLDS data sets as tensorflow-datasets writes them, such as `modified_libero_rlds`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_prune_ros.datasets.base import DataError, DataSet, Episode, ReadOptions
from vla_prune_ros.datasets.cameras import guess_cameras
from vla_prune_ros.datasets.checks import check_file, checked, converted, said
from vla_prune_ros.datasets.gripper import GRIPPERS
from vla_prune_ros.datasets.pictures import Frames, as_jpeg
from vla_prune_ros.datasets.tfrecord import Record, index_records, parse_example, read_record

RATE_OF_LIBERO = 20.0  # Hz
_VERSION = r'\d+\.\d+\.\d+'
_OBSERVATION = 'steps/observation/'
_INSTRUCTION = 'steps/language_instruction'


def detect(path: Path) -> str | None:
    """Why this is such a data set; None if it is not."""
    folder = _version(path)
    return None if folder is None else f'features.json beside tfrecords in {folder}'


def _version(path: Path) -> Path | None:
    """The folder with the files: the path, or its newest version."""
    if not path.is_dir():
        return None
    versions = [p for p in path.iterdir() if re.fullmatch(_VERSION, p.name)]
    versions.sort(key=lambda p: [int(n) for n in p.name.split('.')])
    for folder in [path, *reversed(versions)]:
        if (folder / 'features.json').exists() and _records(folder):
            return folder
    return None


def _records(folder: Path) -> list[Path]:
    """By pattern: the head of the names comes from the class that wrote them."""
    return sorted(f for f in folder.glob('*.tfrecord-*') if not f.name.endswith('.json'))


class _Entry(NamedTuple):
    file: Path
    id: str
    record: Record
    problem: DataError | None = None


class RldsSet(DataSet):
    """See the module."""

    format = 'rlds'

    def __init__(self, path: Path, options: ReadOptions) -> None:
        folder = _version(path)
        assert folder is not None, 'detected'
        self.path, self.notes, self._options = path, [], options
        versioned = re.fullmatch(_VERSION, folder.name)
        self.name = options.name or (folder.parent if versioned else folder).resolve().name
        features = _features(folder)
        observation = features['observation']['featuresDict']['features']
        images = [n for n, f in observation.items() if f['pythonClassName'].endswith('.Image')]
        self._keys = set(observation)
        self._cameras = dict(options.cameras) or guess_cameras(images, self.notes, path)
        self.cameras = tuple(self._cameras)
        self.rate = options.rate
        if self.rate is None and self.name.startswith('libero'):
            self.rate = RATE_OF_LIBERO
        self._gripper = options.gripper or _usual_gripper(features, self.notes)
        self._files = _records(folder)
        self._entries = [entry for file in self._files for entry in _index(file)]
        splits = sorted({_split(file) for file in self._files})
        if len(splits) > 1:
            self.notes.append(f'all splits are read: {", ".join(splits)}')

    def __len__(self) -> int:
        return len(self._entries)

    def files(self) -> list[Path]:
        """The tfrecords."""
        return self._files

    def read(self, index: int) -> Episode:
        """One record."""
        entry = self._entries[index]
        if entry.problem is not None:
            raise entry.problem
        place: dict[str, Any] = {'file': entry.file, 'episode': entry.id}
        try:
            values = parse_example(read_record(entry.file, entry.record, entry.id))
        except (KeyError, OverflowError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(what=f'cannot be read: {error}', cure='copy it again', **place) from (
                error
            )

        def get(key: str) -> Any:
            if key not in values:
                raise DataError(
                    what=f'no {key}', cure=f'name it; there are: {", ".join(values)}', **place
                )
            return values[key]

        steps = len(get('steps/is_last'))
        if not steps:
            raise DataError(what='there is no step', cure='leave the episode out', **place)

        def table(key: str) -> np.ndarray:
            numbers = get(key)
            if len(numbers) % steps:
                what = f'{key} has {len(numbers)} numbers for {steps} steps'
                raise DataError(what=what, cure='leave the episode out', **place)
            return numbers.reshape(steps, -1)

        actions = table(f'steps/{self._options.action or "action"}')
        state = self._options.state or 'state'
        proprio = None
        if self._options.state or state in self._keys:
            proprio = table(_OBSERVATION + state)
        instructions, segments = self._said(values.get(_INSTRUCTION), steps, place)
        turn = self._options.rotate or 0

        def pictures(key: str) -> Frames:
            frames = get(_OBSERVATION + key)
            return Frames(len(frames), lambda: (as_jpeg(f, turn, **place) for f in frames))

        return checked(
            Episode(
                id=entry.id,
                file=entry.file,
                instructions=instructions,
                actions=converted(actions, self._gripper, **place),
                proprio=proprio,
                pictures={name: pictures(key) for name, key in self._cameras.items()},
                segments=segments,
            )
        )

    def _said(self, texts: Any, steps: int, place: dict[str, Any]) -> tuple:
        """Instructions, and the steps that each is for, if there are several."""
        if texts is None or len(texts) != steps:
            texts = list(texts or [b''])[:1] * steps
        try:
            return said([text.decode() for text in texts], self._options.instruction)
        except UnicodeDecodeError as error:
            raise DataError(
                what=f'the instruction is no UTF-8: {error}', cure='copy it again', **place
            ) from error

    def mask(self, width: int) -> list[bool]:
        """Two arms: everything is normalised (OpenVLA-OFT, oxe/materialize.py)."""
        return [True] * width if self._gripper == 'none' else super().mask(width)


def _usual_gripper(features: dict[str, Any], notes: list[str]) -> str:
    """As in LIBERO for one arm; two arms have absolute joints and nothing to convert."""
    shape = features['action'].get('tensor', {}).get('shape', {}).get('dimensions', ['7'])
    name = 'env' if [int(n) for n in shape] == [7] else 'none'
    notes.append(f'gripper: {name}, {GRIPPERS[name]} (--gripper)')
    return name


def _features(folder: Path) -> dict[str, Any]:
    """The description of a step."""
    file = folder / 'features.json'
    check_file(file)
    try:
        tree = json.loads(file.read_text(encoding='utf-8'))['featuresDict']['features']
        steps = tree['steps']['sequence']['feature']['featuresDict']['features']
        if {'observation', 'action'} <= steps.keys():
            return steps
        missing = f'steps have {", ".join(steps)}'
    except (KeyError, TypeError, ValueError) as error:
        missing = repr(error)
    raise DataError(file, f'no observation and action in it: {missing}', 'is this RLDS?')


def _split(file: Path) -> str:
    return file.name.partition('.tfrecord')[0].rpartition('-')[2]


def _index(file: Path) -> list[_Entry]:
    shard = f'{_split(file)}-{file.name.partition(".tfrecord-")[2].partition("-")[0]}'
    try:
        check_file(file)
    except DataError as error:
        return [_Entry(file, shard, Record(0, 0), error)]
    found, problem = index_records(file)
    entries = [_Entry(file, f'{shard}/{k}', record) for k, record in enumerate(found)]
    if problem is not None:
        entries.append(_Entry(file, f'{shard}/{len(found)}', Record(0, 0), problem))
    return entries
