# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which camera of a data set is which: third-person view first, then the wrists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vla_prune_ros.datasets.base import DataError

_WRIST = ('wrist', 'hand', 'gripper', 'image2')


def guess_cameras(keys: Sequence[str], notes: list[str], path: Path) -> dict[str, str]:
    """Our names and those of the file, third-person view first; the guess is noted.

    One view that is not on a wrist is wanted; more of them are left out, and noted, too.

    Raises:
        DataError: there is no camera, or nobody can tell which is the third-person view.
    """
    if not keys:
        raise DataError(path, 'there are no pictures', 'this data cannot train a policy that sees')
    wrists = [key for key in keys if any(word in _tail(key) for word in _WRIST)]
    others = [key for key in keys if key not in wrists]
    chosen = _third_person(others) if others else None
    if chosen is None:
        raise DataError(
            path,
            f'which camera is the third-person view cannot be told: {", ".join(keys)}',
            'name them, third-person view first: --cameras agentview=KEY,wrist=KEY',
        )
    cameras = {'agentview': chosen} | _wrist_names(wrists)
    text = ', '.join(f'{ours}={theirs}' for ours, theirs in cameras.items())
    left = sorted(set(keys) - set(cameras.values()))
    notes.append(
        f'cameras: {text}' + (f'; left out: {", ".join(left)}' if left else '') + ' (--cameras)'
    )
    return cameras


def _third_person(keys: Sequence[str]) -> str | None:
    if len(keys) == 1:
        return keys[0]
    for word in ('image', 'agentview', 'cam_high', 'front', 'top', 'high'):
        same = [key for key in keys if _tail(key) == word]
        if len(same) == 1:
            return same[0]
    return None


def _wrist_names(keys: Iterable[str]) -> dict[str, str]:
    keys = list(keys)
    if len(keys) == 1:
        return {'wrist': keys[0]}
    return {
        f'{side}_wrist': key for side in ('left', 'right') for key in keys if side in _tail(key)
    }


def _tail(key: str) -> str:
    return key.rpartition('.')[2].lower()
