# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every reader gives: a data set of whole episodes, in the policy's conventions.

Numbers of one episode are in memory, its pictures are read when they are asked for, one after the
other. Everything is upright, the gripper is 1 for open and 0 for closed, and the observation of a
step is what the robot saw before the action of that step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from vla_prune_ros.datasets.gripper import GRIPPERS

# JPEG bytes (quality 95, 4:2:0: the one compression that a camera frame goes through), or uint8
# [H, W, 3], a frame that already went through it.
Picture = bytes | np.ndarray


class DataError(ValueError):
    """Data that cannot be used: where, what is wrong, and the cure.

    Attributes:
        file: that is concerned.
        episode: its id; '' if the whole file is concerned.
        step: of the episode; None if all of it is concerned.
        what: what is wrong.
        cure: what to do about it.
    """

    def __init__(
        self,
        file: Path | str,
        what: str,
        cure: str = '',
        episode: str = '',
        step: int | None = None,
    ) -> None:
        self.file, self.what, self.cure = str(file), what, cure
        self.episode, self.step = episode, step
        place = self.file
        place += f', episode {episode}' if episode else ''
        place += f', step {step}' if step is not None else ''
        super().__init__(f'{place}: {what}' + (f'; {cure}' if cure else ''))


class Pictures(Protocol):
    """The pictures of one camera in one episode: iterate as often as needed, front to back."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Picture]: ...


@dataclass(frozen=True)
class Labels:
    """Chunks that are not the next actions of the episode itself, such as an expert's answers.

    Attributes:
        frame: int64 [N], the step that is observed.
        instruction: int64 [N], index into the instructions of the episode.
        actions: float32 [N, K, A], the chunk.
        extras: further numbers [N, ...] for auxiliary losses.
    """

    frame: np.ndarray
    instruction: np.ndarray
    actions: np.ndarray
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Episode:
    """One demonstration of T steps.

    Attributes:
        id: unique in its data set, the same whenever it is read.
        file: where it comes from.
        instructions: what to do: one, or one for each segment, or those that `labels` answer.
        actions: float32 [T, A] in robot units, gripper 1 open, 0 closed. With `labels`, the
            first action of the first label of each step.
        proprio: float32 [T, P]; None for a robot without.
        pictures: camera -> T pictures.
        segments: steps (first, end) that belong together; no chunk goes beyond the end of one.
        labels: chunks in the place of the episode's own.
        extras: further numbers [T, ...] for auxiliary losses.
    """

    id: str
    file: Path
    instructions: tuple[str, ...]
    actions: np.ndarray
    proprio: np.ndarray | None
    pictures: Mapping[str, Pictures]
    segments: tuple[tuple[int, int], ...] = ()
    labels: Labels | None = None
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    def starts(self, chunk: int) -> np.ndarray:
        """Steps int64 [N] at which a whole chunk of the episode's own actions begins.

        Nothing is padded: the last steps of a segment are no observations (OpenVLA-OFT,
        traj_transforms.py).
        """
        return chunk_starts(self.segments or ((0, len(self)),), chunk)


def chunk_starts(segments: Iterable[Sequence[int]], chunk: int) -> np.ndarray:
    """Steps int64 [N] at which a chunk fits into one of the segments (first, end)."""
    ranges = [np.arange(a, b - chunk + 1, dtype=np.int64) for a, b in segments]
    return np.concatenate([*ranges, np.empty(0, np.int64)])


@dataclass(frozen=True)
class ReadOptions:
    """What a file does not say, or says otherwise.

    Attributes:
        format: of `FORMATS`; '' looks at the files.
        name: of the data set, the key of its statistics; '' takes that of the folder.
        cameras: our name -> the name in the file, third-person view first; empty: a guess that
            the data set notes.
        state: key of the robot state; '' takes the usual one.
        action: key of the actions; '' takes the usual one.
        rotate: degrees by which pictures are turned, 0 or 180; None takes what is usual.
        gripper: convention of the file, see `gripper.py`; '' takes what is usual.
        rate: of the actions, Hz; None takes what the file says.
        instruction: for episodes that have none.
        skip_damaged: leave out what cannot be read, and note it.
        only_success: bags: only episodes that the simulation or robot reports as successful.
    """

    format: str = ''
    name: str = ''
    cameras: Mapping[str, str] = field(default_factory=dict)
    state: str = ''
    action: str = ''
    rotate: int | None = None
    gripper: str = ''
    rate: float | None = None
    instruction: str = ''
    skip_damaged: bool = False
    only_success: bool = False

    def __post_init__(self) -> None:
        if self.rotate not in (None, 0, 180):
            raise ValueError(f'pictures can be turned by 0 or 180 degrees, not {self.rotate}')
        if self.gripper and self.gripper not in GRIPPERS:
            raise ValueError(f'unknown gripper convention {self.gripper!r}; {GRIPPERS_TEXT}')
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f'a control rate of {self.rate} Hz is not above 0')


GRIPPERS_TEXT = 'valid: ' + '; '.join(f'{name} ({text})' for name, text in GRIPPERS.items())


class DataSet(ABC):
    """Episodes of one robot under one name.

    Attributes:
        format: which reader this is, a name of `FORMATS`.
        path: what was opened.
        name: key of its statistics.
        cameras: names, third-person view first; every episode has all of them.
        rate: of the actions, Hz; None if the files do not say it.
        notes: what was guessed or left out, as sentences.
    """

    format: str
    path: Path
    name: str
    cameras: tuple[str, ...]
    rate: float | None
    notes: list[str]

    @abstractmethod
    def __len__(self) -> int:
        """How many episodes there are."""

    @abstractmethod
    def read(self, index: int) -> Episode:
        """Episode `index`, checked.

        Raises:
            DataError: it cannot be used.
        """

    def mask(self, width: int) -> list[bool]:
        """Which of `width` numbers of an action are normalised: all but the gripper, the last."""
        return [True] * (width - 1) + [False]

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """Every file that the data is in: its digest is theirs."""

    def __iter__(self) -> Iterator[Episode]:
        for index in range(len(self)):
            yield self.read(index)
