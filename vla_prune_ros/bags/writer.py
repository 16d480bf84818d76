# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""New bags: rosbag2 folders, MCAP or sqlite3. Needs no rclpy. Nothing is ever written over."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import PendingChunk
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from vla_prune_ros.bags.files import BagError

STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}
METADATA_VERSION = 8  # the newest that older rosbag2 releases read, too
RESERVE = 256 * 1024  # bytes kept free for the end of a recording
FOREVER = QosTime(9223372036, 854775807)  # RMW_DURATION_INFINITE


@cache
def typestore() -> Typestore:
    """Definitions and hashes of the standard messages."""
    return get_typestore(Stores.ROS2_KILTED)


def qos(reliable: bool = True, latched: bool = False, depth: int = 10) -> Qos:
    """A publisher's quality of service, as a bag keeps it for `ros2 bag play`."""
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        FOREVER,
        FOREVER,
        QosLiveliness.AUTOMATIC,
        FOREVER,
        avoid_ros_namespace_conventions=False,
    )


class BagWriter:
    """A new bag. Every `flush` puts all messages so far on the disk, readable by `salvage`.

    When the disk is full, `write` and `flush` raise OSError; `close` then ends the file after the
    last whole chunk, in space that was set aside for it.
    """

    def __init__(
        self, path: str | Path, storage: str = 'mcap', compression: str = 'zstd', **custom: str
    ) -> None:
        """Make the bag's folder.

        Raises:
            BagError: the path exists.
            OSError: the folder cannot be made.
        """
        self.path = Path(path)
        if self.path.exists():
            raise BagError(f'{self.path} exists; a bag is never written over')
        self._writer = Writer(
            self.path, version=METADATA_VERSION, storage_plugin=STORAGES[storage]
        )
        if compression != 'none' and storage == 'mcap':
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        for key, value in {'writer': 'vla_prune_ros', **custom}.items():
            self._writer.set_custom_data(key, value)
        self._writer.open()
        self._connections: dict[str, Any] = {}
        self._mcap = storage == 'mcap'
        self._failed = False
        self._reserve = self.path / '.reserve'
        self._reserve.write_bytes(b'\1' * RESERVE)
        self.flush()

    def add_topic(self, topic: str, kind: str, *profiles: Qos) -> None:
        """Announce a topic, with the quality of service of its publishers.

        Raises:
            BagError: there is no definition of the message type.
        """
        if kind not in typestore().fielddefs:
            raise BagError(f'{topic}: no definition of {kind}')
        self._connections[topic] = self._writer.add_connection(
            topic, kind, typestore=typestore(), offered_qos_profiles=profiles or (qos(),)
        )

    def write(self, topic: str, time: int, data: bytes) -> None:
        """Add a message that was received at `time` (ns)."""
        storage = self._writer.storage
        chunks = len(storage.chunks) if self._mcap else 0
        self._guarded(lambda: self._writer.write(self._connections[topic], time, data))
        if self._mcap and len(storage.chunks) > chunks:
            self._on_disk()

    def flush(self) -> None:
        """Put everything on the disk."""
        storage = self._writer.storage
        if self._mcap and storage is not None and not self._failed:
            if storage.chunk.msgs:
                self._guarded(storage.close_chunk)
            self._on_disk()

    @property
    def counts(self) -> dict[str, int]:
        """Messages by topic; after `close` those that really are in the bag."""
        return {topic: self._writer.counts[c.id] for topic, c in self._connections.items()}

    def _on_disk(self) -> None:
        """Remember that everything up to here is whole."""
        self._guarded(self._writer.storage.bio.flush)
        self._whole = self._state()

    def _state(self) -> tuple[int, dict, dict, int]:
        """Bytes, message counts of both layers, and last time of what is on the disk."""
        writer, storage = self._writer, self._writer.storage
        statistics = dict(storage.channel_stats)
        return storage.bio.tell(), dict(writer.counts), statistics, writer.max_timestamp

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError:
            self._failed = True
            raise

    def close(self) -> None:
        """Write index and metadata.

        Raises:
            OSError: even that was impossible; what was flushed can be salvaged.
        """
        self._reserve.unlink(missing_ok=True)
        if self._failed and self._mcap:
            self._cut()
        self._writer.close()

    def _cut(self) -> None:
        """Leave out what did not fit any more."""
        writer, storage = self._writer, self._writer.storage
        size, counts, statistics, end = self._whole
        _truncate(storage.path, size)
        with suppress(OSError):
            storage.bio.close()  # tries to write the rest of its buffer
        _truncate(storage.path, size)
        storage.bio = storage.path.open('r+b')
        storage.bio.seek(size)
        storage.chunks = [index for index in storage.chunks if _end_of(index) <= size]
        storage.chunk = PendingChunk(2**63 - 1, 0, BytesIO(), defaultdict(list))
        for now, then in ((writer.counts, counts), (storage.channel_stats, statistics)):
            now.update({key: then.get(key, 0) for key in now})
        writer.max_timestamp = storage.message_end_time = end

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self.close()
        else:
            self._reserve.unlink(missing_ok=True)
            self._writer.abort()


def _truncate(path: Path, size: int) -> None:
    with path.open('r+b') as file:
        file.truncate(size)


def _end_of(index: Any) -> int:
    """Where a chunk ends in the file, from its index record."""
    start, length = struct.unpack_from('<QQ', index.getvalue(), 16)
    return start + length
