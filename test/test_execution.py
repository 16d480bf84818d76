# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which action of which chunk is played, in every execution mode; no ROS."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_prune_ros.execution import targets
from vla_prune_ros.execution.playing import EXECUTION_MODES, ChunkPlayer, Execution
from vla_prune_ros.nodes.simulation.inbox import DEPTH, Answer, Inbox

BLEND = Execution('blend', horizon=4)
ENSEMBLE = Execution('ensemble')


def chunk(first: int, n: int = 8) -> np.ndarray:
    """Actions whose numbers count up from `first`."""
    return np.repeat(np.arange(first, first + n, dtype=float)[:, None], 7, axis=1)


def motion(seed: int, n: int = 8, size: float = 0.4) -> np.ndarray:
    """A chunk of small moves; the gripper is random too."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(-size, size, (n, 6)), rng.uniform(0, 1, (n, 1))], axis=1)


def play(player: ChunkPlayer, n: int) -> list[float | None]:
    """The first number of the next n actions, each after an observation stamped with the step."""
    return [None if a is None else a[0] for a in run(player, n)]


def run(player: ChunkPlayer, n: int) -> list[np.ndarray | None]:
    """The next n actions, each after an observation stamped with the step."""
    actions = []
    for _ in range(n):
        player.observe(player._step)
        actions.append(player.next())
    return actions


def started(execution: Execution, actions: np.ndarray) -> ChunkPlayer:
    """A player that has a chunk for the observation at 0."""
    player = ChunkPlayer(execution)
    player.observe(0)
    assert player.add(0, actions)
    return player


def path(actions) -> list[targets.Pose]:
    return targets.integrate(targets.Pose.origin(), np.array(actions))


# -- alignment ---------------------------------------------------------------------------------
def test_a_late_chunk_loses_exactly_the_steps_that_were_executed():
    player = started(Execution(), chunk(0))
    assert play(player, 5) == [0, 1, 2, 3, 4]
    player.add(2, chunk(100))  # answers the observation before step 2; 2, 3, 4 were executed
    assert play(player, 3) == [103, 104, 105]


def test_holding_still_is_not_executing():
    player = ChunkPlayer()
    assert play(player, 4) == [None] * 4
    player.add(1, chunk(0))  # nothing was executed since step 1
    assert play(player, 2) == [0, 1]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(['open_loop', 'receding']),
    st.integers(0, 7),
    st.lists(st.integers(0, 11), min_size=1, max_size=12),
)
def test_every_step_plays_the_action_meant_for_it_whatever_the_delays(mode, horizon, delays):
    """Each chunk counts up from the number of actions executed at its observation."""
    player = ChunkPlayer(Execution(mode, horizon))
    executed, flying = 0, None
    for step in range(150):
        player.observe(step)
        if flying is None and player.wants_chunk:
            flying = (step, executed, delays[step % len(delays)])
        if flying is not None and flying[2] + flying[0] <= step:
            assert player.add(flying[0], chunk(flying[1]))
            flying = None
        action = player.next()
        if action is not None:
            assert action[0] == executed
            executed += 1
    assert executed > 150 // (2 * 12 + 1)


def test_starvation_is_counted_from_the_first_chunk_on():
    player = ChunkPlayer()
    play(player, 3)
    assert player.starved == 0
    player.add(0, chunk(0, 2))
    assert play(player, 5) == [0, 1, None, None, None]
    assert player.starved == 3


def test_a_chunk_that_is_over_when_it_comes_leaves_the_robot_still():
    player = started(Execution(), chunk(0))
    play(player, 8)
    assert player.add(0 + 1, chunk(100, 7))
    assert play(player, 1) == [None]
    assert player.starved == 1


def test_an_older_or_unknown_chunk_does_not_replace_the_newer_one():
    player = ChunkPlayer()
    play(player, 4)
    assert player.add(3, chunk(0))
    assert not player.add(1, chunk(100))
    assert not player.add(3, chunk(100)), 'the same answer again'
    assert not player.add(77, chunk(200))
    assert play(player, 1) == [0]
    assert player.unknown == 1


def test_stamps_need_only_be_near_an_observation_if_so_wished():
    player = ChunkPlayer(slop=50)
    for k in range(5):
        player.observe(100 * k)
        player.next()
    assert not player.add(-60, chunk(0)) and not player.add(460, chunk(0))
    assert player.unknown == 2
    assert player.add(190, chunk(0)) and player.stamp == 190
    assert play(player, 2) == [0, 1], 'nothing was executed since'
    player.observe(900)
    assert player.add(640, chunk(50)) is False, 'between two observations that are far apart'
    assert len(player.rest) == 6 and player.rest[0, 0] == 2


def test_a_new_episode_starts_empty():
    player = started(BLEND, motion(0))
    run(player, 3)
    player.clear()
    assert player.remaining == 0 and player.starved == 0
    assert not player.add(0, motion(0)), 'observations of the last episode are forgotten'


# -- when to ask -------------------------------------------------------------------------------
def test_the_next_chunk_is_wanted_early_enough_for_the_measured_delay():
    player = ChunkPlayer()
    assert player.wants_chunk
    play(player, 3)
    player.add(0, chunk(0))  # three steps late
    wants = []
    for _ in range(8):
        wants.append(player.wants_chunk)
        play(player, 1)
    assert wants == [False] * 5 + [True] * 3


def test_prefetch_overrides_the_measured_delay():
    player = started(Execution(prefetch=5), chunk(0))
    wants = [(play(player, 1), player.wants_chunk)[1] for _ in range(8)]
    assert wants == [False] * 2 + [True] * 6


@pytest.mark.parametrize(
    ('execution', 'asks'),
    [
        (Execution(), [8, 16]),
        (Execution('receding', 3), [3, 6, 9, 12, 15]),
        (Execution('receding'), [4, 8, 12, 16]),
        (Execution('blend', 5), [5, 10, 15]),
        (ENSEMBLE, list(range(1, 18))),
    ],
)
def test_in_lockstep_chunks_are_asked_for_when_the_horizon_is_over(execution, asks):
    player = started(execution, motion(0))
    due = []
    for step in range(18):
        if player.is_due:
            due.append(step)
            player.observe(step)
            player.add(step, motion(step), delay=0)
        assert player.next() is not None
    assert due == asks


def test_receding_plays_the_first_aligned_actions_and_bridges_a_late_chunk_with_the_rest():
    player = started(Execution('receding', 3), chunk(0))
    assert play(player, 2) == [0, 1]
    player.add(1, chunk(100))  # one step was executed since
    assert not player.is_due
    assert play(player, 3) == [101, 102, 103], 'the horizon counts after the alignment'
    assert player.is_due
    assert play(player, 6) == [104, 105, 106, 107, None, None]


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match='open_loop, receding, blend, ensemble'):
        Execution('rtc')


# -- a policy that wants to be asked early -----------------------------------------------------
@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_the_rest_of_a_shortened_chunk_is_dropped(mode):
    player = started(Execution(mode), motion(0))
    assert player.shorten(0, 3)
    assert len([a for a in run(player, 5) if a is not None]) == 3
    assert player.is_due and player.starved == 2


def test_shortening_keeps_what_was_executed_and_only_concerns_the_newest_chunk():
    player = started(Execution(), chunk(0))
    play(player, 4)
    assert not player.shorten(7, 1)
    assert not player.shorten(0, 8)
    assert player.shorten(0, 2)
    assert player.is_due and player.remaining == 0
    player.observe(4)
    player.add(4, chunk(50))
    assert play(player, 1) == [50]


# -- mixing ------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.sampled_from([BLEND, ENSEMBLE]), st.integers(0, 9999), st.integers(1, 6))
def test_mixing_plans_that_agree_changes_nothing(execution, seed, late):
    """The second chunk continues the first one's path: what comes out is that path."""
    plan = motion(seed, 16)
    player = started(execution, plan[:8])
    played = run(player, 1 + late)
    player.add(1, plan[1:9])
    played += run(player, 8 - late)
    np.testing.assert_allclose(np.array(played)[:, :6], plan[:9, :6], atol=1e-9)


