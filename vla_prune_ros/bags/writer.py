# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""New bags: rosbag2 folders with one MCAP file. Needs no rclpy. Nothing is ever written over."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mcap.writer import CompressionType, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from vla_prune_ros.bags.files import NOTES, BagError

METADATA_VERSION = 8  # the newest that older rosbag2 releases read, too
CHUNK = 1 << 20  # bytes of messages in a chunk
RESERVE = 128 * 1024  # bytes for the end of the file, its notes and metadata.yaml
AHEAD = 4 << 20  # bytes that are claimed from the disk at a time
FOREVER = {'sec': 9223372036, 'nsec': 854775807}  # RMW_DURATION_INFINITE
Qos = dict[str, Any]


@cache
def typestore() -> Typestore:
    """Definitions and hashes of the standard messages."""
    return get_typestore(Stores.ROS2_KILTED)


def qos(reliable: bool = True, latched: bool = False, depth: int = 10) -> Qos:
    """A publisher's quality of service, as a bag keeps it for `ros2 bag play` (rmw/types.h)."""
    return {
        'history': 1,  # keep last
        'depth': depth,
        'reliability': 1 if reliable else 2,
        'durability': 1 if latched else 2,
        'deadline': FOREVER,
        'lifespan': FOREVER,
        'liveliness': 1,  # automatic
        'liveliness_lease_duration': FOREVER,
        'avoid_ros_namespace_conventions': False,
    }


class BagWriter:
    """A new bag. Every `flush` puts all messages so far on the disk, readable by `salvage`.

    Room on the disk is claimed before the file gets a message. So when the disk is full `write`
    raises OSError, nothing is half written, and `close` still makes a whole bag.
    """

    def __init__(self, path: str | Path, compression: str = 'zstd') -> None:
        """Make the bag's folder.

        Args:
            path: of the folder.
            compression: of chunks, zstd or none.

        Raises:
            BagError: the path exists.
            OSError: the folder cannot be made.
        """
        self.path = Path(path)
        if self.path.exists():
            raise BagError(f'{self.path} exists; a bag is never written over')
        self.path.mkdir(parents=True)
        self._file = (self.path / f'{self.path.name}.mcap').open('xb')
        kind = CompressionType.NONE if compression == 'none' else CompressionType.ZSTD
        self._writer = Writer(self._file, chunk_size=sys.maxsize, compression=kind)
        self._writer.start('ros2', 'vla_prune_ros')
        self._channels: dict[str, int] = {}
        self._topics: list[dict[str, Any]] = []
        self._notes = {'writer': 'vla_prune_ros'}
        self._start, self._end = 2**63 - 1, 0
        self.counts: Counter[str] = Counter()
        self._claimed = 0  # bytes of the file that the disk has granted
        self._waiting = 0  # bytes that the chunk at hand can take at most
        self._index = RESERVE  # bytes that the end of the file can take at most
        self._claim(0)
        self.flush()

    def add_topic(self, topic: str, kind: str, *profiles: Qos) -> None:
        """Announce a topic, with the quality of service of its publishers.

        Raises:
            BagError: there is no definition of the message type.
            OSError: the disk is full.
        """
        if kind not in typestore().fielddefs:
            raise BagError(f'{topic}: no definition of {kind}')
        definition = typestore().generate_msgdef(kind, ros_version=2)[0].encode()
        offered = yaml.dump(list(profiles or (qos(),)), Dumper=_Dumper).strip()
        metadata = {
            'name': topic,
            'type': kind,
            'serialization_format': 'cdr',
            'offered_qos_profiles': offered,
            'type_description_hash': typestore().hash_rihs01(kind),
        }
        size = len(definition) + len(offered) + 3 * len(topic) + 1024
        self._claim(size, 2 * size)  # again in the summary and in metadata.yaml
        schema = self._writer.register_schema(kind, 'ros2msg', definition)
        extra = {
            'offered_qos_profiles': offered,
            'topic_type_hash': metadata['type_description_hash'],
        }
        self._channels[topic] = self._writer.register_channel(topic, 'cdr', schema, extra)
        self._topics.append(metadata)

    def write(
        self, topic: str, time: int, data: bytes, published: int | None = None, sequence: int = 0
    ) -> None:
        """Add a message.

        Args:
            topic: that was announced.
            time: when it was recorded, ns.
            data: its CDR bytes.
            published: when it was published, ns; None: not known.
            sequence: its number among those of its publisher.

        Raises:
            OSError: the disk is full; the message is not in the bag.
        """
        self._claim(len(data) + len(data) // 128 + 64)
        published = time if published is None else published
        channel = self._channels[topic]
        self._writer.add_message(channel, time, data, published, sequence & 0xFFFFFFFF)
        self.counts[topic] += 1
        self._start, self._end = min(self._start, time), max(self._end, time)
        if self._waiting > CHUNK:
            self.flush()

    def note(self, values: Mapping[str, str]) -> None:
        """Keep facts about the recording in the bag: in the file and in metadata.yaml."""
        self._notes |= values

    def flush(self) -> None:
        """Put everything on the disk."""
        self._writer.flush()
        self._waiting = 0
        self._index += 256 + 16 * len(self._channels)  # of a chunk
        self._claim(0)

    def _claim(self, size: int, index: int = 0) -> None:
        """Make sure that `size` more bytes fit, and the end of the file, too."""
        needed = self._file.tell() + self._waiting + size + self._index + index
        for room in (needed + AHEAD, needed):
            if needed <= self._claimed:
                break
            try:
                os.posix_fallocate(self._file.fileno(), self._claimed, room - self._claimed)
                self._claimed = room
            except OSError:
                if room == needed:
                    raise
        self._waiting += size
        self._index += index

    def close(self) -> None:
        """Write index, notes and metadata.

        Raises:
            OSError: that was impossible; what was flushed can be salvaged.
        """
        with self._file:
            self._writer.add_metadata(NOTES, self._notes)
            self._writer.finish()
            self._file.flush()
            self._file.truncate()
        start = min(self._start, self._end)
        times = {
            'starting_time': {'nanoseconds_since_epoch': start},
            'duration': {'nanoseconds': self._end - start},
            'message_count': self.counts.total(),
        }
        name = Path(self._file.name).name
        metadata = {
            'version': METADATA_VERSION,
            'storage_identifier': 'mcap',
            'compression_format': '',
            'compression_mode': '',
            'ros_distro': 'kilted',
            'custom_data': self._notes,
            'relative_file_paths': [name],
            'files': [{'path': name, **times}],
            **times,
            'topics_with_message_count': [
                {'topic_metadata': topic, 'message_count': self.counts[topic['name']]}
                for topic in self._topics
            ],
        }
        text = yaml.dump({'rosbag2_bagfile_information': metadata}, Dumper=_Dumper)
        (self.path / 'metadata.yaml').write_text(text, encoding='utf-8')

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


class _Dumper(yaml.SafeDumper):
    """Without anchors, which rosbag2 need not know."""

    def ignore_aliases(self, data: object) -> bool:
        """Write everything out."""
        return True
