# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the messages of a policy and its robot look like: plain values in, drawings out.

Knows neither ROS nor a viewer. Plans are drawn with what a unit of an action really moves, not
with its nominal size: a soft arm covers a quarter of it (see doc/robot.md), and every plan would
be four times too long. Numbers are drawn at the stamp of what they are about.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath

import numpy as np

from vla_prune_ros.pruning.overlay import draw_kept, kept_grid

STEP_POSITION = 0.0125  # m that one unit moves the tabletop's arm and LIBERO's, measured
REWIND = 1_000_000_000  # ns; a clock that goes back so far begins something new
JUMP = 5_000_000_000  # ns; so does one that leaps ahead
FRAMES = 64  # pictures kept per camera for the chunk that answers them
SUPERSEDED = 5  # old plans that stay in sight
PATH = 600  # poses of the path that stay in sight
PATH_EVERY = 4  # poses between two drawings of it
DELTAS = 7  # numbers of an action of the end effector, the gripper included
FINGERS_OPEN = 0.08  # m between the fingers


@dataclass(frozen=True)
class Lines:
    """Polylines: each strip float32 [n, 3], m."""

    strips: list[np.ndarray]


@dataclass(frozen=True)
class Drawing:
    """One thing to show.

    Attributes:
        path: where; see `LAYOUT` in the sink.
        stamp: ns.
        content: uint8 [H, W, 3] picture, number, text or lines.
    """

    path: str
    stamp: int
    content: np.ndarray | float | str | Lines


@dataclass
class _Plan:
    """A chunk as points [n + 1, 3]; point k is reached `k * period` after its observation."""

    stamp: int
    points: np.ndarray
    played: int | None = None  # actions until the next plan came; None: in play


