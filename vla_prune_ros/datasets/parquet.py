# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of parquet files, by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.datasets.base import DataError
from vla_prune_ros.datasets.checks import check_file
from vla_prune_ros.datasets.optional import library

_BATCH = 32  # rows with pictures that are read together


def _open(file: Path, episode: str = '') -> Any:
    library('pyarrow', f'{file.name}: reading LeRobot data')
    parquet = library('pyarrow.parquet', f'{file.name}: reading LeRobot data')
    try:
        check_file(file)
        return parquet.ParquetFile(file)
    except DataError as error:
        raise DataError(file, error.what, error.cure, episode) from error
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise _damaged(file, error, episode) from error


def _damaged(file: Path, error: Exception, episode: str) -> DataError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        file, f'no parquet can be read: {text}', 'cut off or damaged: download it again', episode
    )


def read_rows(file: Path, starts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All rows of a small file; only columns whose names begin with one of `starts`.

    Raises:
        DataError: it cannot be read.
    """
    data = _open(file)
    names = data.schema_arrow.names
    chosen = [n for n in names if not starts or n.startswith(tuple(starts))]
    try:
        return data.read(columns=chosen).to_pylist()
    except (OSError, ValueError) as error:
        raise _damaged(file, error, '') from error


def _groups(data: Any, first: int, length: int) -> tuple[list[int], int]:
    """Row groups that hold some rows, and how many rows of them come before these."""
    sizes = [data.metadata.row_group(k).num_rows for k in range(data.num_row_groups)]
    ends = np.cumsum(sizes)
    chosen = [k for k, end in enumerate(ends) if end > first and end - sizes[k] < first + length]
    return chosen, first - int(ends[chosen[0]] - sizes[chosen[0]]) if chosen else 0


def _batches(
    file: Path, columns: Sequence[str], first: int, length: int, place: Mapping[str, Any]
) -> Iterator[Any]:
    """Record batches that together are the rows `first` to `first + length`.

    Raises:
        DataError: there are fewer, a column is missing, or they cannot be read.
    """
    data = _open(file, place['episode'])
    if missing := [name for name in columns if name not in data.schema_arrow.names]:
        raise DataError(
            what=f'no column {", ".join(missing)}',
            cure=f'there are: {", ".join(data.schema_arrow.names)}',
            **place,
        )
    if length < 1:
        raise DataError(what='meta/ says that it has no step', cure='leave it out', **place)
    rows = data.metadata.num_rows
    if rows < first + length:
        raise DataError(
            what=f'{max(0, rows - first)} rows, where meta/ says {length}',
            cure='download both again',
            **place,
        )
    groups, skip = _groups(data, first, length)
    left = length
    try:
        for batch in data.iter_batches(_BATCH, row_groups=groups, columns=list(columns)):
            if skip >= len(batch):
                skip -= len(batch)
                continue
            part = batch.slice(skip, left)
            skip, left = 0, left - len(part)
            yield part
            if not left:
                return
    except (OSError, ValueError) as error:
        raise _damaged(file, error, place['episode']) from error


def read_columns(
    file: Path, columns: Sequence[str], first: int, length: int, place: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Some rows as arrays by column; lists of numbers become an array of objects."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    for batch in _batches(file, columns, first, length, place):
        for name in columns:
            parts[name].append(batch.column(name).to_numpy(zero_copy_only=False))
    return {name: np.concatenate(values) for name, values in parts.items()}


def read_structs(
    file: Path, column: str, first: int, length: int, place: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The values of a column of structs, one after the other."""
    for batch in _batches(file, [column], first, length, place):
        for value in batch.column(column):
            yield value.as_py() or {}
