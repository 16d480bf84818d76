# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One closed-loop episode: ask, play the whole chunk, ask again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros.evaluation.auditing import note_audit
from vla_prune_ros.evaluation.landmarks import add_counts, count_landmarks
from vla_prune_ros.evaluation.motion import path_length, rms_jerk
from vla_prune_ros.sim import SimulatedRobot, to_env_action

if TYPE_CHECKING:
    from vla_prune_ros.evaluation.flops import PassWork, WorkMeter
    from vla_prune_ros.evaluation.rollouts import EpisodeRecord
    from vla_prune_ros.policy import ActionChunk, VLAPolicy
    from vla_prune_ros.vla.config import OpenVLAConfig


def run_episode(
    policy: VLAPolicy,
    robot: SimulatedRobot,
    meter: WorkMeter,
    record: EpisodeRecord,
    *,
    audit: bool = False,
) -> list[np.ndarray]:
    """Play one episode into `record`, which names task, initial state and step limit.

    Success is tested after every control step and ends the episode. What happens within it may
    allow more steps. With `audit` every observation is also run dense, outside of the history.
    Returns the executed actions, float64 [7] each.
    """
    from vla_prune_ros.policy import Observation

    episode = record.episode
    limit = episode.max_steps or robot.tasks[episode.task].max_steps
    observation = robot.reset(episode.task, episode.state)
    record.instruction = robot.instruction
    passes: list[PassWork] = []
    resets: Counter[str] = Counter()
    executed: list[np.ndarray] = []
    places = [observation.ee_position]
    record.success = False
    later = _Later(policy)
    while not record.success and record.steps < limit + robot.extra_steps:
        chunk = policy.step(
            Observation(
                images=observation.images,
                proprio=observation.proprio,
                instruction=robot.instruction,
                stamp=observation.time,
            )
        )
        later.take_out(chunk.timing)
        record.queries += 1
        passes.append(meter.last)
        _note_query(record, chunk, resets)
        _note_landmarks(record, robot, policy.settings.cameras, chunk)
        chunk_end = min(len(chunk.actions), limit + robot.extra_steps - record.steps)
        if audit:
            note_audit(record.audit, policy.audit(steps=chunk_end))
        for number, action in enumerate(chunk.actions[:chunk_end], start=1):
            # rendering costs more than physics: only frames that somebody looks at
            observation = robot.step(to_env_action(action), render=number == chunk_end)
            policy.record_executed(action)
            executed.append(action)
            places.append(observation.ee_position)
            record.steps += 1
            if robot.success():
                record.success = True
                break
            if number < chunk_end:
                if policy.wants_frames:
                    later.show(robot)
                if policy.wants_query:
                    observation = robot.observe()
                    break
    record.resets = dict(resets)
    record.events = [[round(event.time, 4), event.kind] for event in robot.events]
    record.path_m = round(path_length(places), 4)
    record.jerk = round(rms_jerk(places, robot.control_hz), 3)
    record.kept = record.kept / record.queries
    record.visual_rows = np.mean([p.visual_rows for p in passes], axis=0).round(3).tolist()
    record.flops = mean_flops(policy.config, passes)
    if episode.keep_actions:
        record.actions = np.round(executed, 6).tolist()
    return executed


class _Later:
    """Frames between two queries, drawn when the mode looks at them; not in its times.

    On a robot they would be there anyway. Few modes look at more than one of a chunk.
    """

    def __init__(self, policy: VLAPolicy) -> None:
        self._policy, self._ms = policy, 0.0

    def show(self, robot: SimulatedRobot) -> None:
        """Let the policy observe the images of now."""
        policy = self._policy
        if not hasattr(policy, 'prepare'):  # it is in another process
            policy.observe(robot.observe().images)
            return
        draw = robot.snapshot()

        def prepared() -> Any:
            start = time.perf_counter()
            try:
                return policy.prepare(draw())
            finally:
                self._ms += 1e3 * (time.perf_counter() - start)

        policy.observe({}, prepared)

    def take_out(self, timing: dict[str, float]) -> None:
        """Correct the times of a chunk."""
        for stage in ('select', 'total'):
            if stage in timing:
                timing[stage] -= self._ms
        self._ms = 0.0


def mean_flops(config: OpenVLAConfig, passes: Sequence[PassWork]) -> dict[str, float]:
    """Mean FLOPs per query of each part."""
    from vla_prune_ros.evaluation.flops import query_flops

    parts = [query_flops(config, work) for work in passes]
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def _note_query(record: EpisodeRecord, chunk: ActionChunk, resets: Counter[str]) -> None:
    record.visual_tokens = chunk.n_visual
    record.kept += len(chunk.kept)  # a sum until the episode ends
    for stage, ms in chunk.timing.items():
        record.timing_ms.setdefault(stage, []).append(round(float(ms), 3))
    if chunk.reset_reason:
        resets[chunk.reset_reason] += 1


def _note_landmarks(
    record: EpisodeRecord, robot: SimulatedRobot, views: Sequence[str], chunk: ActionChunk
) -> None:
    counts: dict[str, list[int]] = {}
    count_landmarks(counts, robot, views, chunk)
    add_counts(record.landmarks, counts)
    if robot.events:
        if not record.landmarks_after:
            record.landmarks_next = counts
        add_counts(record.landmarks_after, counts)
