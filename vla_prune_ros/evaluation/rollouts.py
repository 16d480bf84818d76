# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Closed-loop episodes of a policy on a simulated robot, in lockstep.

The robot stands still while the policy thinks, plays the whole chunk open loop and asks again, as
in the authors' evaluation of OpenVLA-OFT. An episode is a pure function of its `Episode` and
the weights, so the order of episodes and the number of workers change nothing but the time.
"""

from __future__ import annotations

import sys
import time
import traceback
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros import weights
from vla_prune_ros.evaluation.playing import run_episode
from vla_prune_ros.evaluation.videos import wants_video, write_video
from vla_prune_ros.sim import SimulatedRobot, SimulationError, backend_of, make_robot
from vla_prune_ros.sim.shifts import ShiftedRobot

if TYPE_CHECKING:
    from vla_prune_ros.evaluation.flops import WorkMeter
    from vla_prune_ros.policy import VLAPolicy


MAX_POLICIES = 2  # that a session holds in memory, beside each other


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a pruning mode with its options, under a name.

    `checkpoint` is None for the checkpoint of the run; one of its own may be a directory or the
    name of an embedded policy, and `sha256` then is the digest of its weights.
    """

    name: str
    mode: str
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    sha256: str = ''


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
        """Equal for episodes that must have the same outcome; weights count by their digest."""
        entry = self.entry
        options = tuple(sorted((k, repr(v)) for k, v in entry.options.items()))
        how = (entry.name, entry.mode, options, entry.sha256)
        return (*how, self.task, self.state, self.max_steps)


@dataclass
class EpisodeRecord:
    """Outcome of one episode, ready for JSON.

    `success` is None when an exception ended the episode: such an episode says nothing about the
    policy and is counted apart. Per-layer numbers and `flops` are means over the queries;
    `timing_ms` keeps every query. `landmarks` counts, over all queries, how often the patch that
    shows a thing was kept and how often the thing was in the picture; `landmarks_after` over the
    queries after the first event of a shift, `landmarks_next` over the very next one. `audit`
    keeps the deviation from the dense policy at every query, by group and `overall`.

    Attributes:
        events: [time in s, kind] of what a shift did, and when the robot was back on its way.
        path_m: way of the hand; `jerk`: root mean square of its third derivative, m/s3.
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
    landmarks: dict[str, list[int]] = field(default_factory=dict)
    audit: dict[str, list[float]] = field(default_factory=dict)
    landmarks_after: dict[str, list[int]] = field(default_factory=dict)
    landmarks_next: dict[str, list[int]] = field(default_factory=dict)
    events: list[list] = field(default_factory=list)
    path_m: float = 0.0
    jerk: float = 0.0
    resets: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    error: str | None = None
    failure: str = ''  # what failed, with an error: environment or policy
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

    `checkpoint` is a directory or the name of an embedded policy, `sha256` the digest of its
    weights, for workers on other machines to compare. `threads` is the number of torch threads of
    each worker; more than one makes float sums depend on the machine. Of failed episodes up to
    `max_videos` per entry are filmed into the folder `videos`. `shift` is how the world differs
    from the suite, as `shift_text` writes it, and `shift_seed` what it draws from. With `audit`
    every observation is also run dense.
    """

    checkpoint: str
    sha256: str = ''
    suite: str = 'tabletop'
    robot_options: dict[str, Any] = field(default_factory=dict)
    device: str = 'cpu'
    dtype: str = 'float32'
    quantization: str = 'none'
    unnorm_key: str | None = None
    variant: str = ''
    readout_start: int | None = None
    seed: int = 7
    shift: str = ''
    shift_seed: int = 0
    threads: int = 1
    videos: str = ''
    max_videos: int = 0
    audit: bool = False

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for episodes of two runs to be the same."""
        free = ['checkpoint', 'threads', 'videos', 'max_videos']
        free += [] if self.audit else ['audit']  # episodes without one go on as before
        if not self.shift:  # as episodes were logged before there were any
            free += ['shift', 'shift_seed']
        if not self.variant:
            free.append('variant')
        if self.quantization == 'none':
            free.append('quantization')
        return {key: value for key, value in asdict(self).items() if key not in free}


def checkpoint_directory(checkpoint: str) -> Path:
    """The directory of a checkpoint that is given as such or as the name of an embedded policy."""
    directory = Path(checkpoint)
    if not (directory / 'config.json').exists() and checkpoint in weights.available():
        return weights.directory(checkpoint)
    return directory


class Session:
    """One robot and the policies of the episodes; use it from the thread that made it.

    The run's own policy is loaded at once, those of other checkpoints when an episode needs them.
    At most `MAX_POLICIES` stay in memory.

    Attributes:
        setup: what it was built from.
        robot: the simulated robot.
        policy: that of the current or last episode.
        meter: counts the work of that policy.
    """

    def __init__(self, setup: Setup) -> None:
        import torch

        torch.set_num_threads(setup.threads)
        self.setup = setup
        self._loaded: dict[Path, tuple[VLAPolicy, WorkMeter]] = {}  # latest use last
        self.use(None)
        self.robot = make_setup_robot(setup)

    def use(self, checkpoint: str | None) -> VLAPolicy:
        """Take the policy of a checkpoint, None for the run's own, for what comes next."""
        directory = checkpoint_directory(checkpoint or self.setup.checkpoint)
        loaded = self._loaded.pop(directory, None)
        if loaded is None:
            while len(self._loaded) >= MAX_POLICIES:
                del self._loaded[next(iter(self._loaded))]
            self.policy = self.meter = None  # the last one must not outlive its place
            loaded = self._load(directory)
        self._loaded[directory] = loaded
        self.policy, self.meter = loaded
        return self.policy

    def _load(self, directory: Path) -> tuple[VLAPolicy, WorkMeter]:
        from vla_prune_ros.evaluation.flops import WorkMeter

        policy = load_policy(self.setup, directory)
        return policy, WorkMeter(policy.model.decoder)

    def run(self, episode: Episode) -> EpisodeRecord:
        """Run one episode; an exception becomes part of the record."""
        task = self.robot.tasks[episode.task]
        record = EpisodeRecord(episode, task.name, task.instruction)
        start = time.perf_counter()
        try:
            self.use(episode.entry.checkpoint)
            self.policy.set_pruning('none')  # so that a seeded mode is built anew even if equal
            self.policy.set_pruning(episode.entry.mode, **self._options(episode))
            self.policy.reset()
            audit = self.setup.audit
            executed = run_episode(self.policy, self.robot, self.meter, record, audit=audit)
            self._film(record, executed)
        except Exception as error:
            record.success = None
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f'{frame.filename.rsplit("/", 1)[-1]}:{frame.lineno}'
            record.error = f'{type(error).__name__} at {where}: {error}'
            record.failure = 'environment' if isinstance(error, SimulationError) else 'policy'
        record.wall_s = round(time.perf_counter() - start, 3)
        return record

    def close(self) -> None:
        """Free the rendering context."""
        self.robot.close()

    def _film(self, record: EpisodeRecord, executed: Sequence[np.ndarray]) -> None:
        """Make a video of a failed episode if there are not enough yet."""
        episode, setup = record.episode, self.setup
        name, folder = episode.entry.name, Path(setup.videos)
        if record.success or not wants_video(folder, name, setup.max_videos):
            return
        try:
            write_video(folder, self.robot, name, episode.task, episode.state, executed)
        except (OSError, SimulationError) as error:  # the outcome stands without its video
            print(f'no video of {name}, {record.task_name}: {error}', file=sys.stderr)

    def _options(self, episode: Episode) -> dict[str, Any]:
        """The entry's options; a seeded mode gets a seed of its own for every initial state."""
        options = dict(episode.entry.options)
        if 'seed' not in options and 'seed' in mode_options(episode.entry.mode):
            text = f'{self.setup.seed}/{episode.task}/{episode.state}'
            options['seed'] = zlib.crc32(text.encode()) & 0x7FFFFFFF
        return options


