# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Small bags for tests: the golden ones, changed message by message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer

from vla_prune_ros.bags import offline as replay_offline
from vla_prune_ros.bags import run as replay_run
from vla_prune_ros.bags.files import Bag
from vla_prune_ros.bags.replay import main
from vla_prune_ros.bags.topics import message_class
from vla_prune_ros.bags.writer import BagWriter, qos, typestore

BAGS = Path(__file__).parent / 'data' / 'bags'
PICK, PUT = BAGS / 'pick_up', BAGS / 'put_on_plate'
OUTPUTS = ('/action_chunk', '/vla_policy/inference_stats', '/vla_policy/policy_info')

Change = Callable[[str, int, Any], Iterable[tuple[str, int, Any]]]


def keep(topic: str, time: int, message: Any) -> list[tuple[str, int, Any]]:
    """Change nothing."""
    return [(topic, time, message)]


def rewrite(
    source: Path, target: Path, change: Change = keep, storage: str = 'mcap', without=()
) -> Path:
    """A new bag with every message put through `change(topic, time, message)`."""
    written: list[tuple[str, int, Any]] = []
    with Bag(source) as bag:
        for entry in bag.messages():
            if entry.topic not in without:
                message = deserialize_message(entry.data, message_class(bag.types[entry.topic]))
                written += change(entry.topic, entry.time, message)
    return write(target, written, storage)


def write(target: Path, messages: Iterable[tuple[str, int, Any]], storage: str = 'mcap') -> Path:
    """A new bag of (topic, time, message or (type, CDR bytes))."""
    with Sqlite(target) if storage == 'sqlite3' else BagWriter(target) as writer:
        known = set()
        for topic, time, message in messages:
            raw = isinstance(message, tuple)
            module = '' if raw else type(message).__module__.split('.')[0]
            kind = message[0] if raw else f'{module}/msg/{type(message).__name__}'
            if topic not in known:
                writer.add_topic(topic, kind, qos(latched='info' in topic))
                known.add(topic)
            writer.write(topic, time, message[1] if raw else serialize_message(message))
    return target


class Sqlite:
    """A bag as rosbag2 wrote it before MCAP, made by the rosbags library."""

    def __init__(self, path: Path) -> None:
        self._writer = Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3)
        self._connections: dict[str, Any] = {}

    def add_topic(self, topic: str, kind: str, *profiles: Any) -> None:
        self._connections[topic] = self._writer.add_connection(topic, kind, typestore=typestore())

    def write(self, topic: str, time: int, data: bytes) -> None:
        self._writer.write(self._connections[topic], time, data)

    def __enter__(self) -> Sqlite:
        self._writer.open()
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()


class Result:
    """What a replay printed and wrote."""

    def __init__(self, code: int, out: Path, text: str) -> None:
        self.code, self.text = code, text
        path = out / 'replay.jsonl'
        self.lines = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )

    @property
    def verdict(self) -> dict:
        return self.lines[-1]

    @property
    def failures(self) -> list[dict]:
        """First failing ticks, by verdict."""
        return [v['first_failure'] for v in self.verdict['verdicts'] if not v['passed']]

    @property
    def ticks(self) -> list[dict]:
        return [line for line in self.lines if line['type'] == 'tick']


_policies: dict[Any, Any] = {}


def load(setup: Any) -> Any:
    """A policy; one that an earlier run has loaded is used again."""
    if setup not in _policies:
        _policies[setup] = replay_offline.load(setup)
    return _policies[setup]


def replay(capsys, tmp_path: Path, bag: Path, *arguments: str, plots=False) -> Result:
    """Run the verb in this process."""
    arguments = arguments if plots else ('--no-plots', *arguments)
    number = sum(1 for path in tmp_path.glob('out*'))
    out = tmp_path / f'out{number}'
    with mock.patch.object(replay_run, 'load', load):
        code = main([str(bag), '--out', str(out), '--device', 'cpu', *arguments])
    captured = capsys.readouterr()
    return Result(code, out, captured.out + captured.err)
