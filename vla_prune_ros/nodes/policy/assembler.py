# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Separate streams to complete observations, matched by stamp.

Pure Python: no ROS, no clock. Stamps are integer nanoseconds, so that exact matching is exact.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NANOSECONDS = 1_000_000_000
REWIND = NANOSECONDS
CAMERA_DEPTH = 32  # frames kept unmatched
STATE_DEPTH = 256  # state samples kept: they come faster, and frames arrive later than they


@dataclass(frozen=True)
class MatchedSet:
    """One sample of every stream. `stamp` is the first camera's, in ns."""

    stamp: int
    samples: dict[str, Any]


class Assembler:
    """Collects samples until every stream has one that belongs to the first camera's frame.

    Other cameras must lie within `slop` ns of the first, state streams within `state_slop` ns; 0
    means the same stamp. Sets come out in order of their stamps and use a frame at most once;
    frames that are repeated, late or overtaken by a set are dropped and counted in `dropped`. A
    frame more than `REWIND` before the last one used means that time started anew.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        states: Sequence[str],
        slop: int = 0,
        state_slop: int = 0,
    ) -> None:
        self.cameras = tuple(cameras)
        self._slops = dict.fromkeys(self.cameras, slop) | dict.fromkeys(states, state_slop)
        self.received: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.rewinds = 0
        self.clear()

    def clear(self) -> None:
        """Forget all samples; the counters stay."""
        self._buffers: dict[str, deque[tuple[int, Any]]] = {}
        for name in self._slops:
            self._keep(name, [])
        self._used: dict[str, int] = {}  # camera -> stamp of the last frame in a set
        self._last: dict[str, int] = {}  # stream -> stamp of the sample that came last

    def add(self, stream: str, stamp: int, sample: Any) -> list[MatchedSet]:
        """Take one sample; returns the sets that it completes, oldest first."""
        self.received[stream] += 1
        if stamp < self._last.get(stream, stamp) - REWIND:
            self._keep(stream, [])  # or its samples would be taken for new ones of equal stamps
        self._last[stream] = stamp
        if stream in self._used and stamp < self._used[stream] - REWIND:
            self._rewind(stamp)
        buffer = self._buffers[stream]
        if stamp <= self._used.get(stream, stamp - 1) or any(s == stamp for s, _ in buffer):
            self.dropped[stream] += 1
            return []
        if stream in self.cameras and len(buffer) == CAMERA_DEPTH:
            self.dropped[stream] += 1  # the oldest leaves unmatched
        buffer.append((stamp, sample))
        return self._matches()

    def _matches(self) -> list[MatchedSet]:
        found = []
        for stamp, _ in sorted(self._buffers[self.cameras[0]], key=_stamp_of):
            chosen = {}
            for name, slop in self._slops.items():
                near = min(self._buffers[name], key=lambda e, t=stamp: abs(e[0] - t), default=None)  # type: ignore[misc]
                if near is None or abs(near[0] - stamp) > slop:
                    break
                chosen[name] = near
            else:
                found.append(MatchedSet(stamp, {name: e[1] for name, e in chosen.items()}))
                for name in self.cameras:
                    self._consume(name, chosen[name][0])
                self._expire(stamp)
        return found

    def _expire(self, used: int) -> None:
        """Drop states that no frame after `used` can match: long buffers are slow to search."""
        for name, slop in self._slops.items():
            if name not in self.cameras:
                self._keep(name, [e for e in self._buffers[name] if e[0] >= used - slop])

    def _consume(self, camera: str, used: int) -> None:
        """Drop the frame at `used` and what it overtook."""
        self._used[camera] = used
        buffer = self._buffers[camera]
        self.dropped[camera] += sum(stamp < used for stamp, _ in buffer)
        self._keep(camera, [entry for entry in buffer if entry[0] > used])

    def _rewind(self, now: int) -> None:
        """Forget what belongs to the time before the clock went back to `now`."""
        self.rewinds += 1
        self._used.clear()
        for name in self._buffers:
            if self._last.get(name, now) > now + REWIND:  # this stream has not gone back yet
                self._keep(name, [])

    def _keep(self, name: str, entries: list[tuple[int, Any]]) -> None:
        depth = CAMERA_DEPTH if name in self.cameras else STATE_DEPTH
        self._buffers[name] = deque(entries, maxlen=depth)


def _stamp_of(entry: tuple[int, Any]) -> int:
    return entry[0]
