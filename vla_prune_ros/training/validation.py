# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Closed-loop success of a checkpoint while it is being trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vla_prune_ros.evaluation.rollouts import Entry, Episode, Setup
from vla_prune_ros.evaluation.statistics import wilson_interval
from vla_prune_ros.evaluation.workers import EpisodeLog, run_episodes
from vla_prune_ros.sim.tabletop.tasks import TASKS

FIRST_STATE = 1_000_000  # of the training split, far from those that are recorded


def closed_loop_success(
    checkpoint: Path, episodes: int, mode: str = 'none', workers: int = 1, device: str = 'cpu'
) -> dict[str, float | int]:
    """Drive the tabletop from initial states of the training split that no demonstration has.

    The held-out states of the suite stay untouched, so that they remain a test.

    Args:
        checkpoint: directory in the published layout.
        episodes: shared out over the tasks.
        mode: pruning mode, at its defaults.
        workers: processes, at least 1.
        device: of the policy.

    Returns:
        `success` (share, 0 to 1), its 95 % Wilson interval `low` and `high`, and `episodes`.

    Raises:
        RuntimeError: an episode ended in an exception.
    """
    setup = Setup(str(checkpoint), robot_options={'split': 'train'}, device=device)
    todo = [
        Episode(Entry(mode, mode), k % len(TASKS), FIRST_STATE + k // len(TASKS))
        for k in range(episodes)
    ]
    with tempfile.TemporaryDirectory() as folder:
        records = run_episodes(setup, todo, EpisodeLog(Path(folder) / 'log', {}), workers)
    for record in records:
        if record.error is not None:
            raise RuntimeError(f'validation on {record.task_name} failed: {record.error}')
    won = sum(record.success for record in records)
    low, high = wilson_interval(won, episodes)
    return {'success': won / episodes, 'low': low, 'high': high, 'episodes': episodes}
