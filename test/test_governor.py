# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The deadline governor on made-up machines: it settles, and says what it cannot hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_prune_ros.policy.governor import (
    FIRST_MARGIN,
    HELD,
    INFEASIBLE,
    PATIENCE,
    WAITING,
    Governor,
    LatencyModel,
)

CLASSES = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0)
MODEL = LatencyModel(0.06, 0.0005)  # s; about the 97 M model on one core
ROWS = {share: 90 + 512 * share for share in CLASSES}
DENSE, LEAST = MODEL(ROWS[1.0]), MODEL(ROWS[CLASSES[0]])
DEADLINE = 1.35 * DENSE


def step(factor, begin=100, end=10**9):
    return lambda k: factor if begin <= k < end else 1.0


TRACES = {
    'quiet': lambda k: 1.0,
    'step of 1.4': step(1.4),
    'step of 2': step(2.0),
    'step of 2 and back': step(2.0, 100, 200),
    'ramp': lambda k: 1 + min(1.5, k / 200),
    'bursts': lambda k: 2.0 if k % 25 < 6 else 1.0,
    'drift': lambda k: 1.5 + 0.5 * math.sin(k / 40),
}


def drive(contention, deadline=DEADLINE, queries=400, seed=0, noise=0.04, truth=MODEL):
    """Shares, latencies and states of a run on a machine that is `contention(k)` times slower."""
    rng = np.random.default_rng(seed)
    governor = Governor(MODEL, ROWS)
    shares, seconds, states = [], [], []
    for k in range(queries):
        decision = governor.decide(deadline)
        rows = ROWS[decision.share]
        spike = 1.5 if rng.random() < 0.01 else 1.0
        took = truth(rows) * contention(k) * math.exp(noise * rng.normal()) * spike
        governor.learn(took, rows)
        shares.append(decision.share)
        seconds.append(took)
        states.append(decision.state)
    return np.array(shares), np.array(seconds), states


def changes(shares, window=100):
    """The most changes of the class in any so many queries."""
    moved = np.diff(shares) != 0
    return max(int(moved[i : i + window].sum()) for i in range(len(moved) - window + 1))


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('trace', TRACES)
def test_the_deadline_is_held_whatever_happens_beside_it(trace, seed):
    shares, seconds, states = drive(TRACES[trace], seed=seed)
    missed = seconds > DEADLINE
    assert missed.mean() < (0.12 if trace == 'bursts' else 0.06)
    assert changes(shares) <= (35 if trace == 'bursts' else 20)
    assert set(states) == {HELD}


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('factor', [1.4, 2.0])
def test_after_a_step_it_settles_within_four_queries_and_comes_back_when_it_is_over(factor, seed):
    shares, seconds, _ = drive(step(factor, 100, 200), seed=seed, noise=0.02)
    late = np.flatnonzero(seconds[100:110] > DEADLINE)
    assert late.size == 0 or late[-1] < 4
    assert shares[100:120].min() < 1.0 == shares[99]
    back = np.flatnonzero(shares[200:] == 1.0)
    assert back[0] <= 40


def test_where_not_even_the_smallest_class_fits_it_is_taken_and_said():
    shares, seconds, states = drive(step(4.0, 100, 250))
    assert set(states[110:250]) == {INFEASIBLE} and set(states[:100]) == {HELD}
    assert (shares[110:250] == CLASSES[0]).all()
    assert states[-1] == HELD and shares[-1] == 1.0
    assert (seconds[280:] <= DEADLINE).mean() > 0.9


def test_a_machine_that_is_slower_than_at_warm_up_is_learned():
    slow = LatencyModel(0.12, 0.0009)
    shares, seconds, _ = drive(TRACES['quiet'], truth=slow, noise=0.02)
    assert (seconds[10:] <= DEADLINE).mean() > 0.95
    assert 0 < shares[-1] < 1.0


def test_it_goes_down_at_once_and_up_one_class_after_four_queries():
    governor = Governor(MODEL, ROWS)
    assert governor.decide(10.0).share == 1.0
    tight = FIRST_MARGIN * LEAST * 1.01
    assert governor.decide(tight).share == CLASSES[0]
    seen = [governor.decide(10.0).share for _ in range(3 * PATIENCE)]
    assert seen == [
        *[CLASSES[0]] * (PATIENCE - 1),
        *[CLASSES[1]] * PATIENCE,
        *[CLASSES[2]] * PATIENCE,
        CLASSES[3],
    ]