@dataclass
class Scene:
    """Takes values of one policy, one robot; every method gives what is to be drawn.

    Attributes:
        cameras: names of the pictures, third-person view first.
        period: control period, ns.
    """

    cameras: tuple[str, ...] = ('agentview', 'wrist')
    period: int = 50_000_000
    _info: dict[str, str] = field(default_factory=dict)
    _episode: dict[str, str] = field(default_factory=dict)
    _instruction: str = ''
    _now: int = 0
    _last_chunk: int = -1  # of joints
    _poses: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict)
    _plans: deque[_Plan] = field(default_factory=lambda: deque(maxlen=SUPERSEDED + 1))
    _frames: dict[str, OrderedDict[int, np.ndarray]] = field(default_factory=dict)

    def picture(self, camera: str, stamp: int, pixels: np.ndarray) -> Iterator[Drawing]:
        """A camera picture, uint8 [H, W, 3]."""
        yield from self._at(stamp)
        frames = self._frames.setdefault(camera, OrderedDict())
        frames[stamp] = pixels
        while len(frames) > FRAMES:
            frames.popitem(last=False)
        yield Drawing(f'cameras/{camera}', stamp, pixels)

    def pose(self, stamp: int, position: np.ndarray) -> Iterator[Drawing]:
        """Where the end effector is: position [3], m."""
        yield from self._at(stamp)
        self._poses[stamp] = np.asarray(position, np.float32)
        while len(self._poses) > PATH:
            self._poses.popitem(last=False)
        if len(self._poses) % PATH_EVERY == 0 and len(self._poses) > 1:
            yield Drawing('world/path', stamp, Lines([np.stack([*self._poses.values()])]))

    def fingers(self, stamp: int, positions: np.ndarray) -> Iterator[Drawing]:
        """Two finger joints [2], m."""
        yield from self._at(stamp)
        opening = float(abs(positions[0] - positions[1])) / FINGERS_OPEN
        yield Drawing('gripper/measured', stamp, opening)

    def chunk(self, stamp: int, actions: np.ndarray) -> Iterator[Drawing]:
        """A chunk [n, k] for the observation at `stamp`; a repeated one is drawn once.

        Of deltas (k = 7) also where it leads; where joints lead is not known.
        """
        yield from self._at(stamp, drawn_late=True)
        if stamp in (self._last_chunk, *(plan.stamp for plan in self._plans)):
            return
        yield Drawing('time/age', stamp, max(0, self._now - stamp) / 1e6)
        yield Drawing('time/chunk_lasts', stamp, len(actions) * self.period / 1e6)
        if self._info.get('action.kind', 'ee_delta') != 'ee_delta' or actions.shape[1] != DELTAS:
            self._last_chunk = stamp
            return
        yield Drawing('gripper/wished', stamp, float(actions[0, 6]))
        start = self._pose_at(stamp)
        if start is None:
            return
        if self._plans:
            last = self._plans[-1]
            steps = -(-(self._now - last.stamp) // self.period)
            last.played = int(np.clip(steps, 0, len(last.points) - 1))
        step = float(self._info.get('action.step_position', STEP_POSITION))
        moves = np.clip(actions[:, :3], -1.0, 1.0) * step
        points = np.concatenate([start[None], start + np.cumsum(moves, axis=0)])
        self._plans.append(_Plan(stamp, points.astype(np.float32)))
        yield from self._draw_plans(stamp)

    def statistics(self, stamp: int, values: Mapping[str, str]) -> Iterator[Drawing]:
        """Key and value of `~/inference_stats`, for the chunk at `stamp`."""
        yield from self._at(stamp, drawn_late=True)
        for key, text in values.items():
            if key.endswith('_ms') and not key.startswith('node.'):
                yield Drawing(f'time/{key.removesuffix("_ms")}', stamp, float(text))
        for key in ('tokens_kept', 'tokens_total'):
            if key in values:
                yield Drawing(f'tokens/{key.removeprefix("tokens_")}', stamp, float(values[key]))
        kept = np.array([int(n) for n in values.get('kept', '').split(',') if n], np.int64)
        yield from self._draw_kept(stamp, kept)

    def information(self, stamp: int, values: Mapping[str, str]) -> Iterator[Drawing]:
        """Key and value of `~/policy_info`."""
        self._info = dict(values)
        self._instruction = values.get('instruction', self._instruction)
        if float(rate := values.get('control_rate', 0) or 0) > 0:
            self.period = round(1e9 / float(rate))
        yield self._text(stamp)

    def instruction(self, text: str) -> Iterator[Drawing]:
        """What the robot is told."""
        self._instruction = text
        yield self._text(self._now)

    def episode(self, stamp: int, values: Mapping[str, str]) -> Iterator[Drawing]:
        """Key and value of `sim_bridge/episode` or of a robot's state."""
        yield from self._at(stamp)
        self._episode = dict(values)
        yield self._text(stamp)

    # -- helpers -------------------------------------------------------------------------------
    def _at(self, stamp: int, drawn_late: bool = False) -> Iterator[Drawing]:
        """Follow the clock; empty the scene when something new begins."""
        back, ahead = stamp < self._now - REWIND, self._now and stamp > self._now + JUMP
        if back or ahead:
            self._poses.clear()
            self._plans.clear()
            self._frames.clear()
            self._now = stamp
            for name in ('path', 'plan', 'superseded', 'unplayed'):
                yield Drawing(f'world/{name}', stamp, Lines([]))
        if not drawn_late:
            self._now = max(self._now, stamp)

    def _pose_at(self, stamp: int) -> np.ndarray | None:
        """The pose nearest to a stamp, within a control period."""
        near = min(self._poses, key=lambda other: abs(other - stamp), default=None)
        if near is None or abs(near - stamp) > self.period:
            return None
        return self._poses[near]

    def _draw_plans(self, stamp: int) -> Iterator[Drawing]:
        *old, newest = self._plans
        yield Drawing('world/plan', stamp, Lines([newest.points]))
        yield Drawing('world/superseded', stamp, Lines([p.points[: p.played + 1] for p in old]))
        rests = (p.points[p.played :] for p in old)
        yield Drawing(
            'world/unplayed', stamp, Lines([piece for rest in rests for piece in dashes(rest)])
        )

    def _draw_kept(self, stamp: int, kept: np.ndarray) -> Iterator[Drawing]:
        patches = int(self._info.get('patches_per_view', 0) or 0)
        for view, camera in enumerate(self.cameras if patches else ()):
            pixels = self._frames.get(camera, {}).get(stamp)
            if pixels is not None:
                drawn = draw_kept(pixels, kept_grid(kept, view, patches))
                yield Drawing(f'kept/{camera}', stamp, drawn)

    def _text(self, stamp: int) -> Drawing:
        info, episode = self._info, self._episode
        options = [k for k in info if k.startswith(f'pruning.{info.get("mode", "")}.')]
        told = ('episode', 'task', 'initial_state', 'state', 'step', 'result', 'reason')
        lines = [
            f'### {self._instruction or "no instruction"}',
            f'mode **{info.get("mode", "unknown")}**, '
            f'checkpoint {PurePath(info.get("checkpoint", "")).name or "unknown"}',
            ', '.join(f'{k} {episode[k]}' for k in told if episode.get(k)),
            ', '.join(f'{k.rsplit(".", 1)[1]} {info[k]}' for k in options),
        ]
        return Drawing('text', stamp, '\n\n'.join(lines))


def dashes(points: np.ndarray) -> list[np.ndarray]:
    """A polyline [n, 3] as a dashed one: the first half of each of its pieces."""
    return [np.stack([a, (a + b) / 2]) for a, b in pairwise(points)]
