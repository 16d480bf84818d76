# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the policy sees while it is measured: scenes in which things move as they do on a robot.

Modes that compare frames (`vla_cache`, `specprune`) do work that depends on what changed, so
neither noise nor a still picture would do. `tabletop` plays scripted experts in the simulator;
`synthetic` draws a moving arm, a moving block and a moving camera, and needs no simulator. Every
arm of a comparison sees the same frames and the same executed actions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle

import numpy as np

from vla_prune_ros.vla.config import OpenVLAConfig

FRAMES = ('auto', 'tabletop', 'synthetic')
_PERIOD = 0.05  # s between control steps
_SIZE = 256
_SPEED = 0.5  # controller units of the synthetic arm


@dataclass(frozen=True)
class Query:
    """One control step at which a chunk is asked for, and what led there.

    Attributes:
        images: camera name -> uint8 [256, 256, 3].
        proprio: float64 [8].
        stamp: s.
        between: images of the k - 1 control steps since the last query, oldest first.
        executed: actions since the last query, float64 [k, 7], raw gripper.
        first: an episode begins here.
    """

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    stamp: float
    between: tuple[Mapping[str, np.ndarray], ...] = ()
    executed: np.ndarray = field(default_factory=lambda: np.empty((0, 7)))
    first: bool = False

    def fitted(self, config: OpenVLAConfig) -> Query:
        """The same for a model of another variant: pictures, state and actions are used again.

        Good to measure time: what is in the pictures stays, what the numbers mean does not.
        """
        names, state = config.cameras, max(1, config.proprio_dim)
        if names == tuple(self.images) and (state, config.action_dim) == (8, 7):
            return self
        executed = np.tile(self.executed, (1, -(-config.action_dim // 7)))
        return replace(
            self,
            images=_renamed(self.images, names),
            proprio=np.resize(self.proprio, state),
            between=tuple(_renamed(images, names) for images in self.between),
            executed=executed[:, : config.action_dim],
        )


def _renamed(images: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    return dict(zip(names, cycle(images.values()), strict=False))


def make_queries(frames: str, count: int, horizon: int = 8) -> tuple[str, list[Query]]:
    """Prepare queries; `auto` takes the simulator where it renders.

    Args:
        frames: one of `FRAMES`.
        count: how many.
        horizon: control steps from one to the next.

    Returns:
        The kind of frames taken, and the queries.
    """
    if frames == 'auto':
        try:
            return 'tabletop', tabletop_queries(count, horizon)
        except Exception as error:  # no simulator, or nothing to draw with: many kinds of errors
            print(f'bench: no tabletop ({error}); synthetic frames', file=sys.stderr)
            frames = 'synthetic'
    make = {'tabletop': tabletop_queries, 'synthetic': synthetic_queries}[frames]
    return frames, make(count, horizon)


def tabletop_queries(count: int, horizon: int = 8) -> list[Query]:
    """Episodes of the scripted experts, one task after the other."""
    from vla_prune_ros.sim.tabletop.expert import expert_action
    from vla_prune_ros.sim.tabletop.robot import TabletopRobot

    robot = TabletopRobot(image_size=_SIZE)
    queries: list[Query] = []
    stamp, episode = 0.0, 0
    try:
        while len(queries) < count:
            task = episode % len(robot.tasks)
            seen = robot.reset(task, episode // len(robot.tasks))
            stamp += 100.0  # another episode
            queries.append(Query(seen.images, seen.proprio, stamp, first=True))
            for _ in range(robot.tasks[task].max_steps // horizon):
                between, executed = [], []
                for _ in range(horizon):
                    action = expert_action(robot.tasks[task], robot.scene())
                    seen = robot.step(action)
                    stamp += _PERIOD
                    between.append(seen.images)
                    executed.append([*action[:6], (1 - action[6]) / 2])
                if robot.success():
                    break
                queries.append(
                    Query(seen.images, seen.proprio, stamp, tuple(between[:-1]),
                          np.array(executed))
                )  # fmt: skip
            episode += 1
    finally:
        robot.close()
    return queries[:count]


def synthetic_queries(count: int, horizon: int = 8) -> list[Query]:
    """One endless episode of drawn pictures."""
    pictures = _pictures()
    queries = [Query(next(pictures), _state(0), 0.0, first=True)]
    while len(queries) < count:
        seen = [next(pictures) for _ in range(horizon)]
        step = len(queries) * horizon
        executed = np.array([_action(k) for k in range(step - horizon, step)])
        queries.append(Query(seen[-1], _state(step), step * _PERIOD, tuple(seen[:-1]), executed))
    return queries


def _pictures() -> Iterator[dict[str, np.ndarray]]:
    """A still background with an arm and a block for one camera; the other camera moves."""
    table, wide = _texture(_SIZE, 0), _texture(2 * _SIZE, 1)
    step = 0
    while True:
        x, y = (round(float(v)) for v in _hand(step))
        agent = table.copy()
        agent[: y + 1, x - 10 : x + 10] = (90, 90, 100)  # the arm reaches down to the hand
        agent[y : y + 14, x - 18 : x + 18] = (40, 40, 45)
        agent[y + 14 : y + 30, x - 8 : x + 8] = (200, 30, 30)  # what it carries
        wrist = wide[y : y + _SIZE, x : x + _SIZE].copy()
        wrist[_SIZE - 60 :, 110:146] = (40, 40, 45)  # the fingers stay where they are
        yield {'agentview': agent, 'wrist': wrist}
        step += 1


def _hand(step: int) -> tuple[float, float]:
    """Pixel of the hand: a slow figure of eight."""
    return 128 + 70 * np.sin(0.04 * step), 90 + 50 * np.sin(0.08 * step)


def _action(step: int) -> list[float]:
    dx, dy = np.subtract(_hand(step + 1), _hand(step)) / 4.0 * _SPEED
    return [dx, dy, 0.0, 0.0, 0.0, 0.0, 1.0]


def _state(step: int) -> np.ndarray:
    x, y = _hand(step)
    return np.array([x / 512, y / 512, 0.3, 3.1, 0.0, 0.0, 0.03, -0.03])


def _texture(size: int, seed: int) -> np.ndarray:
    """Smooth blotches with some grain, uint8 [size, size, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 200, (size // 16 + 1, size // 16 + 1, 3))
    at = np.arange(size) / 16
    low = at.astype(int)
    part = (at - low)[:, None]
    high = np.minimum(low + 1, len(coarse) - 1)
    rows = coarse[low] * (1 - part)[..., None] + coarse[high] * part[..., None]
    image = rows[:, low] * (1 - part) + rows[:, high] * part
    return (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)
