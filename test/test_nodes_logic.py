# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of the nodes that know no ROS: matching, triggering, the worker."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import MAX_BYTES, NANOSECONDS, Assembler, MatchedSet
from vla_prune_ros.nodes.policy.trigger import Tick, Trigger
from vla_prune_ros.nodes.policy.worker import Worker
from vla_prune_ros.ros.streams import Streams

MS = 1_000_000


def assembler(slop: int = 0, state_slop: int = 0) -> Assembler:
    return Assembler(('a', 'b'), ('state',), slop, state_slop)


def feed(target: Assembler, *samples: tuple[str, int]) -> list[MatchedSet]:
    """Add samples named by stream and stamp; the sample's value is its stamp."""
    return [s for stream, stamp in samples for s in target.add(stream, stamp, stamp)]


# -- assembler ---------------------------------------------------------------------------------
@pytest.mark.parametrize('order', ['a b state', 'state b a', 'b state a'])
def test_a_set_is_complete_with_its_last_sample_in_any_order(order):
    *first, last = order.split()
    target = assembler()
    assert feed(target, *((s, 5) for s in first)) == []
    assert feed(target, (last, 5)) == [MatchedSet(5, {'a': 5, 'b': 5, 'state': 5})]


def test_without_slop_only_equal_stamps_match():
    target = assembler()
    assert feed(target, ('a', 5), ('b', 6), ('state', 5), ('a', 6)) == []
    assert [s.stamp for s in feed(target, ('state', 6))] == [6]


def test_slop_takes_the_nearest_frame_and_state():
    target = assembler(slop=10, state_slop=20)
    got = feed(target, ('state', 85), ('state', 98), ('b', 92), ('b', 99), ('a', 100))
    assert got == [MatchedSet(100, {'a': 100, 'b': 99, 'state': 98})]
    assert feed(target, ('a', 105)) == [], 'a frame belongs to one set only'


def test_overtaken_late_and_repeated_frames_are_dropped_and_counted():
    """What is sent again because an answer was lost is no loss of its own."""
    target = assembler()
    feed(target, ('a', 1), ('a', 2), ('b', 2), ('state', 2))
    assert (target.dropped, target.repeated) == ({'a': 1, 'b': 0}, {})
    assert feed(target, ('a', 1), ('a', 2), ('b', 2), ('state', 2), ('a', 3), ('a', 3)) == []
    assert target.dropped == {'a': 2, 'b': 0}
    assert target.repeated == {'a': 2, 'b': 1, 'state': 1}


def test_a_clock_that_starts_anew_is_followed():
    target = assembler()
    late = 100 * NANOSECONDS
    feed(target, ('a', late), ('b', late), ('state', late))
    got = feed(target, ('state', 7), ('a', 7), ('b', 7))
    assert [s.stamp for s in got] == [7]