@pytest.mark.parametrize('execution', [Execution(), Execution('receding', 5)])
def test_without_mixing_actions_pass_bit_for_bit(execution):
    plan = motion(3)
    assert np.array(run(started(execution, plan), 5)).tobytes() == plan[:5].tobytes()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([BLEND, ENSEMBLE]), st.integers(0, 9999), st.integers(1, 6))
def test_the_gripper_is_always_one_of_the_newest_plan(execution, seed, late):
    old, new = motion(seed), motion(seed + 1)
    player = started(execution, old)
    run(player, 1 + late)
    assert player.add(1, new)  # so many steps were executed since
    got = [a[6] for a in run(player, 8 - late)]
    assert got == new[late:, 6].tolist()


def test_a_blend_starts_near_the_old_plan_and_ends_on_the_new_one():
    """Along x the plans differ by 0.2 per step; the weight of the old one falls to 0."""
    old, new = np.zeros((8, 7)), np.zeros((8, 7))
    old[:, 0], new[:, 0] = 0.1, 0.3
    player = started(BLEND, old)
    before = run(player, 3)
    player.add(2, new)  # one step was executed since: new targets 0.2 + 0.3 k, old 0.2 + 0.1 k
    after = run(player, 7)
    x = np.array([p.position[0] for p in path(before + after)])
    lead_old, lead_new = 0.1 * np.arange(1, 9), 0.2 + 0.3 * np.arange(1, 9)
    weight = (lead_new[1:6] - x[3:8]) / (lead_new[1:6] - lead_old[3:8])
    assert np.all(np.diff(weight) < 0) and 0.5 < weight[0] < 1.0
    np.testing.assert_allclose(weight, targets.fade_weights(1, 6), atol=1e-9)
    np.testing.assert_allclose(x[8:], lead_new[6:8], atol=1e-9)


