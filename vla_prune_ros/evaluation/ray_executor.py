# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes spread over the machines of a ray cluster.

An episode does not depend on where it runs, so the records are those of local processes. Ray is
no requirement of the package. Other machines need the same version of the package and the
checkpoints, under the same paths or as embedded policies; their digests are compared.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from vla_prune_ros.evaluation.rollouts import (
    Episode,
    EpisodeRecord,
    Session,
    Setup,
    checkpoint_directory,
)


@dataclass(frozen=True)
class Cluster:
    """What there is to run on. `workers`: how many fit at once; `machines`: over how many."""

    workers: int
    machines: int


class _Worker:
    """What runs on the cluster."""

    def __init__(self, setup: Setup, session: Callable[[Setup], Session]) -> None:
        _compare(setup.checkpoint, setup.sha256)
        self._runner = session(setup)

    def ready(self) -> None:
        """Returns once the robot and the policy stand."""

    def run(self, episode: Episode) -> EpisodeRecord:
        """Run one episode."""
        if episode.entry.checkpoint:
            _compare(episode.entry.checkpoint, episode.entry.sha256)
        return self._runner.run(episode)


@dataclass
class _Place:
    actor: Any
    episode: Episode | None = None


def _compare(checkpoint: str, sha256: str) -> None:
    from vla_prune_ros.vla.checkpoint import weights_digest

    if sha256 and weights_digest(checkpoint_directory(checkpoint)) != sha256:
        raise ValueError(f'{checkpoint} holds other weights on {os.uname().nodename}')


def import_ray() -> ModuleType:
    """The package ray.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise RuntimeError(
            '--executor ray needs the package ray, which is not installed here; install it with'
            ' `pip install ray`, or leave the option out to use the cores of this machine'
        ) from None
    return ray


def connect(setup: Setup) -> Cluster:
    """Join the cluster of RAY_ADDRESS, without that start one on this machine.

    Ray's own search for a running cluster waits for minutes where one was killed before.

    Raises:
        RuntimeError: ray is not installed, or no worker of this setup would ever fit.
        ConnectionError: there is no such cluster.
    """
    ray = import_ray()
    if not ray.is_initialized():
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # it would call home
        address = os.environ.get('RAY_ADDRESS') or 'local'
        ray.init(address, logging_level=logging.WARNING)
    nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
    need = 'GPU' if _on_gpu(setup) else 'CPU'
    per_worker = 1 if _on_gpu(setup) else setup.threads
    room = [int(node.get(need, 0) // per_worker) for node in nodes]
    if not any(room):
        raise RuntimeError(f'no machine of the ray cluster has {per_worker} {need} for a worker')
    return Cluster(sum(room), sum(bool(n) for n in room))


def run_on_ray(
    setup: Setup,
    episodes: Iterable[Episode],
    n: int,
    session: Callable[[Setup], Session],
) -> Iterator[EpisodeRecord]:
    """Run episodes with `n` workers and yield their records as they come.

    A worker that dies, or loses its machine, is replaced, and its episode tried once more: a
    second death is its outcome. Workers that find no room yet join when they do.

    Raises:
        RuntimeError: ray is not installed, or a worker cannot be built.
    """
    ray = import_ray()
    cluster = connect(setup)
    lost = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
    queue = deque(episodes)
    waiting: dict[Any, _Place] = {}
    died: set[tuple] = set()

    def start() -> None:
        actor = _actor(ray, setup, n, cluster, session)
        waiting[actor.ready.remote()] = _Place(actor)

    try:
        for _ in range(n):
            start()
        while queue or any(place.episode for place in waiting.values()):
            done, _ = ray.wait([*waiting], num_returns=1)
            place = waiting.pop(done[0])
            try:
                record = ray.get(done[0])
            except lost as error:
                if place.episode is None:
                    raise RuntimeError(f'an evaluation worker could not start:\n{error}') from None
                if place.episode.key in died:
                    error_text = f'worker died twice: {_line(error)}'
                    yield EpisodeRecord(place.episode, '', '', error=error_text)
                else:
                    died.add(place.episode.key)
                    queue.append(place.episode)
                if queue:
                    start()
                continue
            except ray.exceptions.RayError as error:
                raise RuntimeError(f'an evaluation worker failed:\n{error}') from None
            if record is not None:
                yield record
            if not queue:
                ray.kill(place.actor)
                continue
            place.episode = queue.popleft()
            waiting[place.actor.run.remote(place.episode)] = place
    finally:
        for place in waiting.values():
            ray.kill(place.actor)


def _actor(
    ray: ModuleType,
    setup: Setup,
    n: int,
    cluster: Cluster,
    session: Callable[[Setup], Session],
) -> Any:
    options: dict[str, Any] = {'num_cpus': setup.threads, 'max_restarts': 0}
    if _on_gpu(setup):
        options['num_gpus'] = 1 / math.ceil(n / cluster.workers)
        setup = replace(setup, device='cuda')  # ray shows each worker its own GPU as the first
    if backend := os.environ.get('MUJOCO_GL'):
        options['runtime_env'] = {'env_vars': {'MUJOCO_GL': backend}}
    return ray.remote(_Worker).options(**options).remote(setup, session)


def _on_gpu(setup: Setup) -> bool:
    return setup.device.startswith('cuda')


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())[:300]
