# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags on disk: rosbag2 folders and single files, MCAP and sqlite3, for reading.

Needs no rclpy. MCAP is read by the `mcap` library, the rest by `rosbags`. A bag that is damaged is
refused with the reason; what is whole of an MCAP file without an end can still be had (`salvage`).

Order: messages come as they were published, as far as the bag says when that was (MCAP does), for
on the way messages of different topics overtake each other: on a busy machine by seconds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from heapq import heappop, heappush
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mcap.reader import make_reader
from mcap.records import Channel, Chunk, Footer, Message, Metadata, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.rosbag2 import Reader

SUFFIXES = ('.mcap', '.db3')
NOTES = 'vla_prune_ros'  # name of the MCAP record with facts about a recording
LOST = 'lost.'  # such a fact: messages of a topic that are not in the bag
ON_THE_WAY = 5_000_000_000  # ns between publishing and recording that are made up for


class BagError(ValueError):
    """A bag that cannot be used; the text says why.

    Attributes:
        whole: messages of a damaged one that can be had all the same, with `salvage`.
    """

    def __init__(self, text: str, whole: int = 0) -> None:
        super().__init__(text)
        self.whole = whole


class Entry(NamedTuple):
    """One message: when it was published (or else recorded) in ns, and its CDR bytes."""

    topic: str
    time: int
    data: bytes


Recorded = tuple[int, Entry]  # when it was recorded, ns


# -- reading -----------------------------------------------------------------------------------
class Bag:
    """A recording, open for reading. Use it as a context manager.

    Attributes:
        path: what was opened.
        types: topic -> message type.
        counts: topic -> number of messages.
        lost: topic -> number of messages that the recorder knows to be missing.
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
        self._mcap = all(file.suffix == '.mcap' for file in self.files)
        self._parts: list[_Mcap | _Salvaged | _Other] = []
        try:
            self._open()
        except Exception as error:
            self._stack.close()
            if not salvage or not self._mcap:
                raise self._refusal(error) from error
            self._parts = scans = [_Salvaged(file) for file in self.files]
            self.damage = '; '.join(s.damage for s in scans if s.damage) or str(error)
        self.types: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        for part in self._parts:
            self._add(part)

    def _open(self) -> None:
        if self._mcap:
            self._parts += [_Mcap(self._stack.enter_context(f.open('rb'))) for f in self.files]
            return
        whole = self.path.is_dir() and (self.path / 'metadata.yaml').exists()
        for path in [self.path] if whole else self.files:
            self._parts.append(_Other(self._stack.enter_context(Reader(path))))

    def _refusal(self, error: Exception) -> BagError:
        cause = f'{type(error).__name__}: {error}' if str(error) else type(error).__name__
        text = f'{self.path} cannot be read: {cause}'
        if not self._mcap:
            return BagError(text)
        scans = [_Salvaged(file) for file in self.files]
        found = sum(len(scan.found) for scan in scans)
        damage = '; '.join(scan.damage for scan in scans if scan.damage)
        return BagError(f'{text}\n{damage or "no end"}; {found} messages are whole', found)

    def _add(self, part: _Mcap | _Salvaged | _Other) -> None:
        for topic, kind in part.types.items():
            if self.types.setdefault(topic, kind) != kind:
                raise BagError(f'{self.path}: {topic} has two types, {self.types[topic]}, {kind}')
            self.counts[topic] += part.counts[topic]
        for key, value in part.notes.items():
            if key.startswith(LOST) and value.isdigit():
                self.lost[key.removeprefix(LOST)] += int(value)

    def messages(
        self, topics: Collection[str] | None = None, since: int = 0, until: int | None = None
    ) -> Iterator[Entry]:
        """The messages of some topics, or of all, in the order in which they were published.

        Args:
            topics: names; None: all.
            since: time of publishing, ns, from which on all are there; some earlier ones may be.
            until: and up to which, later ones likewise.

        Raises:
            BagError: the bag turns out to be damaged on the way.
        """
        end = None if until is None else until + ON_THE_WAY  # recorded later than published
        try:
            for part in self._parts:
                yield from as_published(part.recorded(topics, since, end))
        except (GeneratorExit, BagError):
            raise
        except Exception as error:
            raise self._refusal(error) from error

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


def as_published(recorded: Iterable[Recorded]) -> Iterator[Entry]:
    """Messages in the order of their publishing, from the order of their recording.

    A clock that is wrong by more than `ON_THE_WAY` gets its messages in the order of recording.
    """
    heap: list[tuple[int, int, Entry]] = []
    for number, (time, entry) in enumerate(recorded):
        heappush(heap, (min(entry.time, time), number, entry))
        while heap[0][0] <= time - ON_THE_WAY:
            yield heappop(heap)[2]
    while heap:
        yield heappop(heap)[2]


class _Mcap:
    """A whole MCAP file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._reader = make_reader(stream, validate_crcs=True)
        summary = self._reader.get_summary()
        if summary is None or summary.statistics is None:
            raise BagError('no index')
        self.types: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        for number, channel in summary.channels.items():
            self.types[channel.topic] = _type_of(channel, summary.schemas)
            found = summary.statistics.channel_message_counts.get(number, 0)
            self.counts[channel.topic] += found
        self.notes: dict[str, str] = {}
        for record in self._reader.iter_metadata():
            if record.name == NOTES:
                self.notes |= record.metadata

    def recorded(
        self, topics: Collection[str] | None, since: int, end: int | None
    ) -> Iterator[Recorded]:
        """Messages in the order of their recording, of that time."""
        span = {'starting_at': since, 'ending_before': end}
        for _, channel, message in self._reader.iter_messages(topics, **span):
            yield _recorded(channel.topic, message)


