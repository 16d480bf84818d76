# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `record`: what the policy gets and gives, into a new MCAP bag, without rosbag2.

A process of its own, so that recording costs the policy as little as possible. Messages stay the
bytes that they were on the wire. Every topic is subscribed to as its publishers offer it, and that
is kept in the bag, so `ros2 bag play` offers it again. One thread takes messages, one writes them;
between them at most `--queue` megabytes wait. SIGINT or SIGTERM ends the bag properly. A full disk
ends the recording with exit code 1, and the bag is whole up to there.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from vla_prune_ros.bags.files import BagError
from vla_prune_ros.bags.writer import BagWriter, qos, typestore

DESCRIPTION = """\
Record the inputs and outputs of the policy into a new bag (MCAP) until SIGINT or SIGTERM.
Exit code 0 only if every message that was taken is in the bag."""
NODES = ('vla_policy', 'sim_bridge')
CAMERAS = ('agentview', 'wrist')
INPUTS = ('joint_states', 'ee_pose', 'instruction', 'executed_actions')
OUTPUTS = ('action_chunk', 'vla_policy/inference_stats', 'vla_policy/policy_info')
OTHERS = ('sim_bridge/episode', '/clock', '/parameter_events')
LOOK = 0.1  # s between two looks at the graph
FLUSH = 0.5  # s after which messages are on the disk at the latest
DEPTH = 200


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog='record',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='Remap as usual: --ros-args -r agentview/image_raw:=/camera/color/image_raw',
    )
    p.add_argument('--out', type=Path, required=True, help='folder of the new bag')
    p.add_argument('--cameras', default=','.join(CAMERAS), help='camera names, with commas')
    p.add_argument('--topics', default='', help='topics in addition, with commas')
    p.add_argument('--all', action='store_true', help='every topic with a standard message')
    p.add_argument(
        '--compression', choices=('zstd', 'none'), default='zstd', help='of chunks (zstd)'
    )
    p.add_argument(
        '--queue', type=float, default=256.0,
        help='megabytes that may wait for the disk; what comes on top is lost and counted (256)',
    )  # fmt: skip
    return p