def make_setup_robot(setup: Setup) -> SimulatedRobot:
    """The robot of a run, in the world that its shift makes."""
    robot = make_robot(backend_of(setup.suite), suite=setup.suite, **setup.robot_options)
    return ShiftedRobot(robot, setup.shift, setup.shift_seed) if setup.shift else robot


def load_policy(setup: Setup, directory: Path) -> VLAPolicy:
    """The policy of a checkpoint as a run wants it."""
    from vla_prune_ros.policy import VLAPolicy

    policy = VLAPolicy.from_pretrained(
        directory,
        device=setup.device,
        dtype=setup.dtype,
        quantization=setup.quantization,
        unnorm_key=setup.unnorm_key or suite_statistics(directory, setup.suite, setup.variant),
        variant=setup.variant,
        readout_start=setup.readout_start,
    )
    if policy.config.action_kind != 'delta_pose':
        raise ValueError(
            f'{directory} commands {policy.config.action_kind}; the simulated robots take '
            'end-effector deltas only'
        )
    return policy


def suite_statistics(directory: Path, suite: str, variant: str = '') -> str | None:
    """Key of a suite's normalisation statistics; None if a checkpoint has none of that name."""
    from vla_prune_ros.vla.config import OpenVLAConfig

    known = OpenVLAConfig.from_directory(directory, variant).norm_stats
    return next((key for key in (suite, f'{suite}_no_noops') if key in known), None)


def mode_options(mode: str) -> tuple[str, ...]:
    """Names of the options a registered mode has."""
    from vla_prune_ros.pruning import MODES

    return tuple(option.name for option in MODES[mode].options)
