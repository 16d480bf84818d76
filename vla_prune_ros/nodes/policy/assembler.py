# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Separate streams to complete observations, matched by stamp.

Pure Python: no ROS, no clock. Stamps are integer nanoseconds, so that exact matching is exact.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NANOSECONDS = 1_000_000_000
REWIND = NANOSECONDS
CAMERA_DEPTH = 32  # frames kept unmatched
STATE_SPAN = 5 * NANOSECONDS  # state samples kept: frames arrive later than they
STATE_DEPTH = 20_000
MAX_BYTES = 2**28  # kept in one place


@dataclass(frozen=True)
class MatchedSet:
    """One sample of every stream. `stamp` is the first camera's, in ns."""

    stamp: int
    samples: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Memory that the samples hold, where they tell."""
        return sum(getattr(sample, 'nbytes', 0) for sample in self.samples.values())


class Buffer:
    """Samples of one stream in the order of their stamps."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self._samples: list[Any] = []
        self._bytes = 0

    def add(self, stamp: int, sample: Any) -> bool:
        """Keep a sample; False if there is one of its stamp."""
        place = bisect_left(self.stamps, stamp)
        if self.stamps[place : place + 1] == [stamp]:
            return False
        self.stamps.insert(place, stamp)
        self._samples.insert(place, sample)
        self._bytes += getattr(sample, 'nbytes', 0)
        return True

    def nearest(self, stamp: int, slop: int) -> tuple[int, Any] | None:
        """The sample next to `stamp`, the older of two; None if none is within `slop`."""
        place = bisect_left(self.stamps, stamp)
        around = range(max(place - 1, 0), min(place + 1, len(self.stamps)))
        best = min(around, key=lambda k: abs(self.stamps[k] - stamp), default=None)
        if best is None or abs(self.stamps[best] - stamp) > slop:
            return None
        return self.stamps[best], self._samples[best]

    def within(self, low: int, high: int) -> list[int]:
        """Stamps from `low` to `high`."""
        return self.stamps[bisect_left(self.stamps, low) : bisect_right(self.stamps, high)]

    def drop(self, number: int) -> int:
        """Forget the oldest; returns how many."""
        self._bytes -= sum(getattr(sample, 'nbytes', 0) for sample in self._samples[:number])
        del self.stamps[:number], self._samples[:number]
        return number

    def drop_before(self, stamp: int) -> int:
        """Forget what is older than `stamp`; returns how many."""
        return self.drop(bisect_left(self.stamps, stamp))

    def bound(self, depth: int, size: int) -> int:
        """Keep so many samples and bytes, but the newest in any case; returns how many left."""
        left = 0
        while len(self.stamps) > depth or (self._bytes > size and len(self.stamps) > 1):
            left += self.drop(1)
        return left


class Assembler:
    """Collects samples until every stream has one that belongs to the first camera's frame.

    Other cameras must lie within `slop` ns of the first, state streams within `state_slop` ns; 0
    means the same stamp. Sets come out in order of their stamps and use a frame at most once;
    frames that are late or overtaken by a set are dropped and counted in `dropped`, those that
    were here before in `repeated`: whoever asks again sends them again. A frame more than
    `REWIND` before the last one used means that time started anew.
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
        self.dropped: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()
        self.clear()

    def clear(self) -> None:
        """Forget all samples; the counters stay."""
        self._buffers = {name: Buffer() for name in self._slops}
        self._used: dict[str, int] = {}  # camera -> stamp of the last frame in a set
        self._last: dict[str, int] = {}  # stream -> stamp of the sample that came last

    def add(self, stream: str, stamp: int, sample: Any) -> list[MatchedSet]:
        """Take one sample; returns the sets that it completes, oldest first."""
        if stamp < self._last.get(stream, stamp) - REWIND:
            self._buffers[stream] = Buffer()  # or its samples would be taken for new ones
        self._last[stream] = stamp
        if stream in self._used and stamp < self._used[stream] - REWIND:
            self._rewind(stamp)
        buffer, used = self._buffers[stream], self._used.get(stream, stamp - 1)
        if stamp < used:
            self.dropped[stream] += 1
            return []
        if stamp == used or not buffer.add(stamp, sample):
            self.repeated[stream] += 1
            return []
        if stream in self.cameras:
            self.dropped[stream] += buffer.bound(CAMERA_DEPTH, MAX_BYTES // len(self.cameras))
        else:
            buffer.drop_before(stamp - STATE_SPAN)
            buffer.bound(STATE_DEPTH, MAX_BYTES)
        return self._matches(stream, stamp)

    def _matches(self, stream: str, stamp: int) -> list[MatchedSet]:
        """The sets that were waiting for this very sample."""
        first, found = self._buffers[self.cameras[0]], []
        slop = 0 if stream == self.cameras[0] else self._slops[stream]
        for moment in first.within(stamp - slop, stamp + slop):
            chosen = {
                name: self._buffers[name].nearest(moment, 0 if name == self.cameras[0] else slop)
                for name, slop in self._slops.items()
            }
            matched = {name: one for name, one in chosen.items() if one is not None}
            if len(matched) < len(chosen):
                continue
            found.append(MatchedSet(moment, {name: one[1] for name, one in matched.items()}))
            for name, (used, _) in matched.items():
                if name in self.cameras:
                    self._used[name] = used  # the frame goes, and what it overtook
                    self.dropped[name] += self._buffers[name].drop_before(used + 1) - 1
                else:  # no later frame can match these
                    self._buffers[name].drop_before(moment - self._slops[name])
        return found

    def _rewind(self, now: int) -> None:
        """Forget what belongs to the time before the clock went back to `now`."""
        self._used.clear()
        for name in self._buffers:
            if self._last.get(name, now) > now + REWIND:  # this stream has not gone back yet
                self._buffers[name] = Buffer()
