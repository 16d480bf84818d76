# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A data set unpacked for training: compressed pictures in one file, numbers in flat columns.

    store.json           name, format, cameras, rate, digest of the source, columns
    episodes.jsonl       one line per episode
    pictures             JPEG bytes as they are, and frames without JPEG as raw bytes
    NAME.TYPE            the columns: index, actions, proprio, label_*, extra_*, label_extra_*
    dataset_statistics.json   in the published layout

Columns are mapped from their files, so that processes share them; pictures are read one by one.
`storing.py` makes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.datasets.base import Picture, chunk_starts
from vla_prune_ros.datasets.statistics import FILE

HEAD, EPISODES, PICTURES = 'store.json', 'episodes.jsonl', 'pictures'


def column(path: Path, columns: Mapping[str, list], name: str) -> np.ndarray:
    """A column of a store, mapped from its file."""
    dtype, *tail = columns[name]
    file = path / f'{name}.{dtype}'
    if not file.stat().st_size:
        return np.empty((0, *tail), dtype)
    return np.memmap(file, dtype, 'r').reshape(-1, *tail)


@dataclass(frozen=True)
class Samples:
    """What can be trained on: N pairs of an observed frame and the chunk that answers it.

    Attributes:
        frame: int64 [N], of the store.
        episode: int64 [N], index into the store's `episodes`.
        instruction: int64 [N], index into the store's `instructions`.
        at: int64 [N], the row of `source` that a chunk is at, or that it begins with.
        source: float32 [F, A], the actions of all frames, or [N, K, A], chunks.
        chunk: actions per chunk, K.
    """

    frame: np.ndarray
    episode: np.ndarray
    instruction: np.ndarray
    at: np.ndarray
    source: np.ndarray
    chunk: int

    def __len__(self) -> int:
        return len(self.frame)

    def actions(self, index: np.ndarray) -> np.ndarray:
        """Chunks float32 [B, K, A] of some samples [B], in robot units."""
        if self.source.ndim == 3:
            return self.source[self.at[index]]
        return self.source[self.at[index][:, None] + np.arange(self.chunk)]


class Store:
    """A complete store, open for reading.

    Attributes:
        path: its folder.
        name: key of the statistics.
        cameras: third-person view first.
        rate: of the actions, Hz; None if unknown.
        statistics: the entry of `dataset_statistics.json`.
        episodes: id, frames, labels, instructions and segments of each.
        instructions: all different ones.
        actions: float32 [F, A] of all frames.
        proprio: float32 [F, P]; None for a robot without.
        extras: further numbers [F, ...] of every frame.
        label_extras: further numbers [N, ...] of every label, where the data has labels.
    """

    def __init__(self, path: str | Path) -> None:
        """Open it.

        Raises:
            FileNotFoundError: there is no complete store.
        """
        self.path = Path(path)
        if not (self.path / HEAD).exists():
            raise FileNotFoundError(f'{self.path} is no store of a data set, or not complete')
        head = json.loads((self.path / HEAD).read_text(encoding='utf-8'))
        self.name, self.rate = head['name'], head['rate']
        self.cameras = tuple(head['cameras'])
        self.source: str = head['source']
        self.statistics = json.loads((self.path / FILE).read_text())[self.name]
        lines = (self.path / EPISODES).read_text(encoding='utf-8').splitlines()
        entries = (json.loads(line) for line in lines)
        self.episodes: list[dict[str, Any]] = [e for e in entries if 'left_out' not in e]
        texts = (text for entry in self.episodes for text in entry['instructions'])
        self.instructions = tuple(dict.fromkeys(texts))
        columns: dict[str, list] = head['columns']

        def get(name: str) -> np.ndarray | None:
            return column(self.path, columns, name) if name in columns else None

        def named(head: str) -> dict[str, np.ndarray]:
            names = [name for name in columns if name.startswith(head)]
            return {name.removeprefix(head): column(self.path, columns, name) for name in names}

        self.actions = column(self.path, columns, 'actions')
        self.proprio = get('proprio')
        self.extras, self.label_extras = named('extra_'), named('label_extra_')
        self._index = column(self.path, columns, 'index')
        self._labels = [get(f'label_{name}') for name in ('frame', 'instruction', 'actions')]
        self._file = os.open(self.path / PICTURES, os.O_RDONLY)

    def __len__(self) -> int:
        """Frames."""
        return len(self.actions)

    def picture(self, frame: int, camera: int) -> Picture:
        """JPEG bytes, or uint8 [H, W, 3] that went through JPEG. May be called in threads."""
        offset, length, height, width = self._index[frame, camera]
        content = os.pread(self._file, length, offset)
        if not height:
            return content
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)

    def has_chunk(self, episode: int, chunk: int) -> bool:
        """Whether an episode has a sample: a label, or a segment as long as a chunk."""
        entry = self.episodes[episode]
        segments = entry['segments'] or [(0, entry['frames'])]
        return bool(entry['labels']) or any(stop - start >= chunk for start, stop in segments)

    def samples(self, chunk: int, episodes: Collection[int] | None = None) -> Samples:
        """All samples of some episodes, or of all.

        An episode that is shorter than a chunk has none.

        Raises:
            ValueError: the data has chunks of another length, or there is no sample.
        """
        wanted = range(len(self.episodes)) if episodes is None else sorted(episodes)
        numbers = {text: number for number, text in enumerate(self.instructions)}
        counts = [(entry['frames'], entry['labels']) for entry in self.episodes]
        first = np.concatenate([[(0, 0)], np.cumsum(counts, axis=0)])
        frame, instruction, source = self._labels
        if source is not None and source.shape[1] != chunk:
            raise ValueError(f'{self.path} has chunks of {source.shape[1]} actions, not {chunk}')
        parts = []
        for number in wanted:
            entry, (begin, label) = self.episodes[number], first[number]
            table = np.array([numbers[text] for text in entry['instructions']])
            if frame is not None and instruction is not None:
                at = np.arange(label, label + entry['labels'])
                parts.append((frame[at], at, table[instruction[at]], number))
                continue
            segments = entry['segments'] or [(0, entry['frames'])]
            for part, segment in enumerate(segments):
                at = begin + chunk_starts([segment], chunk)
                text = table[part if len(table) > 1 else 0]
                parts.append((at, at, np.full(len(at), text), number))
        if not any(len(at) for _, at, _, _ in parts):
            raise ValueError(f'{self.path}: no episode is as long as a chunk of {chunk} actions')
        return Samples(
            frame=np.concatenate([p[0] for p in parts]),
            episode=np.concatenate([np.full(len(p[1]), p[3]) for p in parts]),
            instruction=np.concatenate([p[2] for p in parts]),
            at=np.concatenate([p[1] for p in parts]),
            source=self.actions if source is None else source,
            chunk=chunk,
        )

    def close(self) -> None:
        """Let go of the pictures."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the store anew."""
        return {'path': self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state['path'])  # type: ignore[misc]