def test_an_ensemble_is_the_weighted_mean_of_all_predictions_for_the_step():
    plans = np.zeros((3, 8, 7))
    plans[:, :, 1] = np.array([0.1, 0.2, 0.4])[:, None]
    player = started(ENSEMBLE, plans[0])
    first = run(player, 1)[0]
    player.observe(1)
    player.add(1, plans[1])
    second = run(player, 1)[0]
    weights = np.exp(-0.01 * np.arange(2))
    # targets for step 2: 0.2 by the first plan, 0.1 + 0.2 by the second; the path stands at 0.1
    expected = weights @ [0.2, 0.3] / weights.sum() - 0.1
    assert (first[1], second[1]) == (0.1, pytest.approx(expected))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.floats(0.0, 1.0))
def test_ensemble_weights_fall_from_the_oldest_and_sum_to_one(n, decay):
    weights = targets.age_weights(n, decay)
    assert weights.sum() == pytest.approx(1.0)
    assert np.all(np.diff(weights) <= 0)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, (2, 3), elements=st.floats(-1.5, 1.5)))
def test_deltas_lead_from_a_pose_to_a_target_that_is_within_reach(vectors):
    start = targets.Pose(vectors[0], targets.rotation_matrix(vectors[1]))
    action = np.concatenate([vectors[1] / 2, vectors[0] / 2])
    goal = start.moved(action)
    np.testing.assert_allclose(start.deltas_to(goal), action, atol=1e-9)
    np.testing.assert_allclose(goal.rotation @ goal.rotation.T, np.eye(3), atol=1e-12)


def test_what_a_controller_would_clip_is_caught_up_later():
    plan = np.zeros((8, 7))
    plan[0, 0], plan[1, 0] = 3.0, 0.5  # the robot does at most 1
    player = started(BLEND, plan)
    assert [a[0] for a in run(player, 3)] == [1.0, pytest.approx(0.5), pytest.approx(0.0)]


# -- inbox -------------------------------------------------------------------------------------
def test_an_answer_becomes_visible_after_the_latency():
    inbox = Inbox()
    inbox.latency = 0.1
    started_at = time.monotonic()
    inbox.put(Answer(5, chunk(0)))
    assert inbox.get(0.0) is None
    assert inbox.get(5.0).stamp == 5
    assert 0.1 <= time.monotonic() - started_at < 3.0


def test_a_waiting_reader_gets_what_comes_and_the_oldest_of_too_many_goes():
    inbox = Inbox()
    threading.Timer(0.05, inbox.put, [Answer(1, None, 2)]).start()
    assert inbox.get(5.0) == (1, None, 2)
    for stamp in range(DEPTH + 3):
        inbox.put(Answer(stamp, None))
    assert inbox.get(0.0).stamp == 3
    inbox.clear()
    assert inbox.get(0.0) is None
