# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Coarse and fine mode: thresholds, hysteresis, hold time, every executed step seen once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_prune_ros.pruning.controller import SpeedController, Thresholds

LIMITS = Thresholds()


def run(actions, limits=LIMITS):
    """Mode after each of some actions, each (dx, dy, dz, rx, ry, rz, gripper)."""
    controller, modes = SpeedController(), []
    for step, action in enumerate(actions, 1):
        controller.follow([np.asarray(action, float)], step, limits)
        modes.append(controller.fine)
    return modes


def action(translation=0.0, rotation=0.0, dz=0.0):
    side = np.sqrt(max(0.0, translation**2 - dz**2))
    return [side, 0, dz, 0, rotation, 0, 1.0]


@pytest.mark.parametrize(
    ('translation', 'rotation', 'dz', 'fine'),
    [
        (0.39, 0.19, 0.0, True),
        (0.39, 0.19, -0.3, True),
        (0.41, 0.0, 0.0, False),
        (0.0, 0.21, 0.0, False),
        (0.41, 0.21, 0.0, False),
        (0.2, 0.1, 0.05, False),  # the hand rises
    ],
)
def test_fine_is_entered_by_slow_level_or_falling_motion(translation, rotation, dz, fine):
    assert run([action(translation, rotation, dz)]) == [fine]


@pytest.mark.parametrize(
    ('translation', 'rotation', 'dz', 'fine'),
    [
        (0.59, 0.29, 0.0, True),
        (0.3, 0.0, 0.3, True),  # rising alone does not leave
        (0.61, 0.0, 0.0, False),
        (0.0, 0.31, 0.0, False),
    ],
)
def test_fine_is_left_by_fast_motion_of_either_kind(translation, rotation, dz, fine):
    limits = Thresholds(hold_steps=0)
    assert run([action(), action(translation, rotation, dz)], limits) == [True, fine]


def test_motion_around_one_threshold_does_not_chatter():
    rng = np.random.default_rng(0)
    modes = run([action(0.4 + rng.uniform(-0.15, 0.15)) for _ in range(400)])
    assert np.abs(np.diff(np.array(modes, int))).sum() <= 1  # enters once and stays


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5), st.floats(-0.2, 0.2)), max_size=80),
    st.integers(0, 20),
)
def test_changes_are_apart_by_the_hold_time(motions, hold):
    modes = run([action(*m) for m in motions], Thresholds(hold_steps=hold))
    changes = np.flatnonzero(np.diff(np.array([False, *modes], int)))
    assert (np.diff(changes) >= max(1, hold)).all()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5), st.floats(-0.2, 0.2)), max_size=60),
    st.lists(st.integers(1, 12), min_size=1, max_size=10),
    st.integers(0, 9),
)
def test_steps_in_batches_give_the_same_mode_as_one_by_one(motions, batches, hold):
    limits = Thresholds(hold_steps=hold)
    actions = [np.array(action(*m)) for m in motions]
    single, batched = SpeedController(), SpeedController()
    for step, one in enumerate(actions, 1):
        single.follow([one], step, limits)
    at = 0
    while at < len(actions):
        size = batches[at % len(batches)]
        at = min(len(actions), at + size)
        # With older actions in front, as between two queries.
        batched.follow(actions[:at], at, limits)
        batched.follow(actions[:at], at, limits)
    assert vars(single) == vars(batched)


@pytest.mark.parametrize('axis', ['translation', 'rotation'])
def test_leave_threshold_below_enter_is_refused(axis):
    with pytest.raises(ValueError, match=f'leave_{axis}=0.1'):
        Thresholds(**{f'leave_{axis}': 0.1})
