# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of every control step: what counts as previous, what is replaced, what stays bounded."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import configs, moves
from tiny import observation, tiny_checkpoint

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import History, Tick, make_selector


def image(value):
    return np.full((1, 4, 4, 3), value, np.uint8)


def walk(history, steps, first=1):
    """Execute and observe one step after another; frames hold their step."""
    for step in range(first, first + steps):
        history.record_executed(moves(1))
        history.observe(image(step))


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('history'))


def test_frames_of_every_step_are_kept_with_their_step():
    history = History()
    history.close_query(image(0))
    walk(history, 7)
    assert [(f.step, f.images[0, 0, 0, 0]) for f in history.frames] == [(i, i) for i in range(8)]
    assert [f.queried for f in history.frames] == [True] + [False] * 7


@settings(deadline=None, max_examples=80)
@given(
    events=st.lists(
        st.sampled_from(['act', 'act', 'observe', 'query', 'look twice']), max_size=60
    ),
    distance=st.integers(1, 40),
    capacity=st.integers(1, 16),
)
def test_previous_frame_is_never_the_current_one_and_never_newer_than_asked(
    events, distance, capacity
):
    history = History(capacity)
    for counter, event in enumerate(events):
        if event == 'act':
            history.record_executed(moves(1))
        elif event == 'query':
            history.close_query(image(counter % 256))
        else:
            history.observe(image(counter % 256))
    steps = [f.step for f in history.frames]
    assert steps == sorted(set(steps)) and len(steps) <= capacity
    frame = history.previous(distance)
    if frame is None:
        assert all(f.step == history.step and not f.queried for f in history.frames)
        return
    assert frame.queried or frame.step < history.step
    usable = [f for f in history.frames if f.queried or f.step < history.step]
    old_enough = [f for f in usable if history.step - f.step >= distance]
    assert frame is (old_enough[-1] if old_enough else usable[0])


def test_current_frame_that_was_also_observed_is_passed_over():
    history = History()
    history.close_query(image(0))
    walk(history, 8)  # the last one is what the next query sees
    assert history.previous(1).step == 7
    history.close_query(image(99))
    assert history.frames[-1].queried and history.frames[-1].step == 8
    assert len(history.frames) == 9


def test_query_frame_is_not_replaced_by_another_look_at_the_same_step():
    history = History()
    history.close_query(image(3))
    history.observe(image(4))
    assert [f.images[0, 0, 0, 0] for f in history.frames] == [3]


def test_without_recorded_actions_the_last_query_is_the_previous_frame():
    history = History()
    assert history.previous(5) is None
    history.close_query(image(3))
    assert history.previous(5).images[0, 0, 0, 0] == 3


def test_frames_beyond_the_buffer_give_the_oldest():
    history = History()
    history.close_query(image(0))
    walk(history, 30)
    assert len(history.frames) == 16
    assert history.previous(25).step == 15
    assert history.previous(11).step == 19


def test_an_hour_at_control_rate_does_not_grow_memory():
    config = next(iter(configs().values()))
    selector, history = make_selector('specprune', config), History()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)

    def ticks(n):
        for i in range(n):
            history.record_executed(rng.uniform(-1, 1, (1, 7)))
            if i % 8:
                history.observe(picture.copy())
            else:
                selector.observe(Tick(picture, 4, history))
                history.close_query(picture.copy())
            assert not selector.wants_query(history)

    ticks(400)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    ticks(20 * 3600)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert history.step == 400 + 72000
    assert grown < 400_000  # 16 frames, traced from now on, are 300 kB


def test_policy_keeps_preprocessed_frames_between_queries(directory):
    policy = VLAPolicy.from_pretrained(directory, pruning='specprune')
    policy.step(observation(0))
    for step in range(1, 4):
        policy.record_executed(moves(1))
        policy.observe(observation(step).images)
    assert [f.step for f in policy.history.frames] == [0, 1, 2, 3]
    images = observation(2).images
    expected = policy.processor.frames([images['agentview'], images['wrist']])
    np.testing.assert_array_equal(policy.history.frames[2].images, expected)


def test_policy_does_not_preprocess_frames_that_no_mode_reads(directory):
    policy = VLAPolicy.from_pretrained(directory, pruning='random')
    policy.step(observation(0))
    policy.record_executed(moves(1))
    policy.observe(observation(1).images)
    assert [f.step for f in policy.history.frames] == [0]


def test_malformed_picture_between_queries_is_refused_and_leaves_no_trace(directory):
    policy = VLAPolicy.from_pretrained(directory, pruning='specprune')
    policy.step(observation(0))
    policy.record_executed(moves(1))
    with pytest.raises(ValueError, match='wrist'):
        policy.observe({'agentview': observation(1).images['agentview']})
    assert len(policy.history.frames) == 1
    assert policy.history.queries == 1
