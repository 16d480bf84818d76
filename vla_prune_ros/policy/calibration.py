# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How long the classes of a budget take on this machine, measured before the robot moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING

import numpy as np

from vla_prune_ros.policy.governor import Governor, LatencyModel
from vla_prune_ros.policy.types import SOME_INSTRUCTION
from vla_prune_ros.pruning import CLASSES, History, Tick, make_selector

if TYPE_CHECKING:
    from vla_prune_ros.policy.policy import VLAPolicy

PASSES = 4  # of every class; the first may record, the fastest counts
SIDE = 256  # pixels of a camera image


def calibrate(policy: VLAPolicy, instruction: str = SOME_INSTRUCTION) -> Governor:
    """Measure the pruning mode in force at once and return a governor; see `calibration`."""
    passes = calibration(policy, instruction)
    while True:
        try:
            next(passes)
        except StopIteration as done:
            return done.value


def calibration(
    policy: VLAPolicy,
    instruction: str = SOME_INSTRUCTION,
    classes: Iterable[float] = CLASSES,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[None, None, Governor]:
    """Measure the pruning mode in force; the history is left alone.

    Yields after every pass, so that others may be made between two. Between two passes a quarter
    of each picture changes, for modes that compare them.

    Args:
        policy: loaded and warmed up.
        instruction: of the length that will be asked for.
        classes: shares to choose from.
        clock: s.

    Returns:
        A governor at its largest class.

    Raises:
        ValueError: the mode has no budget with these options.
    """
    mode, options = policy.settings.mode, dict(policy.settings.options)
    method = make_selector(mode, policy.config, **options)
    if method.budget_kind == 'none':
        raise ValueError(f'pruning mode {mode!r} has no budget with these options')
    noise, history = np.random.default_rng(0), History()
    template_tokens = policy.processor.prompt(instruction)[1]
    images = {
        name: noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        for name in policy.settings.cameras
    }

    def query() -> tuple[float, float]:
        for picture in images.values():
            picture[: SIDE // 2, : SIDE // 2] = noise.integers(0, 256, 3, dtype=np.uint8)
        started = clock()
        frames = policy.pictures(images)
        method.observe(Tick(frames, template_tokens, history))
        rows = policy.rehearse(frames, method, instruction).rows
        took = clock() - started
        history.close_query(frames)
        return rows, took

    for _ in range(1 + method.dense_queries):
        query()
        yield
    rows: dict[float, float] = {}
    fastest: dict[float, float] = {}
    # In turn, so that what else runs on the machine for a while slows all of them.
    for _ in range(PASSES):
        for share in sorted(classes, reverse=True):
            method.set_budget(share)
            rows[share], took = query()
            fastest[share] = min(took, fastest.get(share, took))
            yield
    return Governor(LatencyModel.fit((rows[s], fastest[s]) for s in rows), rows)
