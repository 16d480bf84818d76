# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What must be true of every episode, and of every file before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.datasets.base import DataError, Episode
from vla_prune_ros.datasets.gripper import to_policy

_LFS = b'version https://git-lfs'


def check_file(path: Path) -> None:
    """A file that is there and holds data.

    Raises:
        DataError: it is missing, empty, or the pointer that git-lfs leaves in its place.
    """
    if not path.exists():
        raise DataError(path, 'there is no such file', 'copy or download the data set again')
    with path.open('rb') as file:
        head = file.read(len(_LFS))
    if head == _LFS:
        raise DataError(path, 'this is a git-LFS pointer, not the data', 'run: git lfs pull')
    if not head:
        raise DataError(path, 'the file is empty', 'copy or download it again')


def converted(actions: np.ndarray, convention: str, **place: Any) -> np.ndarray:
    """Actions [T, A] with the gripper in our convention.

    Raises:
        DataError: the numbers are those of another one; `place` says where.
    """
    try:
        return to_policy(actions, convention)
    except ValueError as error:
        raise DataError(what=str(error), cure='say which one with --gripper', **place) from error


def said(
    texts: Sequence[str], instead: str
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Instructions of an episode, and the steps (first, end) that each is for, if it has several.

    Args:
        texts: the instruction at every step.
        instead: of blank ones.
    """
    texts = [text if text.strip() else instead for text in texts]
    changes = [k for k in range(1, len(texts)) if texts[k] != texts[k - 1]]
    bounds = [0, *changes, len(texts)]
    segments = tuple(pairwise(bounds)) if changes else ()
    return tuple(texts[k] for k in bounds[:-1]), segments


def checked(episode: Episode) -> Episode:
    """The episode, if it can be used.

    Raises:
        DataError: lengths differ, a number is not finite, or there is no instruction.
    """
    steps = len(episode.actions)
    if not steps:
        raise _error(episode, 'there is no step')
    lengths = {'actions': steps}
    if episode.proprio is not None:
        lengths['states'] = len(episode.proprio)
    lengths |= {f'pictures of {name}': len(p) for name, p in episode.pictures.items()}
    if len(set(lengths.values())) > 1:
        text = ', '.join(f'{n} {what}' for what, n in lengths.items())
        raise _error(episode, f'the lengths differ: {text}', 'the recording was cut off: leave it')
    for what, values in (('action', episode.actions), ('state', episode.proprio)):
        if values is None:
            continue
        if values.ndim != 2 or values.dtype != np.float32:
            raise _error(episode, f'{what}s are {values.dtype} {values.shape}, not [T, n] numbers')
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            step, number = (int(v) for v in bad[0])
            raise _error(
                episode,
                f'number {number} of the {what} is {values[step, number]},'
                f' as are {len(bad) - 1} more in this episode',
                'repair the recorder or leave the episode out',
                step,
            )
    several = len(episode.instructions) > 1 and episode.labels is None
    assert not several or len(episode.instructions) == len(episode.segments)
    if not episode.instructions or not all(text.strip() for text in episode.instructions):
        raise _error(episode, 'there is no instruction', 'give one with --instruction')
    return episode


def _error(episode: Episode, what: str, cure: str = '', step: int | None = None) -> DataError:
    return DataError(episode.file, what, cure, episode.id, step)
