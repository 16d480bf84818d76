# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LIBERO's HDF5 files, as they are published and as OpenVLA-OFT regenerates them.

The original writer puts the observation that an action led to beside that action (LIBERO,
scripts/create_dataset.py), the regenerating one the observation before it (OpenVLA-OFT,
regenerate_libero_dataset.py). Which one wrote a file is seen in its numbers: the joints of the
observation are those of the simulator's state at the same step or at the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_prune_ros.datasets.base import DataError, DataSet, Episode, Picture, ReadOptions
from vla_prune_ros.datasets.checks import checked, converted
from vla_prune_ros.datasets.hdf5 import array, hdf5_files, member, numbers, open_hdf5, rows
from vla_prune_ros.datasets.pictures import Frames, check_frame, turned
from vla_prune_ros.vla.pictures import encode_jpeg

CAMERAS = {'agentview': 'agentview_rgb', 'wrist': 'eye_in_hand_rgb'}
RATE = 20.0  # Hz
_ARM = slice(1, 8)  # of the flattened state: time, then the joints of the arm
_SUFFIX = '_demo'
_NOOP = 1e-4  # norm of the six deltas below which nothing moves


def detect(path: Path) -> str | None:
    """Why this is such a data set; None if it is not."""
    files = hdf5_files(path)
    for file in files:
        try:
            with open_hdf5(file) as data:
                if 'data' in data and any(name.startswith('demo_') for name in data['data']):
                    return f'{len(files)} HDF5 files with data/demo_*'
        except DataError:
            continue
    named = [file for file in files if file.stem.endswith(_SUFFIX)]
    return f'{len(named)} HDF5 files *{_SUFFIX}, none of them readable' if named else None


class _Demo(NamedTuple):
    file: Path
    name: str  # '' for a file that cannot be read
    problem: DataError | None = None


class LiberoSet(DataSet):
    """See the module."""

    format = 'libero_hdf5'

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path, self.notes, self._options = path, [], options
        self.name = options.name or (path if path.is_dir() else path.parent).name
        self._keys = dict(options.cameras) or CAMERAS
        self.cameras, self.rate = tuple(self._keys), options.rate or RATE
        self._files = hdf5_files(path)
        self._demos = [demo for file in self._files for demo in _demos(file)]
        self._offsets: dict[Path, int] = {}

    def __len__(self) -> int:
        return len(self._demos)

    def files(self) -> list[Path]:
        """The HDF5 files."""
        return self._files

    def read(self, index: int) -> Episode:
        """One demonstration."""
        demo = self._demos[index]
        if demo.problem is not None:
            raise demo.problem
        place: dict[str, Any] = {'file': demo.file, 'episode': demo.name}
        with open_hdf5(demo.file) as data:
            group = member(data, f'data/{demo.name}', **place)
            actions = numbers(group, self._options.action or 'actions', **place)
            parts = (
                [self._options.state] if self._options.state else ['ee_states', 'gripper_states']
            )
            states = [numbers(group, f'obs/{key}', **place) for key in parts]
            shapes = {}
            for name, key in self._keys.items():
                frames = member(group, f'obs/{key}', **place)
                shapes[name] = frames.shape
                check_frame(np.empty(frames.shape[1:], frames.dtype), **place)
            offset = self._offset(demo.file, data)
            instruction = _instruction(demo.file, data) or self._options.instruction
        lengths = {len(actions), *(len(s) for s in states), *(s[0] for s in shapes.values())}
        if len(lengths) > 1:
            raise DataError(
                what=f'actions, states and pictures have {sorted(lengths)} steps',
                cure='the recording was cut off: leave it out',
                **place,
            )
        order = np.arange(len(actions) - offset)  # of the observations
        actions = actions[offset:]
        if offset:  # regenerated files have no no-ops
            kept = moving(actions)
            order, actions = order[kept], actions[kept]
        actions = converted(actions, self._options.gripper or 'env', **place)
        turn = 180 if self._options.rotate is None else self._options.rotate
        pictures = {
            name: Frames(len(order), partial(_frames, demo, f'obs/{key}', order, turn))
            for name, key in self._keys.items()
        }
        return checked(
            Episode(
                id=f'{demo.file.stem}/{demo.name}',
                file=demo.file,
                instructions=(instruction,),
                actions=actions,
                proprio=np.concatenate(states, axis=1)[order],
                pictures=pictures,
            )
        )

    def _offset(self, file: Path, data: Any) -> int:
        """How many actions of a file come before the first observation: 0 or 1."""
        if file not in self._offsets:
            self._offsets[file] = offset = _offset(file, data)
            if offset:
                size = min(
                    member(data, f'data/{_names(data)[0]}/obs', file, '')[k].shape[1]
                    for k in self._keys.values()
                )
                self.notes.append(
                    f'{file.name}: original LIBERO file, frames show what their action led to:'
                    f' paired with the next action, no-ops left out'
                    + (f'; {size} px, where the released policies saw 256' if size < 256 else '')
                )
        return self._offsets[file]


