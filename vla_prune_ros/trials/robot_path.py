# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An episode of `robot_trial`, and how smooth the path of its arm was. Knows no ROS."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE = 0.05  # s between two points of the path


@dataclass(frozen=True)
class RobotEpisode:
    """One episode; the means and jerks are the bridge's, lately."""

    output: str
    latency: float
    task: str
    state: int
    success: bool
    steps: int
    starved: int
    late: int
    jerk_rms: float
    reason: str = ''
    bridge: dict[str, str] = field(default_factory=dict)


class Ledger:
    """Episodes in a file, one a line, behind what they were run with: a trial may go on later.

    Attributes:
        episodes: all of them.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin it.

        Raises:
            ValueError: it is of a trial with other settings.
        """
        self._path = path
        lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
        if lines and json.loads(lines[0]) != settings:
            raise ValueError(f'{path} is of another trial, {lines[0]}; choose another --out')
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings) + '\n', encoding='utf-8')
        self.episodes = [RobotEpisode(**json.loads(line)) for line in lines[1:]]

    def has(self, output: str, latency: float, task: str, state: int) -> bool:
        """Whether an episode was run."""
        wanted = output, latency, task, state
        return any((e.output, e.latency, e.task, e.state) == wanted for e in self.episodes)

    def add(self, episode: RobotEpisode) -> None:
        """One more."""
        self.episodes.append(episode)
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(asdict(episode)) + '\n')


def thinned(path: list[tuple[float, np.ndarray]]) -> list[tuple[float, np.ndarray]]:
    """A path (s, [3] m) with about `SAMPLE` between its points."""
    kept: list[tuple[float, np.ndarray]] = []
    for at, point in path:
        if not kept or not 0 <= at - kept[-1][0] < 0.9 * SAMPLE:
            kept.append((at, point))
    return kept


def jerk_rms(path: list[tuple[float, np.ndarray]]) -> float:
    """Of a path sampled every 50 ms, where the samples are regular and nothing was put away."""
    squares = []
    for k in range(3, len(path)):
        times = np.array([t for t, _ in path[k - 3 : k + 1]])
        a, b, c, d = (p for _, p in path[k - 3 : k + 1])
        if np.all(np.abs(np.diff(times) - SAMPLE) < 0.3 * SAMPLE) and np.linalg.norm(d - a) < 0.2:
            squares.append(float(np.sum((d - 3 * c + 3 * b - a) ** 2)) / SAMPLE**6)
    return float(np.sqrt(np.mean(squares))) if squares else float('nan')
