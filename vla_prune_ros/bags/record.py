# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `record`: what the policy gets and gives, into a new MCAP bag, without rosbag2.

A process of its own, so that recording costs the policy as little as possible. Messages stay the
bytes that they were on the wire. Every topic is subscribed to as its publishers offer it, and that
is kept in the bag, so `ros2 bag play` offers it again. One thread takes messages, one writes them;
between them at most `--queue` megabytes wait. SIGINT or SIGTERM ends the bag properly. A full disk
ends the recording with exit code 1, and the bag is whole up to there.

Where the publishers are reliable the recorder keeps whatever arrives, so a publisher that waits
for acknowledgement, as `sim_bridge` does in lockstep, loses nothing however busy the machine is.
Elsewhere what is missing is counted (`topics.py`), said at the end and noted in the bag.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vla_prune_ros.bags.files import LOST, BagError
from vla_prune_ros.bags.writer import BagWriter, Qos

if TYPE_CHECKING:
    from vla_prune_ros.bags.topics import Taken

DESCRIPTION = """\
Record the inputs and outputs of the policy into a new bag (MCAP) until SIGINT or SIGTERM.
Exit code 0 only if every message that was taken is in the bag."""
LOOK = 0.1  # s between two looks at the graph
FLUSH = 0.5  # s after which messages are on the disk at the latest
LAST = 1.0  # s in which what arrived until the end is taken


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog='record',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='Remap as usual: --ros-args -r agentview/image_raw:=/camera/color/image_raw',
    )
    p.add_argument('--out', type=Path, required=True, help='folder of the new bag')
    p.add_argument('--cameras', default='agentview,wrist', help='camera names, with commas')
    p.add_argument('--topics', default='', help='topics in addition, with commas')
    p.add_argument('--all', action='store_true', help='every topic with a standard message')
    p.add_argument(
        '--complete', action='store_true',
        help='what publishers sent before the recorder heard them counts as lost, too',
    )  # fmt: skip
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
        self._waiting: deque[Taken] = deque()
        self._bytes = 0
        self._new: deque[tuple[str, str, list[Qos]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._missing: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.error: OSError | None = None

    def announce(self, topic: str, kind: str, profiles: list[Qos]) -> None:
        """A topic whose messages may follow."""
        with self._changed:
            self._new.append((topic, kind, profiles))

    def put(self, taken: Taken) -> None:
        """Take one message; it is lost if too much waits."""
        size = len(taken.data)
        with self._changed:
            self.taken[taken.topic] += 1
            if self._bytes + size > self._limit or self.error is not None:
                return
            self._waiting.append(taken)
            self._bytes += size
            self._changed.notify()

    def stop(self, lost: Mapping[str, int] | None = None) -> None:
        """Write what waits, note what is `lost` besides, by topic, and end the bag."""
        with self._changed:
            self._missing = Counter(lost or {})
            self._stopping = True
            self._changed.notify()
        self.join()

    @property
    def written(self) -> dict[str, int]:
        """Messages that are in the bag, by topic."""
        return {topic: number for topic, number in self._writer.counts.items() if number}

    @property
    def lost(self) -> Counter[str]:
        """Messages that were published and are not in the bag, by topic."""
        return self._missing + (self.taken - Counter(self.written))

    def run(self) -> None:
        """Thread body."""
        try:
            self._write()
        except OSError as error:
            self.error = error
        try:
            self._writer.note({f'{LOST}{topic}': str(n) for topic, n in self.lost.items()})
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
            for topic, received, published, sequence, data in batch:
                self._writer.write(topic, received, data, published, sequence)
                with self._changed:
                    self._bytes -= len(data)
            if time.monotonic() - flushed > FLUSH or stopping:
                self._writer.flush()
                flushed = time.monotonic()
            if stopping and not batch:
                return


def main(argv: Sequence[str] | None = None) -> int:
    """Record until a signal; 0 only if nothing was lost."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own, ros = split(argv)
    args = parser().parse_args(own)
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from vla_prune_ros.bags.topics import Topics, wanted_topics

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
    names = wanted_topics(args.cameras, args.topics)
    topics = Topics(
        node, names, recording.announce, recording.put,
        everything=args.all, complete=args.complete,
    )  # fmt: skip
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    recording.start()
    print(f'record: into {args.out}', flush=True)
    looked = 0.0
    while rclpy.ok() and not stop.is_set() and recording.is_alive():
        if time.monotonic() - looked > LOOK:
            topics.look()
            looked = time.monotonic()
        executor.spin_once(timeout_sec=LOOK)
        topics.take()
    until, quiet = time.monotonic() + LAST, 0  # whoever publishes on is cut off then
    while quiet < 5 and time.monotonic() < until:
        executor.spin_once(timeout_sec=0.01)
        quiet = 0 if topics.take() else quiet + 1
    recording.stop(topics.losses.total())
    executor.shutdown(timeout_sec=0)
    node.destroy_node()
    rclpy.try_shutdown()
    code = report(args.out, recording)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def report(out: Path, recording: Recording) -> int:
    """Say what is in the bag; the exit code."""
    written = recording.written
    print(f'record: {sum(written.values())} messages of {len(written)} topics in {out}')
    for topic, number in sorted(written.items()):
        print(f'  {number:7d} {topic}')
    lost = sorted(recording.lost.items())
    if lost:
        text = ', '.join(f'{number} of {topic}' for topic, number in lost)
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