def _demos(file: Path) -> Iterator[_Demo]:
    try:
        with open_hdf5(file) as data:
            names = _names(data)
    except (DataError, KeyError, OSError, RuntimeError) as error:
        problem = error if isinstance(error, DataError) else DataError(file, str(error))
        yield _Demo(file, '', problem)
        return
    if not names:
        yield _Demo(file, '', DataError(file, 'no data/demo_*', 'this is no LIBERO file'))
    yield from (_Demo(file, name) for name in names)


def _names(data: Any) -> list[str]:
    names = [n for n in data['data'] if re.fullmatch(r'demo_\d+', n)] if 'data' in data else []
    return sorted(names, key=lambda name: int(name.removeprefix('demo_')))


def _frames(demo: _Demo, key: str, order: np.ndarray, turn: int) -> Iterator[Picture]:
    for frame in rows(demo.file, f'data/{demo.name}/{key}', demo.name, order):
        yield encode_jpeg(turned(frame, turn))


def _offset(file: Path, data: Any) -> int:
    for name in _names(data):
        group = member(data, f'data/{name}', file, name)
        found = frame_offset(
            array(group, 'obs/joint_states', file, name), array(group, 'states', file, name)
        )
        if found is not None:
            return found
    raise DataError(
        file,
        'obs/joint_states are those of the states neither at the same step nor at the next, so'
        ' that nobody knows whether a frame was taken before or after its action',
        'regenerate the file from its states',
    )


def frame_offset(joints: np.ndarray, states: np.ndarray) -> int | None:
    """Whether observations are those before their action (0) or after it (1).

    Args:
        joints: of the observations, [T, 7] rad.
        states: flattened states of the simulator before each action, [T, S].

    Returns:
        None if neither fits, or the arm does not move so that both do.
    """
    if len(joints) < 2 or len(joints) != len(states) or states.shape[1] < _ARM.stop:
        return None
    arm = states[:, _ARM]
    moved = np.abs(np.diff(arm, axis=0)).mean()
    before = np.abs(joints[:-1] - arm[:-1]).mean()
    after = np.abs(joints[:-1] - arm[1:]).mean()
    # A replay on another machine is not exact; it stays far below what one step moves.
    if min(before, after) < 0.25 * moved:
        return int(after < before)
    return None


def moving(actions: np.ndarray) -> np.ndarray:
    """Indices of the actions [T, 7] that are no no-ops (regenerate_libero_dataset.py).

    A no-op moves nothing and leaves the gripper as the last action that was kept; of the first
    one only the movement counts.
    """
    kept: list[int] = []
    for t, action in enumerate(actions):
        still = np.linalg.norm(action[:-1]) < _NOOP
        if not (still and (not kept or action[-1] == actions[kept[-1], -1])):
            kept.append(t)
    return np.array(kept, dtype=np.int64)


def _instruction(file: Path, data: Any) -> str:
    """From the file's name, or where that does not fit from its attributes."""
    if file.stem.endswith(_SUFFIX):
        return instruction_of(file.stem.removesuffix(_SUFFIX))
    try:
        info = json.loads(data['data'].attrs.get('problem_info', '{}'))
    except ValueError:
        return ''
    text = info.get('language_instruction', '')
    return ' '.join(text) if isinstance(text, list) else str(text).strip('"')


def instruction_of(task: str) -> str:
    """'KITCHEN_SCENE3_turn_on_the_stove' or 'turn_on_the_stove' to 'turn on the stove'."""
    words = task.split('_')
    scenes = [i for i, word in enumerate(words) if re.fullmatch(r'SCENE\d+', word)]
    return ' '.join(words[scenes[-1] + 1 :] if scenes else words)
