# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""TFRecord files of `tf.train.Example` messages, without TensorFlow.

A record is its length (u64, little endian), the masked CRC-32C of that, the data, and the masked
CRC-32C of the data (tensorflow/core/lib/io/record_writer). CRCs are checked if the package
google-crc32c is installed. An Example is a protobuf message: a map from names to lists of bytes,
floats or integers (tensorflow/core/example/feature.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vla_prune_ros.datasets.base import DataError

_HEAD, _CRC = struct.Struct('<QI'), struct.Struct('<I')
_AGAIN = 'copy or download the file again'
Values = list[bytes] | np.ndarray


class Record(NamedTuple):
    """Where the data of a record lies in a file."""

    offset: int
    length: int


def index_records(path: Path) -> tuple[list[Record], DataError | None]:
    """The records of a file, and what is wrong behind the last whole one.

    Data is not read.
    """
    found: list[Record] = []
    size = path.stat().st_size
    with path.open('rb') as file:
        while file.tell() < size:
            offset = file.tell() + _HEAD.size
            head = file.read(_HEAD.size)
            length, crc = _HEAD.unpack(head) if len(head) == _HEAD.size else (size, None)
            end = offset + length + _CRC.size
            if crc is not None and not _matches(head[:8], crc):
                what = f'the length at byte {offset - _HEAD.size} is damaged'
            elif end > size:
                what = f'it ends within the record at byte {offset - _HEAD.size}'
            else:
                found.append(Record(offset, length))
                file.seek(end)
                continue
            return found, DataError(path, f'{what}; {len(found)} episodes before it', _AGAIN)
    return found, None


def read_record(path: Path, record: Record, episode: str) -> bytes:
    """The data of a record.

    Raises:
        DataError: it does not match its checksum.
    """
    with path.open('rb') as file:
        file.seek(record.offset)
        data = file.read(record.length)
        (crc,) = _CRC.unpack(file.read(_CRC.size))
    if not _matches(data, crc):
        raise DataError(path, 'the checksum is wrong: the record is damaged', _AGAIN, episode)
    return data


def _matches(data: bytes, masked: int) -> bool:
    """Whether data has this checksum; True if nobody can tell."""
    try:
        import google_crc32c
    except ModuleNotFoundError:
        return True
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF == masked


def parse_example(data: bytes) -> dict[str, Values]:
    """Name -> list of bytes, float32 [n] or int64 [n].

    Raises:
        ValueError: this is no such message.
    """
    found: dict[str, Values] = {}
    for _, features in _fields(memoryview(data)):
        for _, entry in _fields(features):
            pair = dict(_fields(entry))
            found[bytes(pair[1]).decode()] = _values(pair[2])
    return found


def _values(feature: memoryview) -> Values:
    for kind, content in _fields(feature):
        parts = [value for _, value in _fields(content)]
        if kind == 1:
            return [bytes(part) for part in parts]
        if kind == 2:
            return np.frombuffer(b''.join(map(bytes, parts)), '<f4').astype(np.float32)
        return np.fromiter((n for part in parts for n in _varints(part)), np.int64)
    return []


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of the fields of a message; a varint is its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            start = at
            _, at = _varint(data, at)
        else:
            length, at = (4, at) if kind == 5 else (8, at) if kind == 1 else _varint(data, at)
            if kind not in (1, 2, 5) or at + length > len(data):
                raise ValueError('no protobuf message of an Example')
            start, at = at, at + length
        yield key >> 3, data[start:at]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError('no protobuf message of an Example')


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value - (1 << 64) if value >> 63 else value
