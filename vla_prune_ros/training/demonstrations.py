# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Demonstrations of the tabletop's scripted experts, one compressed file per episode.

The robot is driven either by the expert with injected noise, or by a trained policy (DAgger,
Ross et al. 2011). Either way the labels are clean: at each recorded instant the simulation is
forked and the expert alone drives it for one chunk.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vla_prune_ros.datasets.tabletop import VIEWS
from vla_prune_ros.sim.base import SimObservation, to_env_action, to_policy_gripper
from vla_prune_ros.sim.tabletop import TabletopRobot
from vla_prune_ros.sim.tabletop.expert import expert_action
from vla_prune_ros.sim.tabletop.tasks import COLOURS, TASKS, TabletopTask
from vla_prune_ros.vla.pictures import jpeg_round_trip, resize

CHUNK = 8
_SLIP_RATE = 0.012  # per step; a slip commands the wrong gripper state for a few steps


@dataclass(frozen=True)
class CollectionConfig:
    """What to collect: `episodes` episodes, numbered from `first`, into `directory`.

    image_size: pixels of the stored frames; stride: mean number of steps between samples;
    noise: largest standard deviation of the injected action noise; policy: checkpoint directory
    of a learner that drives (None: the expert drives); expert_share: share of chunks in which
    the expert takes over from the learner; detour: longest detour in steps, in which the hand
    first serves another instruction; alternatives: further instructions for which every sample
    is labelled, too. Without the last two the hand's position alone tells which block is meant,
    and the learner need neither look nor listen.
    """

    directory: Path
    episodes: int
    first: int = 0
    image_size: int = 112
    stride: int = 3
    noise: float = 0.45
    policy: Path | None = None
    expert_share: float = 0.25
    detour: int = 0
    alternatives: int = 0
    seed: int = 0

    def path(self, episode: int) -> Path:
        """File of one episode."""
        return self.directory / f'episode_{episode:06d}.npz'


def collect(config: CollectionConfig, workers: int = 1, progress: bool = True) -> list[Path]:
    """Record the episodes that are not on disk yet; returns the files of all of them."""
    config.directory.mkdir(parents=True, exist_ok=True)
    episodes = range(config.first, config.first + config.episodes)
    missing = [e for e in episodes if not config.path(e).exists()]
    with tqdm(
        total=config.episodes,
        initial=config.episodes - len(missing),
        desc=config.directory.name,
        unit='episode',
        disable=not progress,
    ) as bar:
        if workers <= 1:
            for _ in _record_all(config, missing):
                bar.update()
        else:
            context = multiprocessing.get_context('spawn')
            shares = [missing[i::workers] for i in range(workers)]
            queue = context.Queue()
            processes = [
                context.Process(target=_worker, args=(config, share, queue), daemon=True)
                for share in shares
            ]
            for process in processes:
                process.start()
            for _ in missing:
                error = queue.get()
                if error is not None:
                    for process in processes:
                        process.terminate()
                    raise RuntimeError(f'a demonstration worker failed:\n{error}')
                bar.update()
            for process in processes:
                process.join()
    return [config.path(e) for e in episodes]


def _worker(config: CollectionConfig, episodes: list[int], queue) -> None:
    import traceback

    try:
        for _ in _record_all(config, episodes):
            queue.put(None)
            if not multiprocessing.parent_process().is_alive():
                return  # whoever wanted the episodes was killed
    except BaseException:
        queue.put(traceback.format_exc())
        raise


def _record_all(config: CollectionConfig, episodes: Iterable[int]) -> Iterable[int]:
    robot = TabletopRobot(split='train')
    try:
        learner = _load_learner(config.policy) if config.policy else None
        for episode in episodes:
            arrays = record_episode(robot, episode, config, learner)
            path = config.path(episode)
            # written under another name first: an interrupted run leaves no half file
            partial = path.with_suffix(f'.{os.getpid()}.partial')
            with partial.open('wb') as file:
                np.savez_compressed(file, **arrays)
            partial.rename(path)
            yield episode
    finally:
        robot.close()


def _load_learner(directory: Path) -> Callable[[SimObservation, str], np.ndarray]:
    import torch

    from vla_prune_ros.policy import Observation, VLAPolicy

    torch.set_num_threads(1)
    policy = VLAPolicy.from_pretrained(directory)

    def act(observation: SimObservation, instruction: str) -> np.ndarray:
        policy.reset()
        chunk = policy.step(
            Observation(
                images=observation.images,
                proprio=observation.proprio,
                instruction=instruction,
                stamp=observation.time,
            )
        )
        return to_env_action(chunk.actions)

    return act


