# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From what a bag says to steps: an action, and the observation of the time at which it began.

Times are stamps in ns.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_OFF = 0.1  # of a period by which steps may be apart


@dataclass
class Recording:
    """What a bag says until its clock goes back; keys are stamps in ns."""

    actions: dict[int, np.ndarray] = field(default_factory=dict)
    poses: dict[int, np.ndarray] = field(default_factory=dict)
    joints: dict[int, np.ndarray] = field(default_factory=dict)
    frames: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    said: dict[int, str] = field(default_factory=dict)
    ended: dict[int, bool] = field(default_factory=dict)  # end of an episode -> success


class Step(NamedTuple):
    """An action and what was seen when it began; no state where the bag has none."""

    start: int
    action: np.ndarray
    proprio: np.ndarray | None
    frames: dict[str, int]  # camera -> stamp
    instruction: str


def period_of(recording: Recording) -> int:
    """Time from one action to the next, ns; 0 for less than two."""
    starts = np.array(sorted(recording.actions), dtype=np.int64)
    return int(np.median(np.diff(starts))) if len(starts) > 1 else 0


def _nearest(stamps: list[int], wanted: int, slop: int) -> int | None:
    place = bisect_left(stamps, wanted)
    around = stamps[max(place - 1, 0) : place + 1]
    best = min(around, key=lambda stamp: abs(stamp - wanted), default=None)
    return best if best is not None and abs(best - wanted) <= slop else None


def steps_of(
    now: Recording, cameras: Sequence[str], has_pose: bool, has_joints: bool, period: int
) -> Iterator[Step]:
    """Actions with a complete observation within half a period."""
    streams: list[Mapping[int, Any]] = [now.frames[camera] for camera in cameras]
    streams += [now.poses] if has_pose else []
    streams += [now.joints] if has_joints else []
    ordered = [sorted(stream) for stream in streams]
    views = len(cameras)
    for start in sorted(now.actions):
        stamps = [_nearest(stamps, start, period // 2) for stamps in ordered]
        if any(stamp is None for stamp in stamps):
            continue
        state = [s[t] for s, t in zip(streams[views:], stamps[views:], strict=True)]
        frames = dict(zip(cameras, stamps, strict=False))
        yield Step(
            start,
            now.actions[start],
            np.concatenate(state) if state else None,
            frames,
            now.said[frames[cameras[0]]],
        )


def parts_of(steps: list[Step], period: int, recording: Recording) -> list[list[Step]]:
    """Steps that follow one another under one instruction."""
    ends = sorted(recording.ended)
    parts: list[list[Step]] = []
    for step in steps:
        last = parts[-1][-1] if parts else None
        if (
            last is None
            or abs(step.start - last.start - period) > _OFF * period
            or step.instruction != last.instruction
            or bisect_left(ends, step.start + 1) != bisect_left(ends, last.start + 1)
        ):
            parts.append([])
        parts[-1].append(step)
    return parts


def succeeded(part: list[Step], recording: Recording) -> bool:
    """Whether the episode that the steps belong to ended well."""
    ends = sorted(recording.ended)
    place = bisect_left(ends, part[-1].start + 1)
    return place < len(ends) and recording.ended[ends[place]]