def test_nothing_of_the_time_before_goes_into_a_set_of_the_same_stamp():
    """A simulation that is started again repeats its stamps."""
    target = assembler()
    for stamp in range(0, 3 * NANOSECONDS, NANOSECONDS // 4):
        for stream in ('state', 'a', 'b'):
            target.add(stream, stamp, 'old')
    for stamp in range(0, NANOSECONDS, NANOSECONDS // 4):
        (got,) = [s for n in ('state', 'a', 'b') for s in target.add(n, stamp, 'new')]
        assert got == MatchedSet(stamp, dict.fromkeys(('state', 'a', 'b'), 'new'))


def test_an_unmatched_stream_cannot_fill_the_memory():
    target = assembler()
    for stamp in range(100_000):
        target.add('a', stamp, None)
        target.add('state', stamp, None)
    assert sum(len(buffer.stamps) for buffer in target._buffers.values()) < 25_000
    assert target.dropped['a'] > 99_900


def test_state_waits_for_its_picture_by_time_and_not_by_number():
    """State at 1 kHz, and pictures that come 300 ms late."""
    target, found = assembler(state_slop=MS), 0
    for now in range(6000):
        target.add('state', now * MS, now)
        if now % 33 == 0 and now > 300:
            stamp = (now - 300) * MS
            target.add('a', stamp, 'a')
            found += len(target.add('b', stamp, 'b'))
    assert found == len(range(330, 6000, 33))
    assert target._buffers['state'].stamps[0] >= 5000 * MS, 'older ones no picture can match'


def test_a_lost_camera_costs_next_to_nothing():
    """State at 1 kHz, one camera of two: a second of it takes far less than a second."""
    target = assembler(MS, MS)
    began = time.process_time()
    for now in range(5000):
        target.add('state', now * MS, now)
        if now % 33 == 0:
            target.add('a', now * MS, now)
    assert time.process_time() - began < 0.25


class Big:
    """A sample of 25 MB, as a 4K picture, that holds none."""

    nbytes = 3840 * 2160 * 3


def test_pictures_are_bounded_by_bytes_before_and_after_they_are_matched():
    unmatched = assembler()
    for stamp in range(100):
        unmatched.add('a', stamp, Big())
    kept = len(unmatched._buffers['a'].stamps)
    assert 1 <= kept <= MAX_BYTES // 2 // Big.nbytes
    trigger = Trigger('request')
    for stamp in range(100):
        trigger.add_observation(MatchedSet(stamp, {'a': Big(), 'b': Big()}))
    trigger.add_executed(99, A)
    assert 1 <= len(trigger.take(99).between) * 2 * Big.nbytes <= MAX_BYTES


def test_one_picture_is_kept_however_large_it_is():
    class Huge:
        nbytes = 10 * MAX_BYTES

    target = Assembler(('a',), ('state',))
    assert feed(target, ('state', 5)) == []
    (found,) = target.add('a', 5, Huge())
    trigger = Trigger('observation')
    trigger.add_observation(found)
    assert trigger.asked() == [5]


def test_a_stamp_from_far_ahead_does_not_cost_the_state():
    target = assembler(state_slop=MS)
    target.add('state', 5, 5)
    target.add('state', 1000 * NANOSECONDS, 'wrong clock')
    for stamp in (10, 15):
        target.add('state', stamp, stamp)
    assert [s.stamp for s in feed(target, ('a', 15), ('b', 15))] == [15]


# -- trigger -----------------------------------------------------------------------------------
def seen(stamp: int) -> MatchedSet:
    return MatchedSet(stamp, {})


def did(*ends: int) -> Executed:
    """Actions that are their own end times."""
    return Executed(np.repeat(np.array(ends, float)[:, None], 7, axis=1), ends)


A, B = did(2), did(9)


def add(trigger: Trigger, *things: int | tuple[int, Executed]) -> list[int]:
    """Add observations by their stamps and executed actions; returns what is asked for."""
    for thing in things:
        if isinstance(thing, int):
            trigger.add_observation(seen(thing))
        else:
            trigger.add_executed(*thing)
    return trigger.asked()


def test_by_observation_everything_is_inferred_with_what_was_executed_before_it():
    trigger = Trigger('observation')
    assert add(trigger, 1) == [1]
    assert trigger.take(1) == Tick(seen(1))
    assert add(trigger, (2, A), (9, B), 3) == [3]
    assert trigger.take(3) == Tick(seen(3), (A,), reports=(2,))
    assert add(trigger, 9) == [9]
    assert trigger.take(9) == Tick(seen(9), (B,), reports=(9,))


def test_by_observation_a_late_report_reaches_the_history_and_asks_for_nothing():
    trigger = Trigger('observation')
    add(trigger, 2)
    trigger.take(2)
    assert add(trigger, *[(2, A)] * 20) == []
    add(trigger, 3)
    assert trigger.take(3) == Tick(seen(3), (A,), reports=(2,))
    add(trigger, (2, A), 4)
    assert trigger.take(4) == Tick(seen(4))


def test_a_rate_limit_leaves_observations_to_the_history():
    trigger = Trigger('observation', gap=100)
    trigger.add_observation(seen(50))
    assert trigger.asked() == [50] and trigger.take(50) == Tick(seen(50))
    trigger.add_observation(seen(100))
    trigger.add_executed(100, A)
    trigger.add_observation(seen(149))
    assert trigger.asked() == []
    trigger.add_observation(seen(150))
    assert trigger.asked() == [150]
    assert trigger.take(150) == Tick(seen(150), (A,), (seen(100), seen(149)), reports=(100,))
    trigger.add_observation(seen(240))
    assert trigger.asked() == []
    trigger.clear()
    trigger.add_observation(seen(241))
    assert trigger.asked() == [241]


@pytest.mark.parametrize('request_first', [False, True])
def test_by_request_only_the_named_observation_is_inferred(request_first):
    trigger = Trigger('request')
    assert add(trigger, 1) == []
    steps = [(2, A), 2]
    first, second = steps if request_first else steps[::-1]
    assert add(trigger, first) == []
    assert add(trigger, second) == [2]
    assert trigger.take(2) == Tick(seen(2), (A,), (seen(1),), reports=(2,))
    assert trigger.asked() == []


def test_a_request_asks_for_the_newest_observation_that_is_not_older():
    trigger = Trigger('request')
    assert add(trigger, 1, 4, 7, (3, A)) == [7]
    assert trigger.wanted == 3
    assert trigger.take(7) == Tick(seen(7), (A,), (seen(1), seen(4)), reports=(3,))
    assert trigger.wanted is None and add(trigger, 8) == []


def test_a_request_waits_for_the_first_observation_and_takes_a_newer_one_while_it_may():
    trigger = Trigger('request')
    assert add(trigger, 1, (3, A), 2) == []
    assert add(trigger, 4) == [4]
    assert trigger.frames() == [seen(1), seen(2)]
    assert add(trigger, 6) == [6], 'the model is busy, and a newer one comes'
    assert trigger.take(4).between == (seen(1), seen(2)), 'but this one had been fetched'
    assert trigger.asked() == [] and trigger.wanted is None and trigger.superseded == 0
    assert add(trigger, (5, B)) == [6]
    assert trigger.take(6) == Tick(seen(6), (B,), reports=(5,))


def test_a_newer_request_takes_the_place_of_the_pending_one_and_none_is_met_twice():
    trigger = Trigger('request')
    assert add(trigger, (3, A), (5, B), 4) == [], 'too old for the newer request'
    assert add(trigger, 5) == [5]
    assert trigger.take(5).reports == (3, 5)
    assert add(trigger, (4, did(4))) == [], 'something newer than what was answered'
    assert add(trigger, 6) == [6]


def test_a_request_of_a_clock_that_was_set_back_does_not_take_what_came_before():
    trigger = Trigger('request')
    late = 100 * NANOSECONDS
    assert add(trigger, late, (7, A)) == []
    assert add(trigger, 9) == [9]


def test_a_request_stays_when_its_observation_cannot_be_answered():
    trigger = Trigger('request')
    assert add(trigger, (2, A), 2) == [2]
    trigger.refuse(2, broken=True)
    assert trigger.asked() == []
    assert add(trigger, 3) == [3]
    assert trigger.take(3) == Tick(seen(3), (A,), reports=(2,))


@pytest.mark.parametrize('mode', ['observation', 'request'])
def test_repeated_executed_actions_count_once(mode):
    trigger = Trigger(mode)
    add(trigger, (2, A), 2)
    assert trigger.take(2).executed == (A,)
    assert add(trigger, (2, A), (3, B), 3) == [3]
    assert trigger.take(3).executed == (B,)


def test_actions_whose_observation_was_lost_are_told_with_the_next_one():
    trigger = Trigger('request')
    assert add(trigger, (2, A), (9, B), 9) == [9]
    assert trigger.take(9) == Tick(seen(9), (A, B), reports=(2, 9))
    assert add(trigger, 2) == [], 'no chunk goes back in time'


def test_a_request_of_a_restarted_clock_is_not_lost():
    trigger = Trigger('request')
    assert add(trigger, 500 * NANOSECONDS, (10, A), 10) == [10]
    assert trigger.take(10) == Tick(seen(10), (A,), reports=(10,))


def test_unanswered_requests_cannot_fill_the_memory():
    trigger = Trigger('request')
    for stamp in range(0, 10_000, 2):
        add(trigger, (stamp, A), stamp + 1)
    assert len(trigger._executed) + len(trigger._sets) + len(trigger._asked) < 200
    trigger = Trigger('observation')
    for stamp in range(10_000):
        add(trigger, (stamp, A), stamp)
    assert len(trigger._executed) + len(trigger._sets) + len(trigger._asked) < 200


def test_what_is_overtaken_hands_its_actions_and_frames_on():
    trigger = Trigger('request')
    assert add(trigger, 1, (2, A), 2, (9, B), 9) == [9]
    expected = Tick(seen(9), (A, B), (seen(1), seen(2)), reports=(2, 9))
    assert trigger.take(9) == expected
    assert trigger.superseded == 1 and trigger.asked() == []


def test_what_is_refused_may_be_asked_for_again_or_comes_before_the_next_one():
    trigger = Trigger('request')
    assert add(trigger, (2, A), 2) == [2]
    trigger.refuse(2)
    assert trigger.asked() == []
    assert add(trigger, (2, A)) == [2]
    trigger.refuse(2)
    assert add(trigger, (9, B), 9) == [9]
    assert trigger.take(9) == Tick(seen(9), (A, B), (seen(2),), reports=(2, 9))
    assert trigger.superseded == 0


def test_a_broken_observation_is_gone_and_its_actions_are_told():
    trigger = Trigger('request')
    add(trigger, (2, A), 2)
    trigger.refuse(2, broken=True)
    add(trigger, (9, B), 9)
    assert trigger.take(9) == Tick(seen(9), (A, B), reports=(2, 9))


def test_what_was_taken_gets_another_try_without_what_was_told():
    trigger = Trigger('request')
    add(trigger, 1, (2, A), 2)
    tick = trigger.take(2)
    trigger.ask_again(tick.observation)
    assert trigger.take(2) == Tick(seen(2))


def test_frames_and_actions_before_an_observation_come_in_order_of_time():
    tick = Tick(seen(50), (did(10, 20), did(30, 40, 50)), (seen(5), seen(20), seen(30)))
    events = [e if isinstance(e, MatchedSet) else e[:, 0].tolist() for e in tick.events()]
    assert events == [seen(5), [10, 20], seen(20), [30], seen(30), [40, 50]]


def test_a_request_of_a_simulation_that_is_started_again_is_no_repetition():
    trigger = Trigger('request')
    for stamp in (2, 5 * NANOSECONDS):
        assert add(trigger, (stamp, A), stamp) == [stamp]
        trigger.take(stamp)
    assert add(trigger, (2, A)) == []
    assert add(trigger, 2) == [2]
    assert trigger.take(2) == Tick(seen(2), (A,), reports=(2,))


# -- worker ------------------------------------------------------------------------------------
def test_a_worker_serves_until_nothing_is_left_and_again_when_it_is_woken():
    left, idle = [3], threading.Event()

    def serve() -> bool:
        left[0] -= left[0] > 0
        if not left[0]:
            idle.set()
        return left[0] > 0

    worker = Worker(serve)
    worker.start()
    for _ in range(3):
        left[0] = 3
        idle.clear()
        worker.wake()
        assert idle.wait(5)
    assert worker.stop(5)


def test_a_job_runs_before_anything_else_and_its_failure_ends_nothing():
    entered, release, order = threading.Event(), threading.Event(), []

    def serve() -> bool:
        entered.set()
        release.wait(5)
        order.append('serve')
        return len(order) < 5

    worker = Worker(serve)
    worker.start()
    worker.wake()
    assert entered.wait(5)
    good = worker.post(lambda: order.append('job') or 'result')
    bad = worker.post(lambda: 1 / 0)
    release.set()
    assert good.result(5) == 'result'
    assert isinstance(bad.exception(5), ZeroDivisionError)
    assert worker.post(lambda: 'alive').result(5) == 'alive'
    assert order[:2] == ['serve', 'job']
    assert worker.stop(5)


def test_stopping_does_not_wait_for_a_busy_model():
    entered, release = threading.Event(), threading.Event()
    worker = Worker(lambda: entered.set() or not release.wait(5))
    worker.start()
    worker.wake()
    assert entered.wait(5)
    assert not worker.stop(timeout=0.05)
    assert worker.post(lambda: None).cancelled()
    release.set()


# -- streams -----------------------------------------------------------------------------------
def test_a_stream_is_reported_once_when_it_goes_and_once_when_it_is_back():
    streams = Streams(('a', 'b'), timeout=1.0)
    streams.start(0.0)
    streams.received('b', 1.5, 1)
    assert streams.changes(2.0) == (['a'], [])
    assert streams.changes(2.2) == ([], [])
    streams.received('a', 2.4, 1)
    assert streams.changes(2.45) == ([], ['a'])
    assert streams.changes(9.0) == (['a', 'b'], [])
