# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Resets that modes with a memory may have: off by default, and by what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import observation

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import MODES
from vla_prune_ros.pruning.resets import RESETS

REMEMBER = ('specprune', 'vla_cache', 'vla_pruner', 'scout')
OPEN, CLOSED = np.zeros((8, 7)), np.zeros((8, 7))
OPEN[:, 6] = 1.0


def policy(checkpoint, mode, **options):
    return VLAPolicy.from_pretrained(checkpoint, pruning=mode, device='cpu', **options)


def ask(policy, stamp, executed=None, covered=(), seed=0):
    """The reason of the reset before a query of a scene that stands still."""
    if executed is not None:
        policy.record_executed(executed)
    seen = observation(seed, stamp=stamp)
    images = {n: np.zeros_like(i) if n in covered else i for n, i in seen.images.items()}
    return policy.step(replace(seen, images=images)).reset_reason


def test_modes_with_a_memory_have_them_and_they_are_off():
    names = {option.name for option in RESETS}
    for name, method in MODES.items():
        assert (names <= {o.name for o in method.options}) == (name in REMEMBER), name
    assert not any(option.default for option in RESETS)


@pytest.mark.parametrize('mode', REMEMBER)
def test_by_default_nothing_but_the_known_reasons_resets(checkpoint, mode):
    p = policy(checkpoint, mode)
    assert ask(p, 0.0) == 'start'
    assert ask(p, 0.4, OPEN) is None
    assert ask(p, 0.8, CLOSED, covered=('wrist', 'agentview')) is None
    assert ask(p, 1.2, OPEN, seed=5) is None


@pytest.mark.parametrize('mode', REMEMBER)
def test_a_scene_that_is_another_empties_the_memory_once(checkpoint, mode):
    p = policy(checkpoint, mode, reset_change=0.45)
    assert ask(p, 0.0) == 'start'
    assert ask(p, 0.4, OPEN) is None
    assert ask(p, 0.8, OPEN, covered=('wrist',)) == 'scene'  # half of all patches
    assert ask(p, 1.2, OPEN, covered=('wrist',)) is None
    assert ask(p, 1.6, OPEN) == 'scene'
    p.set_pruning(mode, reset_change=0.6)
    assert ask(p, 2.0) == 'mode'
    assert ask(p, 2.4, OPEN, covered=('wrist',)) is None


@pytest.mark.parametrize('mode', REMEMBER)
def test_a_gripper_that_opens_or_closes_empties_the_memory_once(checkpoint, mode):
    p = policy(checkpoint, mode, reset_grip=True)
    assert ask(p, 0.0) == 'start'
    assert ask(p, 0.4, OPEN) is None
    assert ask(p, 0.8, np.vstack([OPEN[:5], CLOSED[:3]])) == 'grip'
    assert ask(p, 1.2, CLOSED) is None
    assert ask(p, 1.6, CLOSED) is None
    assert ask(p, 2.0, OPEN) == 'grip'


def test_after_a_reset_a_query_is_as_complete_as_the_first(checkpoint):
    p = policy(checkpoint, 'scout', reset_change=0.45, keep=0.25)
    first = p.step(observation(0)).kept
    p.record_executed(OPEN)
    assert len(p.step(observation(0, stamp=0.4)).kept) < len(first)
    p.record_executed(OPEN)
    assert len(p.step(observation(9, stamp=0.8)).kept) == len(first)