def record_episode(
    robot: TabletopRobot,
    episode: int,
    config: CollectionConfig,
    learner: Callable[[SimObservation, str], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Drive one episode of task `episode % 8` and return its samples.

    Returns arrays over n samples with k labels each (the task first, then the alternatives):
    images uint8 [n, 2, S, S, 3] before the centre crop, proprio float64 [n, 8], block_pixels
    float32 [n, 2, 4, 2] and plate_pixels [n, 2, 2] (x, y in the stored frame, NaN out of view);
    task int64 [n, k], actions float32 [n, k, 8, 7] (gripper 1 open, 0 closed), relative float32
    [n, k, 6] (target block minus hand, plate minus hand, m). Besides them instructions str [8],
    the texts that `task` counts.
    """
    rng = np.random.default_rng([config.seed, episode, learner is not None])
    index = episode % len(TASKS)
    task = TASKS[index]
    observation = robot.reset(index, episode)
    sigma = rng.uniform(0.0, config.noise)
    drift, slip, queue = np.zeros(6), 0, []
    samples: dict[str, list] = {}
    done_for = 0
    detour, other = _detour(task, config.detour, rng)
    for step in range(detour + task.max_steps):
        if learner is not None and not queue:
            if rng.random() < config.expert_share:
                queue = [None] * CHUNK
            else:
                observation = robot.observe()
                queue = list(learner(observation, task.instruction))
        if rng.random() < 1.0 / config.stride:
            others = rng.permutation(np.delete(np.arange(len(TASKS)), index))
            labels = [index, *others[: config.alternatives]]
            for name, value in _sample(robot, labels, config.image_size).items():
                samples.setdefault(name, []).append(value)
        planned = queue.pop(0) if learner is not None else None
        wanted = other if step < detour else task
        action = expert_action(wanted, robot.scene()) if planned is None else planned
        if learner is None:
            drift = 0.8 * drift + 0.6 * rng.normal(0.0, sigma, 6) * [1, 1, 1, 0.15, 0.15, 0.15]
            slip = slip - 1 if slip else (rng.random() < _SLIP_RATE) * rng.integers(2, 6)
            action = np.concatenate([action[:6] + drift, [-action[6] if slip else action[6]]])
        robot.advance(action)
        # a few samples after success teach the policy to stay there
        done_for = done_for + 1 if robot.success() else 0
        if done_for > 6:
            break
    arrays = {name: np.stack(values) for name, values in samples.items()}
    return arrays | {'instructions': np.array([task.instruction for task in TASKS])}


def _detour(
    task: TabletopTask, longest: int, rng: np.random.Generator
) -> tuple[int, TabletopTask]:
    """How many steps to serve another instruction first, and which."""
    if not longest:
        return 0, task
    others = [t for t in TASKS if t.colour != task.colour]
    return int(rng.integers(4, longest + 1)), others[rng.integers(len(others))]


def _sample(robot: TabletopRobot, labels: list[int], size: int) -> dict[str, np.ndarray]:
    observation, scene = robot.observe(), robot.scene()
    scale = size / robot.cameras[0].width
    images = [resize(jpeg_round_trip(observation.images[v]), size) for v in VIEWS]

    def pixels(point: np.ndarray) -> np.ndarray:  # -> [2 views, 2]
        both = np.stack([(robot.project(point, v) + 0.5) * scale - 0.5 for v in VIEWS])
        inside = ((both > -0.5) & (both < size - 0.5)).all(-1, keepdims=True)
        return np.where(inside, both, np.nan).astype(np.float32)

    return {
        'images': np.stack(images),
        'proprio': observation.proprio,
        'task': np.array(labels),
        'actions': np.stack([clean_chunk(robot, TASKS[i]) for i in labels]),
        'block_pixels': np.stack([pixels(scene.blocks[c]) for c in COLOURS], axis=1),
        'plate_pixels': pixels(scene.plate),
        'relative': np.stack(
            [
                np.concatenate([scene.blocks[TASKS[i].colour], scene.plate])
                - np.tile(scene.hand, 2)
                for i in labels
            ]
        ).astype(np.float32),
    }


def clean_chunk(robot: TabletopRobot, task: TabletopTask) -> np.ndarray:
    """The expert's next actions float32 [8, 7] from here, without noise; state unchanged."""
    state = robot.save()
    chunk = np.empty((CHUNK, 7), dtype=np.float32)
    for k in range(CHUNK):
        action = expert_action(task, robot.scene())
        chunk[k, :6] = action[:6]
        chunk[k, 6] = to_policy_gripper(action[6])
        if k + 1 < CHUNK:
            robot.advance(action)
    robot.restore(state)
    return chunk
