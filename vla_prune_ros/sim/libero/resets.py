# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Resets of one task's environment that can be repeated in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vla_prune_ros.sim.base import SimulationError

ATTEMPTS = 100  # to place the objects of a scene at random


class ResetStream:
    """Random numbers of one task's environment, so that its k-th reset can be repeated.

    LIBERO draws from numpy's global generator, and its list of joint initialisers grows with every
    reset; both are put back to what they were before that reset.
    """

    def __init__(self, seed: int) -> None:
        self._before: list[tuple] = []  # (generator state, resets tried so far), before reset k
        self._seed = seed
        self._initialisers: list[Any] | None = None  # those of one loading of the model

    def perform(self, env: Any, k: int) -> None:
        """Reset a robosuite environment as its k-th reset after seeding would."""
        theirs = np.random.get_state()
        try:
            if self._initialisers is None:
                self._initialisers = list(env.object_property_initializers)
                np.random.seed(self._seed)
                self._before = [(np.random.get_state(), 0)]
            while len(self._before) <= k:  # only what draws random numbers, which is quick
                self._attempt(env, len(self._before) - 1, env._reset_internal, loads=False)
            self._attempt(env, k, env.reset, loads=True)
        finally:
            np.random.set_state(theirs)

    def _attempt(self, env: Any, k: int, reset: Callable[[], Any], loads: bool) -> None:
        from robosuite.utils.errors import RandomizationError

        state, tried = self._before[k]
        np.random.set_state(state)
        for _ in range(ATTEMPTS):
            # The constructor loaded once, each reset once more; a real one does so by itself.
            env.object_property_initializers = self._initialisers * (tried + (1 if loads else 2))
            tried += 1
            try:
                reset()
                break
            except RandomizationError:  # LIBERO's wrapper would try for ever
                continue
        else:
            raise SimulationError(f'no place for the objects in {ATTEMPTS} attempts')
        if len(self._before) == k + 1:
            self._before.append((np.random.get_state(), tried))
