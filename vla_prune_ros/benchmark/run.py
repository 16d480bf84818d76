# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the arms of a comparison in turn on the same queries, and keeps every number.

Arms are interleaved query by query, in an order that moves on, so that a drift of the machine
meets all of them alike. Everything from camera frames in host memory to robot actions in host
memory is inside the time of a query. Nothing is judged here; see `report`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_prune_ros.benchmark.reference import ReferencePolicy
from vla_prune_ros.benchmark.scene import Query
from vla_prune_ros.evaluation.flops import PassWork, WorkMeter
from vla_prune_ros.policy import ActionChunk, Observation, VLAPolicy
from vla_prune_ros.vla.decoder import Decoder


@dataclass
class Arm:
    """One line of the comparison.

    Attributes:
        name: unique.
        policy: what answers.
        mode: pruning mode, or `reference`.
        options: of the mode, as far as they were given.
        note: what a reader must know.
    """

    name: str
    policy: VLAPolicy | ReferencePolicy
    mode: str
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ''

    @property
    def is_reference(self) -> bool:
        """Whether this is a plain path and none of our modes."""
        return isinstance(self.policy, ReferencePolicy)

    def lead_to(self, query: Query) -> float:
        """Tell what happened since the last query; ms per control step in between."""
        if self.is_reference:
            return 0.0
        started = time.perf_counter()
        if query.first:
            self.policy.reset()
            return 0.0
        for images, action in zip_longest(query.between, query.executed):
            self.policy.record_executed(action)  # first: a frame belongs to the step behind it
            if images is not None:
                self.policy.observe(images)
        return 1e3 * (time.perf_counter() - started) / max(1, len(query.between))

    def answer(self, query: Query, instruction: str) -> ActionChunk:
        """The chunk for a query."""
        seen = Observation(query.images, query.proprio, instruction, query.stamp)
        return self.policy.step(seen)


@dataclass
class Samples:
    """What one arm did; lists have one number per counted query.

    Attributes:
        timing: stage -> ms; `total` is taken around the whole call.
        processor_ms: processor time of all threads; waiting for a busy machine is not in it.
        first_ms: queries that begin an episode, which modes with a history answer densely.
        between_ms: per control step between queries, for modes that look at every frame.
        kept: visual tokens that entered the last layer.
        work: what each pass did; empty for a reference.
        memory: bytes: `weights`, `working` (peak above them during one query).
        runtime: what the runtime says of itself.
    """

    timing: dict[str, list[float]] = field(default_factory=dict)
    processor_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    between_ms: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    work: list[PassWork] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)


def run_ladder(
    arms: Sequence[Arm],
    queries: Sequence[Query],
    instruction: str,
    warm_up: int,
    decoder: Decoder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str, int, bool, ActionChunk, float], None] | None = None,
) -> dict[str, Samples]:
    """Put all queries to all arms in turn.

    Args:
        arms: the lines of the comparison.
        queries: see `scene`; the first `warm_up` are answered and not counted.
        instruction: what the policies are told.
        warm_up: queries dropped at the start.
        decoder: of the model, to count the work of each pass; None: not counted.
        progress: called with queries answered and their number.
        note: called after every counted answer with arm, number of the query, whether it begins
            an episode, the chunk and its ms.
    """
    samples = {arm.name: Samples() for arm in arms}
    meter = None if decoder is None else WorkMeter(decoder)
    try:
        for number, query in enumerate(queries):
            for turn in range(len(arms)):
                arm = arms[(number + turn) % len(arms)]
                between = arm.lead_to(query)
                started, busy = time.perf_counter(), time.process_time()
                chunk = arm.answer(query, instruction)
                busy = 1e3 * (time.process_time() - busy)
                spent = 1e3 * (time.perf_counter() - started)
                if number >= warm_up:
                    work = None if meter is None or arm.is_reference else meter.last
                    _note(samples[arm.name], query, chunk, (spent, busy), between, work)
                    if note is not None:
                        note(arm.name, number, query.first, chunk, spent)
            progress(number + 1, len(queries))
    finally:
        if meter is not None:
            meter.close()
    for arm in arms:
        if not arm.is_reference and hasattr(arm.policy, 'runtime_stats'):
            samples[arm.name].runtime = dict(arm.policy.runtime_stats())
    return samples


def _note(
    samples: Samples,
    query: Query,
    chunk: ActionChunk,
    spent: tuple[float, float],
    between: float,
    work: PassWork | None,
) -> None:
    if query.first:
        samples.first_ms.append(spent[0])
        return
    for stage, value in {**chunk.timing, 'total': spent[0]}.items():
        samples.timing.setdefault(stage, []).append(value)
    samples.processor_ms.append(spent[1])
    samples.between_ms.append(between)
    samples.kept.append(len(chunk.kept))
    if work is not None:
        samples.work.append(work)


def measure_memory(
    arms: Sequence[Arm], samples: Mapping[str, Samples], query: Query, instruction: str
) -> None:
    """Let every arm answer once more, and note the most memory that it held at a time."""
    for arm in arms:
        device = arm.policy.device if arm.is_reference else arm.policy.model.device
        weights = _weight_bytes(arm)
        before = _reset_peak(device)
        if before is None:
            samples[arm.name].memory = {'weights': weights}
            continue
        arm.answer(query, instruction)
        samples[arm.name].memory = {
            'weights': weights,
            'working': max(0, _peak(device) - before),
        }


def _weight_bytes(arm: Arm) -> int:
    """Bytes of the weights that an arm uses, each tensor once."""
    if arm.is_reference:
        modules = (arm.policy.action_head, arm.policy.proprio_projector)
        heads = [p for m in modules if m is not None for p in m.parameters()]
        tensors = [*arm.policy.weights.values(), *heads]
    else:
        tensors = [*arm.policy.model.parameters(), *arm.policy.model.buffers()]
    plain = [part for tensor in tensors for part in _parts(tensor)]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in plain}.values())


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a quantised one consists of."""
    if not hasattr(tensor, '__tensor_flatten__'):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _reset_peak(device: torch.device) -> int | None:
    """Start a new peak; returns the bytes held now, None where the system cannot tell."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is freed but held would hide the next use of it
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')  # see proc(5)
        return _status('VmRSS')
    except (OSError, AttributeError):  # not Linux, or not the GNU C library
        return None


def _peak(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return _status('VmHWM')


def _status(key: str) -> int:
    for line in Path('/proc/self/status').read_text(encoding='ascii').splitlines():
        if line.startswith(f'{key}:'):
            return 1024 * int(line.split()[1])
    raise OSError(f'/proc/self/status has no {key}')


def mean_rows(work: Sequence[PassWork]) -> list[float]:
    """Visual tokens computed in each layer, mean over passes."""
    return np.mean([one.visual_rows for one in work], axis=0).tolist() if work else []