class _Other:
    """A bag in another format."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.types = {c.topic: c.msgtype for c in reader.connections}
        self.counts: Counter[str] = Counter()
        for connection in reader.connections:
            self.counts[connection.topic] += connection.msgcount
        self.notes: dict[str, str] = {}

    def recorded(
        self, topics: Collection[str] | None, since: int, end: int | None
    ) -> Iterator[Recorded]:
        """Messages in the order of their recording, of that time."""
        chosen = [c for c in self._reader.connections if topics is None or c.topic in topics]
        for connection, time, data in self._reader.messages(chosen, since, end) if chosen else ():
            yield time, Entry(connection.topic, time, bytes(data))


class _Salvaged:
    """What is whole of an MCAP file, read from its start until the first damage."""

    def __init__(self, file: Path) -> None:
        self.types: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.notes: dict[str, str] = {}
        self.found: list[Recorded] = []
        self.damage = ''
        self._schemas: dict[int, Schema] = {}
        self._topics: dict[int, str] = {}
        size, position = file.stat().st_size, 0
        with file.open('rb') as stream:
            reader = StreamReader(
                stream, emit_chunks=True, validate_crcs=True, record_size_limit=size
            )
            try:
                for record in reader.records:
                    inner = breakup_chunk(record, True) if isinstance(record, Chunk) else [record]
                    for one in inner:
                        self._take(one)
                    position = stream.tell()
                    if isinstance(record, Footer):
                        return
            except Exception:  # whatever a broken record makes of the parsers
                self.damage = f'{file.name} is damaged or cut off at byte {position} of {size}'

    def _take(self, record: object) -> None:
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        elif isinstance(record, Channel):
            self._topics[record.id] = record.topic
            self.types[record.topic] = _type_of(record, self._schemas)
        elif isinstance(record, Message):
            topic = self._topics[record.channel_id]
            self.counts[topic] += 1
            self.found.append(_recorded(topic, record))
        elif isinstance(record, Metadata) and record.name == NOTES:
            self.notes |= record.metadata

    def recorded(
        self, topics: Collection[str] | None, since: int, end: int | None
    ) -> Iterator[Recorded]:
        """Messages in the order of their recording, of that time."""
        chosen = (
            (time, entry)
            for time, entry in self.found
            if (topics is None or entry.topic in topics)
            and since <= time
            and (end is None or time < end)
        )
        return iter(sorted(chosen, key=lambda found: found[0]))


def _type_of(channel: Channel, schemas: dict[int, Schema]) -> str:
    return schemas[channel.schema_id].name if channel.schema_id else ''


def _recorded(topic: str, message: Message) -> Recorded:
    time = message.log_time
    return time, Entry(topic, message.publish_time or time, message.data)


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
