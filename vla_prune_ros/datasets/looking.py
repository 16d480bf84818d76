# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is in a data set, in numbers, and everything that is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from vla_prune_ros.datasets.base import DataError, DataSet, Episode, Picture
from vla_prune_ros.datasets.statistics import statistics
from vla_prune_ros.vla.pictures import decode_jpeg

FIRST_FRAMES = 8  # episodes whose first frames are kept
_BEYOND = 1e-3  # of a delta outside of -1..1 that is more than rounding
_DARK = 3.0  # grey levels that all of a picture lies within


@dataclass
class Findings:
    """What was found.

    Attributes:
        episodes: that can be read.
        frames: steps of all of them.
        samples: chunks that can be trained on.
        short: episodes that are shorter than a chunk.
        instructions: text -> episodes.
        sizes: camera -> picture sizes (width, height) -> episodes.
        statistics: the entry of dataset_statistics.json; None without episodes.
        open_share: share of the steps with the gripper open; None without a gripper.
        gripper_changes: how often it opens or closes, per episode.
        first: (episode, instruction, camera -> first frame uint8 [H, W, 3]) of some episodes.
        errors: what makes data unusable.
        warnings: what may be wrong.
    """

    episodes: int = 0
    frames: int = 0
    samples: int = 0
    short: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, Counter[tuple[int, int]]] = field(default_factory=dict)
    statistics: dict[str, Any] | None = None
    open_share: float | None = None
    gripper_changes: list[int] = field(default_factory=list)
    first: list[tuple[str, str, dict[str, np.ndarray]]] = field(default_factory=list)
    errors: list[DataError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def look_at(
    data: DataSet, chunk: int = 8, every_picture: bool = False, progress: bool = False
) -> Findings:
    """Read every episode, and of its pictures the first of each camera, or all of them.

    Args:
        data: open.
        chunk: actions per chunk that are to be trained on.
        every_picture: decode all pictures; takes about as long as making the store.
        progress: show a bar.
    """
    found = Findings(sizes={camera: Counter() for camera in data.cameras})
    actions: list[np.ndarray] = []
    proprio: list[np.ndarray] = []
    worst: tuple[float, str] = (0.0, '')
    for index in tqdm(range(len(data)), unit='episode', desc=data.name, disable=not progress):
        try:
            episode = data.read(index)
            _require_widths(episode, actions, proprio)
            frames = _pictures(episode, data.cameras, every_picture, found)
        except DataError as error:
            found.errors.append(error)
            continue
        if len(found.first) < FIRST_FRAMES:
            found.first.append((episode.id, episode.instructions[0], frames))
        chunks = _count(episode, chunk, found)
        if chunks is not None:
            actions.append(chunks)
        if episode.proprio is not None:
            proprio.append(episode.proprio)
        worst = max(worst, _beyond(episode, data))
        if not data.mask(episode.actions.shape[1])[-1]:
            is_open = episode.actions[:, -1] > 0.5
            found.gripper_changes.append(int(np.abs(np.diff(is_open.astype(int))).sum()))
    if actions:
        _sum_up(data, found, np.concatenate(actions), proprio, worst, chunk)
    elif not found.errors:
        found.errors.append(DataError(data.path, 'there is no episode'))
    return found


def _require_widths(
    episode: Episode, actions: list[np.ndarray], proprio: list[np.ndarray]
) -> None:
    for what, values, before in (
        ('actions', episode.actions, actions),
        ('states', episode.proprio, proprio),
    ):
        width = None if values is None else values.shape[1]
        known = before[0].shape[1] if before else None
        if actions and width != known:
            raise DataError(
                episode.file,
                f'{what} have {width or "no"} numbers, in the episodes before it {known or "no"}',
                'leave it out: one data set has one robot',
                episode.id,
            )


def _pictures(
    episode: Episode, cameras: tuple[str, ...], everything: bool, found: Findings
) -> dict[str, np.ndarray]:
    """First frames; their sizes are counted, and what is odd about them is noted."""
    first = {}
    for camera in cameras:
        count = 0
        for count, picture in enumerate(episode.pictures[camera], start=1):
            if count == 1 or everything:
                frame = _decoded(picture, episode, camera, count - 1)
            if count == 1:
                first[camera] = frame
                if not everything:
                    break
        if everything and count != len(episode):
            raise DataError(
                episode.file,
                f'{len(episode)} steps, but {count} pictures of {camera}',
                'the recording was cut off: leave it out',
                episode.id,
            )
        if camera in first:
            height, width, _ = first[camera].shape
            found.sizes[camera][width, height] += 1
            if np.ptp(first[camera].astype(float)) < _DARK:
                found.warnings.append(
                    f'{episode.file}, episode {episode.id}: the first picture of {camera} is of'
                    ' one colour: was the camera covered or not connected?'
                )
    return first


def _decoded(picture: Picture, episode: Episode, camera: str, step: int) -> np.ndarray:
    if isinstance(picture, np.ndarray):
        return picture
    try:
        return decode_jpeg(picture)
    except ValueError as error:
        raise DataError(
            episode.file,
            f'a picture of {camera} cannot be decoded: {error}',
            'copy the file again, or leave the episode out',
            episode.id,
            step,
        ) from error


def _count(episode: Episode, chunk: int, found: Findings) -> np.ndarray | None:
    """Count an episode; its actions [N, A] as the statistics take them."""
    found.episodes += 1
    found.frames += len(episode)
    labels = episode.labels
    if labels is None:
        samples = len(episode.starts(chunk))
        found.instructions.update(set(episode.instructions))
        actions = episode.actions
    else:
        samples = len(labels.frame) if labels.actions.shape[1] == chunk else 0
        found.instructions.update({episode.instructions[i] for i in labels.instruction})
        actions = labels.actions.reshape(-1, labels.actions.shape[-1])
    found.samples += samples
    found.short += not samples
    return actions


def _beyond(episode: Episode, data: DataSet) -> tuple[float, str]:
    """How far a delta of one arm is outside of -1..1, and where."""
    if data.mask(episode.actions.shape[1])[-1]:
        return 0.0, ''  # absolute joints
    over = np.abs(episode.actions[:, :-1]) - 1
    step, number = np.unravel_index(over.argmax(), over.shape)
    value = episode.actions[step, number]
    where = f'{episode.file}, episode {episode.id}, step {step}: number {number} is {value:g}'
    return float(over.max()), where


def _sum_up(
    data: DataSet,
    found: Findings,
    actions: np.ndarray,
    proprio: list[np.ndarray],
    worst: tuple[float, str],
    chunk: int,
) -> None:
    states = np.concatenate(proprio) if proprio else None
    mask = data.mask(actions.shape[1])
    found.statistics = statistics(actions, states, mask, found.episodes)
    for what, block in found.statistics.items():
        if isinstance(block, dict):
            pairs = zip(block['min'], block['max'], strict=True)
            same = [str(k) for k, (low, high) in enumerate(pairs) if low == high]
            if same:
                found.warnings.append(
                    f'{what}: number {", ".join(same)} never changes (allowed; its labels are 0)'
                )
    if worst[0] > _BEYOND:
        found.warnings.append(
            f'{worst[1]}, beyond -1..1: deltas are in units of the controller; in metres or'
            ' degrees they would be another action'
        )
    if not mask[-1]:
        found.open_share = float((actions[:, -1] > 0.5).mean())
        still = sum(not changes for changes in found.gripper_changes)
        if still and still == found.episodes:
            found.warnings.append('the gripper never opens or closes: is the convention right?')
        elif still:
            found.warnings.append(f'the gripper never opens or closes in {still} episodes')
    if found.short and found.samples:
        found.warnings.append(
            f'{found.short} episodes are shorter than a chunk of {chunk} actions'
        )
    if not found.samples:
        what = f'no episode is as long as a chunk of {chunk} actions'
        found.errors.append(DataError(data.path, what, 'record longer episodes'))
