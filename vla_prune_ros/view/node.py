# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The live view as a node: it only listens, and never makes anybody wait.

Callbacks store messages, undecoded; one thread reads and draws them. Pictures come at most
`image_rate` times per second of wall clock, and with the chunk that answers them; when the viewer
cannot follow, the oldest of what waits is left out and counted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from vla_prune_ros.ros.messages import to_ns
from vla_prune_ros.view.scene import FRAMES
from vla_prune_ros.view.sink import RerunSink
from vla_prune_ros.view.source import LATCHED, POLICY, STATE, Reader, topics

WAITING = 256  # messages that may wait for the drawing thread
PICTURES = 64 << 20  # bytes of undecoded pictures per camera
REPORT = 10.0  # s between two lines about what was left out


class LiveView(Node):
    """Listens to a policy and its robot and hands on to a sink."""

    def __init__(
        self, stop: threading.Event, sink: RerunSink, reader: Reader, image_rate: float
    ) -> None:
        super().__init__('live_view')
        self.failed = False
        self._stop, self._sink, self._reader = stop, sink, reader
        self._period = 1.0 / image_rate
        self._waiting: deque[tuple[str, Any]] = deque()
        self._pictures: dict[str, OrderedDict[int, Any]] = {}
        self._shown: dict[str, float] = {}
        self._changed = threading.Condition()
        self.left_out = 0
        self._told = 0
        best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for name, kind in topics(reader.scene.cameras).items():
            is_picture = '/image_raw' in name
            profiles = [best_effort if is_picture or name in STATE else QoSProfile(depth=20)]
            if name in LATCHED:
                profiles.append(latched)
            take = self._on_picture if is_picture else self._on_message
            for profile in profiles:
                self.create_subscription(kind, name, partial(take, name), profile)
        self.create_timer(REPORT, self._report)
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()
        self.get_logger().info(f'open {self._sink.url}' if self._sink.url else 'writing a file')

    def close(self) -> None:
        """Draw no more."""
        with self._changed:
            self._stop.set()
            self._changed.notify()
        self._thread.join(3.0)
        self._sink.close()

    def _on_message(self, name: str, message: Any) -> None:
        if name == f'{POLICY}/inference_stats':  # its pictures first: it says what was kept
            for topic, pictures in self._pictures.items():
                if (picture := pictures.get(to_ns(message.header.stamp))) is not None:
                    self._put(topic, picture)
        self._put(name, message)

    def _on_picture(self, name: str, message: Any) -> None:
        pictures = self._pictures.setdefault(name, OrderedDict())
        pictures[to_ns(message.header.stamp)] = message
        while len(pictures) > min(FRAMES, max(1, PICTURES // max(1, len(message.data)))):
            pictures.popitem(last=False)
        now = time.monotonic()
        if now - self._shown.get(name, 0.0) >= self._period:
            self._shown[name] = now
            self._put(name, message)

    def _put(self, name: str, message: Any) -> None:
        with self._changed:
            self._waiting.append((name, message))
            if len(self._waiting) > WAITING:
                self._waiting.popleft()
                self.left_out += 1
            self._changed.notify()

    def _draw(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._stop.is_set())
                    if self._stop.is_set():
                        return
                    name, message = self._waiting.popleft()
                self._sink.show(self._reader.read(name, message))
        except Exception as error:
            self.get_logger().fatal(f'the viewer failed: {type(error).__name__}: {error}')
            self.failed = True
            self._stop.set()

    def _report(self) -> None:
        if self.left_out > self._told:
            self.get_logger().warning(
                f'the viewer cannot follow: {self.left_out - self._told} messages not shown'
            )
            self._told = self.left_out
