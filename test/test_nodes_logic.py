# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of the nodes that know no ROS: matching, triggering, the worker."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import NANOSECONDS, Assembler, MatchedSet
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
    assert target.rewinds >= 1


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
    for stamp in range(10_000):
        target.add('a', stamp, None)
        target.add('state', stamp, None)
    assert sum(map(len, target._buffers.values())) < 500
    assert target.dropped['a'] > 9000


# -- trigger -----------------------------------------------------------------------------------
def seen(stamp: int) -> MatchedSet:
    return MatchedSet(stamp, {})


def did(*ends: int) -> Executed:
    """Actions that are their own end times."""
    return Executed(np.repeat(np.array(ends, float)[:, None], 7, axis=1), ends)


A, B = did(2), did(9)


def test_by_observation_everything_is_inferred_with_what_was_executed_before_it():
    trigger = Trigger('observation')
    assert trigger.add_observation(seen(1)) == Tick(seen(1))
    assert trigger.add_executed(2, A) is None
    assert trigger.add_executed(9, B) is None
    assert trigger.add_observation(seen(3)) == Tick(seen(3), (A,))
    assert trigger.add_observation(seen(9)) == Tick(seen(9), (B,))


@pytest.mark.parametrize('request_first', [False, True])
def test_by_request_only_the_named_observation_is_inferred(request_first):
    trigger = Trigger('request')
    assert trigger.add_observation(seen(1)) is None
    steps = [lambda: trigger.add_executed(2, A), lambda: trigger.add_observation(seen(2))]
    first, second = steps if request_first else steps[::-1]
    assert first() is None
    assert second() == Tick(seen(2), (A,), between=(seen(1),))


@pytest.mark.parametrize('mode', ['observation', 'request'])
def test_repeated_executed_actions_count_once(mode):
    trigger = Trigger(mode)
    trigger.add_executed(2, A)
    assert trigger.add_observation(seen(2)) == Tick(seen(2), (A,))
    assert trigger.add_executed(2, A) is None
    trigger.add_executed(3, B)
    assert trigger.add_observation(seen(3)) == Tick(seen(3), (B,))


def test_a_request_of_a_restarted_clock_is_not_lost():
    trigger = Trigger('request')
    trigger.add_observation(seen(500 * NANOSECONDS))
    trigger.add_executed(10, A)
    assert trigger.add_observation(seen(10)) == Tick(seen(10), (A,))


def test_unanswered_requests_cannot_fill_the_memory():
    trigger = Trigger('request')
    for stamp in range(0, 10_000, 2):
        trigger.add_executed(stamp, A)
        trigger.add_observation(seen(stamp + 1))
    assert len(trigger._executed) + len(trigger._sets) < 200


def test_a_superseded_tick_hands_its_actions_and_frames_on():
    merged = Tick.merge(Tick(seen(2), (A,), (seen(1),), 'old'), Tick(seen(9), (B,), (), 'new'))
    assert merged == Tick(seen(9), (A, B), (seen(1), seen(2)), 'new')


def test_frames_and_actions_before_an_observation_come_in_order_of_time():
    tick = Tick(seen(50), (did(10, 20), did(30, 40, 50)), (seen(5), seen(20), seen(30)))
    events = [e if isinstance(e, MatchedSet) else e[:, 0].tolist() for e in tick.events()]
    assert events == [seen(5), [10, 20], seen(20), [30], seen(30), [40, 50]]


def test_a_request_of_a_simulation_that_is_started_again_is_no_repetition():
    trigger = Trigger('request')
    for stamp in (2, 5 * NANOSECONDS):
        trigger.add_executed(stamp, A)
        assert trigger.add_observation(seen(stamp)) is not None
    assert trigger.add_executed(2, A) is None
    assert trigger.add_observation(seen(2)) == Tick(seen(2), (A,))


# -- worker ------------------------------------------------------------------------------------
class Busy:
    """A worker whose first item blocks until it is released."""

    def __init__(self, depth: int) -> None:
        self.done: list = []
        self.errors: list[Exception] = []
        self.entered, self.release = threading.Event(), threading.Event()
        self.worker = Worker(
            self._handle, lambda _, e: self.errors.append(e), lambda a, b: a + b, depth
        )
        self.worker.start()
        self.worker.offer(['first'])
        assert self.entered.wait(5)

    def _handle(self, item: list) -> None:
        self.entered.set()
        self.release.wait(5)
        if item == ['bad']:
            raise ValueError('bad item')
        self.done.append(item)

    def finish(self) -> list:
        self.release.set()
        idle = threading.Event()
        self.worker.offer(['last'])
        while ['last'] not in self.done and not any('last' in d for d in self.done):
            idle.wait(0.01)
        assert self.worker.stop(5)
        return self.done


def test_the_latest_observation_wins_and_carries_what_may_not_be_lost():
    busy = Busy(depth=1)
    busy.worker.offer(['second'])
    busy.worker.offer(['third'])
    busy.finish()
    assert busy.done == [['first'], ['second', 'third', 'last']]
    assert busy.worker.superseded == 2


def test_a_deep_queue_keeps_the_order():
    busy = Busy(depth=10)
    for name in 'abc':
        busy.worker.offer([name])
    assert busy.finish() == [['first'], ['a'], ['b'], ['c'], ['last']]


def test_a_job_runs_before_waiting_observations():
    busy = Busy(depth=10)
    busy.worker.offer(['observation'])
    future = busy.worker.post(lambda: busy.done.append(['job']) or 'result')
    busy.finish()
    assert busy.done[:3] == [['first'], ['job'], ['observation']]
    assert future.result() == 'result'


def test_a_failing_observation_or_job_does_not_end_the_worker():
    busy = Busy(depth=10)
    busy.worker.offer(['bad'])
    future = busy.worker.post(lambda: 1 / 0)
    assert busy.finish()[-1] == ['last']
    assert isinstance(future.exception(), ZeroDivisionError)
    assert [str(e) for e in busy.errors] == ['bad item']


def test_stopping_does_not_wait_for_a_busy_model():
    busy = Busy(depth=1)
    assert not busy.worker.stop(timeout=0.05)
    assert busy.worker.post(lambda: None).cancelled()
    busy.release.set()


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
