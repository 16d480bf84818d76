# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Closed-loop episodes of a policy on a simulated robot, in lockstep.

The robot stands still while the policy thinks, plays the whole chunk open loop and asks again, as
in the authors' evaluation of OpenVLA-OFT. An episode is a pure function of its `Episode` and
the weights, so the order of episodes and the number of workers change nothing but the time.
"""

from __future__ import annotations

import time
import traceback
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros.sim import SimulatedRobot, make_robot, to_env_action

if TYPE_CHECKING:
    from vla_prune_ros.evaluation.flops import PassWork, WorkMeter
    from vla_prune_ros.policy import ActionChunk, VLAPolicy
    from vla_prune_ros.vla.config import OpenVLAConfig


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a pruning mode with its options, under a name."""

    name: str
    mode: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Episode:
    """What identifies one episode. `max_steps` overrides the task's limit."""

    entry: Entry
    task: int
    state: int
    max_steps: int | None = None
    keep_actions: bool = False

    @property
    def key(self) -> tuple:
        """Equal for episodes that must have the same outcome."""
        options = tuple(sorted((k, repr(v)) for k, v in self.entry.options.items()))
        return (self.entry.name, self.entry.mode, options, self.task, self.state, self.max_steps)


@dataclass
class EpisodeRecord:
    """Outcome of one episode, ready for JSON.

    `success` is None when an exception ended the episode: such an episode says nothing about the
    policy and is counted apart. Per-layer numbers and `flops` are means over the queries;
    `timing_ms` keeps every query.
    """

    episode: Episode
    task_name: str
    instruction: str
    success: bool | None = None
    steps: int = 0
    queries: int = 0
    visual_tokens: int = 0
    kept: float = 0.0
    visual_rows: list[float] = field(default_factory=list)
    flops: dict[str, float] = field(default_factory=dict)
    timing_ms: dict[str, list[float]] = field(default_factory=dict)
    resets: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    error: str | None = None
    actions: list[list[float]] | None = None

    def to_json(self) -> dict:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> EpisodeRecord:
        """The inverse of `to_json`."""
        data = dict(data)
        episode = dict(data.pop('episode'))
        entry = Entry(**episode.pop('entry'))
        return cls(episode=Episode(entry=entry, **episode), **data)


@dataclass(frozen=True)
class Setup:
    """What a worker builds before its first episode. Picklable.

    `threads` is the number of torch threads of each worker; more than one makes float sums
    depend on the machine.
    """

    checkpoint: str
    suite: str = 'tabletop'
    robot_options: dict[str, Any] = field(default_factory=dict)
    device: str = 'cpu'
    dtype: str = 'float32'
    unnorm_key: str | None = None
    readout_start: int | None = None
    seed: int = 7
    threads: int = 1


class Session:
    """One policy and one robot; use it from the thread that made it."""

    def __init__(self, setup: Setup) -> None:
        import torch

        from vla_prune_ros.evaluation.flops import WorkMeter
        from vla_prune_ros.policy import VLAPolicy

        torch.set_num_threads(setup.threads)
        self.setup = setup
        self.policy = VLAPolicy.from_pretrained(
            setup.checkpoint,
            device=setup.device,
            dtype=setup.dtype,
            unnorm_key=setup.unnorm_key,
            readout_start=setup.readout_start,
        )
        self.meter = WorkMeter(self.policy.model.decoder)
        self.robot = make_robot(setup.suite, **setup.robot_options)

    def run(self, episode: Episode) -> EpisodeRecord:
        """Run one episode; an exception becomes part of the record."""
        task = self.robot.tasks[episode.task]
        record = EpisodeRecord(episode, task.name, task.instruction)
        start = time.perf_counter()
        try:
            self.policy.set_pruning('none')  # so that a seeded mode is built anew even if equal
            self.policy.set_pruning(episode.entry.mode, **self._options(episode))
            self.policy.reset()
            run_episode(self.policy, self.robot, self.meter, record)
        except Exception as error:
            record.success = None
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f'{frame.filename.rsplit("/", 1)[-1]}:{frame.lineno}'
            record.error = f'{type(error).__name__} at {where}: {error}'
        record.wall_s = round(time.perf_counter() - start, 3)
        return record

    def close(self) -> None:
        """Free the rendering context."""
        self.robot.close()

    def _options(self, episode: Episode) -> dict[str, Any]:
        """The entry's options; a seeded mode gets a seed of its own for every initial state."""
        options = dict(episode.entry.options)
        if 'seed' not in options and 'seed' in mode_options(episode.entry.mode):
            text = f'{self.setup.seed}/{episode.task}/{episode.state}'
            options['seed'] = zlib.crc32(text.encode()) & 0x7FFFFFFF
        return options


def mode_options(mode: str) -> tuple[str, ...]:
    """Names of the options a registered mode has."""
    from vla_prune_ros.pruning import MODES

    return tuple(option.name for option in MODES[mode].options)


def run_episode(
    policy: VLAPolicy, robot: SimulatedRobot, meter: WorkMeter, record: EpisodeRecord
) -> None:
    """Play one episode into `record`, which names task, initial state and step limit.

    Success is tested after every control step and ends the episode.
    """
    from vla_prune_ros.policy import Observation

    episode = record.episode
    task = robot.tasks[episode.task]
    limit = episode.max_steps or task.max_steps
    observation = robot.reset(episode.task, episode.state)
    passes: list[PassWork] = []
    resets: Counter[str] = Counter()
    executed: list[np.ndarray] = []
    record.success = False
    while not record.success and record.steps < limit:
        chunk = policy.step(
            Observation(
                images=observation.images,
                proprio=observation.proprio,
                instruction=task.instruction,
                stamp=observation.time,
            )
        )
        record.queries += 1
        passes.append(meter.last)
        _note_query(record, chunk, resets)
        chunk_end = min(len(chunk.actions), limit - record.steps)
        for number, action in enumerate(chunk.actions[:chunk_end], start=1):
            # rendering costs more than physics: only frames that somebody looks at
            render = number == chunk_end or policy.wants_frames
            observation = robot.step(to_env_action(action), render=render)
            policy.record_executed(action)
            executed.append(action)
            record.steps += 1
            if robot.success():
                record.success = True
                break
            if number < chunk_end:
                if policy.wants_frames:
                    policy.observe(observation.images)
                if policy.wants_query:
                    observation = robot.observe()
                    break
    record.resets = dict(resets)
    record.kept = record.kept / record.queries
    record.visual_rows = np.mean([p.visual_rows for p in passes], axis=0).round(3).tolist()
    record.flops = mean_flops(policy.config, passes)
    if episode.keep_actions:
        record.actions = np.round(executed, 6).tolist()


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