class Recording(threading.Thread):
    """Writes what it is given, in a thread of its own."""

    def __init__(self, writer: BagWriter, limit: int) -> None:
        super().__init__(name='bag', daemon=True)
        self._writer = writer
        self._limit = limit
        self._waiting: deque[tuple[str, int, bytes]] = deque()
        self._bytes = 0
        self._new: deque[tuple[str, str, list]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.taken: Counter[str] = Counter()
        self.error: OSError | None = None

    def announce(self, topic: str, kind: str, profiles: list) -> None:
        """A topic whose messages may follow."""
        with self._changed:
            self._new.append((topic, kind, profiles))

    def put(self, topic: str, received: int, data: bytes) -> None:
        """Take one message; it is lost if too much waits."""
        with self._changed:
            self.taken[topic] += 1
            if self._bytes + len(data) > self._limit or self.error is not None:
                return
            self._waiting.append((topic, received, data))
            self._bytes += len(data)
            self._changed.notify()

    def stop(self) -> None:
        """Write what waits, end the bag."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self.join()

    @property
    def written(self) -> dict[str, int]:
        """Messages that are in the bag, by topic."""
        return {topic: number for topic, number in self._writer.counts.items() if number}

    def run(self) -> None:
        """Thread body."""
        try:
            self._write()
        except OSError as error:
            self.error = error
        try:
            self._writer.close()
        except OSError as error:
            self.error = self.error or error

    def _write(self) -> None:
        flushed = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting, FLUSH)
                new, batch = list(self._new), list(self._waiting)
                self._new.clear()
                self._waiting.clear()
                stopping = self._stopping
            for topic, kind, profiles in new:
                self._writer.add_topic(topic, kind, *profiles)
            for topic, received, data in batch:
                self._writer.write(topic, received, data)
                with self._changed:
                    self._bytes -= len(data)
            if time.monotonic() - flushed > FLUSH or stopping:
                self._writer.flush()
                flushed = time.monotonic()
            if stopping and not batch:
                return


class Recorder:
    """Finds the topics and subscribes to them."""

    def __init__(self, node: Any, args: argparse.Namespace, recording: Recording) -> None:
        self._node = node
        self._recording = recording
        self._all = args.all
        cameras = [c for c in args.cameras.split(',') if c]
        names = [f'{c}/{topic}' for c in cameras for topic in IMAGES]
        names += [*INPUTS, *OUTPUTS, *OTHERS, *(t for t in args.topics.split(',') if t)]
        self._wanted = {node.resolve_topic_name(name) for name in names}
        self._seen: set[str] = set()
        self.subscriptions: dict[str, Any] = {}

    def look(self) -> None:
        """Subscribe to what is new in the graph."""
        for topic, kinds in self._node.get_topic_names_and_types():
            if topic in self._seen or not (self._all or topic in self._wanted):
                continue
            publishers = self._node.get_publishers_info_by_topic(topic)
            if publishers:
                self._seen.add(topic)
                self._subscribe(topic, kinds, publishers)

    def _subscribe(self, topic: str, kinds: Sequence[str], publishers: Sequence[Any]) -> None:
        logger = self._node.get_logger()
        if len(kinds) != 1:
            logger.warning(f'{topic} is not recorded: it has several types, {", ".join(kinds)}')
            return
        try:
            if kinds[0] not in typestore().fielddefs:
                raise BagError('no definition')
            message = message_class(kinds[0])
        except (BagError, ImportError, AttributeError) as error:
            logger.warning(f'{topic} is not recorded: type {kinds[0]}: {error}')
            return
        profile, offered = matching(publishers)
        self._recording.announce(topic, kinds[0], offered)
        self.subscriptions[topic] = self._node.create_subscription(
            message, topic, partial(self._take, topic), profile, raw=True
        )
        logger.info(f'recording {topic}')

    def _take(self, topic: str, data: bytes, info: dict[str, Any]) -> None:
        received = info.get('received_timestamp') or time.time_ns()
        self._recording.put(topic, received, data)


IMAGES = ('image_raw', 'image_raw/compressed', 'camera_info')


def message_class(kind: str) -> type:
    """The class of a type such as `sensor_msgs/msg/Image`.

    Raises:
        ImportError, AttributeError: it is not installed.
    """
    package, _, name = kind.partition('/msg/')
    return getattr(import_module(f'{package}.msg'), name)


def matching(publishers: Sequence[Any]) -> tuple[Any, list]:
    """A subscription that hears all these publishers, and their profiles for the bag.

    It asks for no more than every one of them offers, as rosbag2 does.
    """
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    reliable = [p.qos_profile.reliability == ReliabilityPolicy.RELIABLE for p in publishers]
    latched = [p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers]
    profile = QoSProfile(
        depth=DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if all(reliable) else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if all(latched) else DurabilityPolicy.VOLATILE,
    )
    depths = [p.qos_profile.depth or DEPTH for p in publishers]
    offered = [qos(r, d, n) for r, d, n in zip(reliable, latched, depths, strict=True)]
    return profile, list(dict.fromkeys(offered))


def main(argv: Sequence[str] | None = None) -> int:
    """Record until a signal; 0 only if nothing was lost."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own, ros = split(argv)
    args = parser().parse_args(own)
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        writer = BagWriter(args.out, compression=args.compression)
    except (BagError, OSError) as error:
        print(f'record: {error}', file=sys.stderr)
        return 2
    rclpy.init(args=ros, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('recorder', start_parameter_services=False, enable_rosout=False)
    recording = Recording(writer, round(args.queue * 1e6))
    recorder = Recorder(node, args, recording)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    recording.start()
    print(f'record: into {args.out}', flush=True)
    looked = 0.0
    while rclpy.ok() and not stop.is_set() and recording.is_alive():
        if time.monotonic() - looked > LOOK:
            recorder.look()
            looked = time.monotonic()
        executor.spin_once(timeout_sec=LOOK)
    drain(executor)
    recording.stop()
    executor.shutdown(timeout_sec=0)
    node.destroy_node()
    rclpy.try_shutdown()
    code = report(args.out, recording)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def drain(executor: Any) -> None:
    """Take what has arrived already; whoever publishes on is cut off after a second."""
    from rclpy.executors import TimeoutException

    until = time.monotonic() + 1.0
    quiet = 0
    while quiet < 3 and time.monotonic() < until:
        before = time.monotonic()
        with suppress(TimeoutException):
            executor.spin_once(timeout_sec=0.01)
        quiet = quiet + 1 if time.monotonic() - before > 0.009 else 0


def report(out: Path, recording: Recording) -> int:
    """Say what is in the bag; the exit code."""
    written = recording.written
    print(f'record: {sum(written.values())} messages of {len(written)} topics in {out}')
    for topic, number in sorted(written.items()):
        print(f'  {number:7d} {topic}')
    if lost := recording.taken - Counter(written):
        text = ', '.join(f'{number} of {topic}' for topic, number in sorted(lost.items()))
        print(f'record: lost: {text}', file=sys.stderr)
    if recording.error is not None:
        print(
            f'record: writing to {out} failed, the recording ends before that: {recording.error}',
            file=sys.stderr,
        )
    return 1 if lost or recording.error is not None else 0


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Own arguments, and those for rclpy: from --ros-args to -- or the end."""
    if '--ros-args' not in argv:
        return list(argv), []
    start = argv.index('--ros-args')
    end = argv.index('--', start) + 1 if '--' in argv[start:] else len(argv)
    return [*argv[:start], *argv[end:]], list(argv[start:end])


if __name__ == '__main__':
    sys.exit(main())