def test_the_floor_holds_also_where_it_does_not_fit():
    governor = Governor(MODEL, ROWS)
    decision = governor.decide(1e-3, floor=0.5)
    assert (decision.share, decision.state) == (0.5, INFEASIBLE)
    assert governor.decide(1e-3).share == CLASSES[0]
    assert governor.decide(1e-3, floor=0.3).share == 0.375  # at once
    assert governor.decide(10.0, floor=2.0).share == 1.0


def test_without_a_deadline_the_class_stays():
    governor = Governor(MODEL, ROWS)
    governor.decide(MODEL(ROWS[0.5]) * FIRST_MARGIN)
    for _ in range(10):
        decision = governor.decide(None)
        assert (decision.share, decision.state, decision.deadline) == (0.5, WAITING, None)


def test_queries_that_had_to_be_dense_say_nothing_about_the_rows_of_the_class():
    governor = Governor(MODEL, ROWS)
    governor.decide(MODEL(ROWS[0.25]) * FIRST_MARGIN)
    for _ in range(20):
        governor.learn(DENSE, ROWS[1.0], dense=True)
    assert governor.rows[0.25] == ROWS[0.25] and governor.scale == pytest.approx(1.0)
    assert governor.margin == pytest.approx(1.0)


def test_a_mode_that_computes_more_than_was_measured_is_believed():
    governor = Governor(MODEL, ROWS)
    share = governor.decide(MODEL(ROWS[0.25]) * FIRST_MARGIN).share
    for _ in range(40):
        governor.learn(MODEL(400), 400)
    assert governor.rows[share] == pytest.approx(400, rel=0.01)
    assert governor.scale == pytest.approx(1.0)


def test_the_model_is_fitted_with_parts_that_are_not_negative():
    points = [(100, 0.11), (350, 0.235), (600, 0.36)]
    fitted = LatencyModel.fit(points)
    assert (fitted.constant, fitted.per_row) == pytest.approx((0.06, 0.0005))
    falling = LatencyModel.fit([(100, 0.3), (600, 0.1)])
    assert falling.per_row == 0 and falling(1) == pytest.approx(0.2)
    steep = LatencyModel.fit([(100, 0.01), (600, 0.9)])
    assert steep.constant == pytest.approx(0, abs=1e-12) and steep.per_row > 0
    assert LatencyModel.fit([(100, 0.5)])(1000) == 0.5
    for wrong in ([], [(0, 1)], [(1, -1)], [(1, float('nan'))]):
        with pytest.raises(ValueError, match='positive'):
            LatencyModel.fit(wrong)


def test_what_is_no_measurement_is_refused_and_changes_nothing():
    governor = Governor(MODEL, ROWS)
    for seconds, rows in ((0, 90), (-1, 90), (float('nan'), 90), (0.1, 0), (float('inf'), 9)):
        with pytest.raises(ValueError, match='no measurement'):
            governor.learn(seconds, rows)
    assert governor.scale == 1.0 and governor.margin == FIRST_MARGIN
    with pytest.raises(ValueError, match='at least one class'):
        Governor(MODEL, {})


seconds = st.floats(1e-4, 100.0)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.none(), seconds), st.sampled_from([0.0, 0.3, 0.5]), seconds),
        max_size=60,
    )
)
def test_whatever_comes_its_rules_hold(queries):
    governor = Governor(MODEL, ROWS)
    share, since, ratios = 1.0, 0, [1.0]
    for deadline, floor, took in queries:
        decision = governor.decide(deadline, floor)
        since += 1
        assert decision.share in CLASSES and decision.share >= floor
        lowest = min(c for c in CLASSES if c >= floor)
        if decision.share > max(share, lowest):  # one class up, and never soon
            assert CLASSES.index(decision.share) == CLASSES.index(max(share, lowest)) + 1
            assert since >= PATIENCE
        if deadline is not None and decision.state == HELD:
            assert decision.predicted <= deadline
        if decision.state == INFEASIBLE:
            assert decision.share == lowest and governor.predict(lowest) > deadline
        if decision.share != share:
            share, since = decision.share, 0
        governor.learn(took, ROWS[decision.share])
        ratios.append(took / MODEL(ROWS[decision.share]))
        assert min(ratios) * 0.999 <= governor.scale <= max(ratios) * 1.001
        assert governor.margin >= 1.0 and math.isfinite(governor.predict(1.0))


@settings(max_examples=100, deadline=None)
@given(st.lists(seconds, max_size=30), seconds, seconds)
def test_a_longer_deadline_never_gives_fewer_tokens(history, one, other):
    shares = []
    for deadline in sorted((one, other)):
        governor = Governor(MODEL, ROWS)
        for took in history:
            governor.decide(None)
            governor.learn(took, ROWS[1.0])
        shares.append(governor.decide(deadline).share)
    assert shares == sorted(shares)
