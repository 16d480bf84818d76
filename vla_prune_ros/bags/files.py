# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags on disk: rosbag2 folders and single files, MCAP and sqlite3, for reading.

Needs no rclpy. A bag that is damaged is refused with the reason; what is whole of an MCAP file
without an end can still be had (`salvage`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rosbags.rosbag2 import Reader
from rosbags.rosbag2.storage_mcap import decompress

SUFFIXES = ('.mcap', '.db3')
_MAGIC = b'\x89MCAP0\r\n'
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 3, 4, 5, 6, 15


class BagError(ValueError):
    """A bag that cannot be used; the text says why and what to do."""


class Entry(NamedTuple):
    """One message: when it was received in ns, and its CDR bytes."""

    topic: str
    time: int
    data: bytes


# -- reading -----------------------------------------------------------------------------------
class Bag:
    """A recording, open for reading. Use it as a context manager.

    Attributes:
        path: what was opened.
        types: topic -> message type.
        counts: topic -> number of messages.
        damage: what is wrong with a salvaged bag; '' for a whole one.
    """

    def __init__(self, path: str | Path, salvage: bool = False) -> None:
        """Open a bag.

        Args:
            path: folder, or one .mcap or .db3 file.
            salvage: take what is whole of a damaged MCAP file.

        Raises:
            BagError: there is nothing, or nothing that can be read.
        """
        self.path = Path(path)
        self.files = storage_files(self.path)
        self.damage = ''
        self._stack = ExitStack()
        self._scans: list[_Scan] = []
        self._readers: list[Reader] = []
        try:
            self._open()
        except BagError:
            raise
        except Exception as error:
            self._stack.close()
            self._readers.clear()
            if not salvage or any(file.suffix != '.mcap' for file in self.files):
                raise BagError(self._why(error)) from error
            self._scans = [_Scan(file) for file in self.files]
            self.damage = '; '.join(s.damage for s in self._scans if s.damage) or str(error)
        self.types, self.counts = self._tables()

    def _open(self) -> None:
        whole = self.path.is_dir() and (self.path / 'metadata.yaml').exists()
        for path in [self.path] if whole else self.files:
            self._readers.append(self._stack.enter_context(Reader(path)))

    def _why(self, error: Exception) -> str:
        text = f'{self.path} cannot be read: {type(error).__name__}: {error}'
        if any(file.suffix != '.mcap' for file in self.files):
            return text
        scans = [_Scan(file) for file in self.files]
        found = sum(len(scan.entries) for scan in scans)
        damage = '; '.join(scan.damage for scan in scans if scan.damage)
        return f'{text}\n{damage or "no end"}; {found} messages are whole: use them with --salvage'

    def _tables(self) -> tuple[dict[str, str], dict[str, int]]:
        types: dict[str, str] = {}
        counts: dict[str, int] = {}
        connections = [c for reader in self._readers for c in reader.connections]
        found = [(c.topic, c.msgtype, c.msgcount) for c in connections]
        for scan in self._scans:
            numbers = dict.fromkeys(scan.types, 0)
            for entry in scan.entries:
                numbers[entry.topic] += 1
            found += [(topic, scan.types[topic], n) for topic, n in numbers.items()]
        for topic, kind, count in found:
            if types.setdefault(topic, kind) != kind:
                raise BagError(f'{self.path}: {topic} has two types, {types[topic]} and {kind}')
            counts[topic] = counts.get(topic, 0) + count
        return types, counts

    def messages(self, topics: Collection[str] | None = None) -> Iterator[Entry]:
        """The messages of some topics, or of all, in the order in which they were received.

        Raises:
            BagError: the bag turns out to be damaged on the way.
        """
        if self._scans:
            entries = [entry for scan in self._scans for entry in scan.entries]
            chosen = (e for e in entries if topics is None or e.topic in topics)
            yield from sorted(chosen, key=lambda entry: entry.time)
            return
        for reader in self._readers:
            chosen = [c for c in reader.connections if topics is None or c.topic in topics]
            if not chosen:
                continue
            try:
                for connection, time, data in reader.messages(chosen):
                    yield Entry(connection.topic, time, bytes(data))
            except Exception as error:
                raise BagError(self._why(error)) from error

    def sha256(self) -> str:
        """Digest of the storage files in order."""
        return file_digest(self.files)

    def close(self) -> None:
        """Let go of the files."""
        self._stack.close()

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def storage_files(path: Path) -> list[Path]:
    """The storage files of a bag.

    Raises:
        BagError: there are none.
    """
    if path.is_dir():
        kinds = (*SUFFIXES, *(f'{suffix}.zstd' for suffix in SUFFIXES))
        files = sorted(f for f in path.iterdir() if f.name.endswith(kinds))
        if not files:
            raise BagError(f'{path} is no bag: it holds no {" or ".join(SUFFIXES)} file')
        return sorted(files, key=_number)
    if not path.exists():
        raise BagError(f'{path} does not exist')
    if path.suffix not in SUFFIXES:
        raise BagError(f'{path} is no bag: give a rosbag2 folder, or a {", ".join(SUFFIXES)} file')
    return [path]


def _number(file: Path) -> tuple[int, str]:
    """rosbag2 numbers the files of a split bag: NAME_10 comes after NAME_9."""
    tail = file.name.partition('.')[0].rpartition('_')[2]
    return (int(tail) if tail.isdigit() else 0, file.name)


def file_digest(files: Collection[Path]) -> str:
    """SHA-256 over files in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open('rb') as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class _Scan:
    """What is whole of an MCAP file, read from its start until the first damage.

    Record layout: https://mcap.dev/spec.
    """

    def __init__(self, file: Path) -> None:
        self.types: dict[str, str] = {}
        self.entries: list[Entry] = []
        self.damage = ''
        self._schemas: dict[int, str] = {}
        self._topics: dict[int, str] = {}
        data = file.read_bytes()
        if not data.startswith(_MAGIC):
            self.damage = f'{file.name} does not begin as an MCAP file'
            return
        position = self._records(data, len(_MAGIC))
        if position is not None:
            self.damage = f'{file.name} is damaged or cut off at byte {position} of {len(data)}'

    def _records(self, data: bytes, start: int) -> int | None:
        """Take records one after another; returns where the first broken one begins, if any."""
        position = start
        while position < len(data):
            if position + 9 > len(data):
                return position
            kind, size = struct.unpack_from('<BQ', data, position)
            body = data[position + 9 : position + 9 + size]
            if len(body) < size:
                return position
            if kind == _DATA_END:
                return None
            try:
                self._record(kind, body)
            except Exception:  # whatever a broken record makes of the parsers
                return position
            position += 9 + size
        return position if start else None  # a file has an end of data, a chunk has not

    def _record(self, kind: int, body: bytes) -> None:
        if kind == _SCHEMA:
            self._schemas[struct.unpack_from('<H', body)[0]] = _text(body, 2)[0]
        elif kind == _CHANNEL:
            number, schema = struct.unpack_from('<HH', body)
            topic = _text(body, 4)[0]
            self._topics[number] = topic
            self.types[topic] = self._schemas[schema]
        elif kind == _MESSAGE:
            number, _, time = struct.unpack_from('<HIQ', body)
            self.entries.append(Entry(self._topics[number], time, body[22:]))
        elif kind == _CHUNK:
            _, _, size, checksum = struct.unpack_from('<QQQI', body)
            compression, end = _text(body, 28)
            raw = decompress(body[end + 8 :], compression, size, checksum)
            if self._records(raw, 0) is not None:
                raise ValueError


def _text(body: bytes, start: int) -> tuple[str, int]:
    (size,) = struct.unpack_from('<I', body, start)
    end = start + 4 + size
    return body[start + 4 : end].decode(), end
