# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes on the real simulation, with the policy played by the test; no ROS."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

from vla_prune_ros.execution.playing import Execution
from vla_prune_ros.nodes.simulation.episodes import Episodes
from vla_prune_ros.nodes.simulation.inbox import Answer, Inbox
from vla_prune_ros.nodes.simulation.link import EpisodeStatus, Plan, Settings
from vla_prune_ros.sim import make_robot, to_policy_gripper
from vla_prune_ros.sim.shifts import ShiftedRobot
from vla_prune_ros.sim.tabletop import TabletopRobot
from vla_prune_ros.sim.tabletop.expert import expert_action

PERIOD = 50_000_000


def numbered(first: int, n: int = 8) -> np.ndarray:
    """Harmless actions whose gripper value counts up: 1000 + number."""
    actions = np.zeros((n, 7))
    actions[:, 6] = 1000 + first + np.arange(n)
    return actions


class Policy:
    """The other end of the link: answers request k with `answer(stamp, executed so far)`."""

    def __init__(self, plans: list[Plan], answer: Callable, every_step: bool = False) -> None:
        self.plans, self.answer, self.always = list(plans), answer, every_step
        self.answers = Inbox()
        self.executed: list[np.ndarray] = []
        self.requests: list[int] = []
        self.images: list[bool] = []
        self.reports: list[EpisodeStatus] = []
        self.warnings: list[str] = []
        self.instructions: list[str] = []
        self.failure: Exception | None = None
        self.over = threading.Event()

    def ready(self):
        return True

    def next_plan(self, robot, requested):
        if not self.plans:
            self.over.set()
            return None
        plan = self.plans.pop(0)
        self.answers.latency = plan.settings.latency
        return plan

    def every_step(self):
        return self.always

    def clock(self, stamp):
        pass

    def observation(self, robot, observation, stamp):
        self.images.append(bool(observation.images))

    def request(self, executed, stamp):
        if stamp not in self.requests:
            self.executed += list(executed)
            self.requests.append(stamp)
        for answer in self.answer(stamp, len(self.executed)):
            self.answers.put(answer)

    def delivered(self):
        return True

    def warn(self, kind, text):
        self.warnings.append(text)

    def instruct(self, text):
        self.instructions.append(text)

    def report(self, status, stamp):
        self.reports.append(replace(status))

    def give_up(self, error):
        self.failure = error
        self.over.set()

    @property
    def done(self) -> list[EpisodeStatus]:
        return [r for r in self.reports if r.state == 'done']


def run(policy: Policy, make: Callable = lambda: TabletopRobot(render=False)) -> Policy:
    """Run all of the policy's plans."""
    episodes = Episodes(make, policy)
    episodes.start()
    try:
        assert policy.over.wait(60), policy.reports
    finally:
        assert episodes.stop(10)
    return policy


def plan(steps: int = 20, realtime: bool = False, latency: float = 0.0, **execution) -> Plan:
    return Plan(0, 0, steps, Settings(realtime, latency=latency, execution=Execution(**execution)))


def test_in_real_time_a_late_chunk_continues_where_the_robot_is():
    """The action of number n of an ideal plan is executed as the n-th, whatever the latency.

    A chunk that takes 2.4 periods costs three steps of the one before: an action is chosen when
    its step begins.
    """
    answer = lambda stamp, n: [Answer(stamp, numbered(n))]  # noqa: E731
    policy = run(Policy([plan(40, True, 0.12)], answer))
    (status,) = policy.done
    moved = [int(a[6]) - 1000 for a in policy.executed]
    assert len(moved) > 20
    assert [b for a, b in itertools.pairwise(moved) if b not in (a, a + 1)] == []
    if status.late == 0:  # a loaded machine may be too slow for the rest
        assert status.starved == 0
        assert moved == list(range(len(moved)))
        gaps = np.diff(policy.requests[1:]) // PERIOD
        assert np.median(gaps) == 5, 'five of eight actions are left when a chunk comes'


def test_latency_beyond_the_chunk_starves_the_robot_and_is_counted():
    answer = lambda stamp, n: [Answer(stamp, numbered(n, 4))]  # noqa: E731
    policy = run(Policy([plan(24, True, 0.3)], answer))
    (status,) = policy.done
    assert status.step == 24
    assert status.starved >= 6
    assert any('holds still' in text for text in policy.warnings)


def test_a_policy_may_want_to_be_asked_early_before_or_after_its_chunk():
    def answer(stamp, n):
        early = len(policy.requests) == 1
        parts = [Answer(stamp, numbered(n)), Answer(stamp, None, 3)]
        return [Answer(stamp, numbered(n), 3)] if early else parts

    policy = Policy([plan(12)], answer)
    policy.answers.limits_follow = lambda: True
    run(policy)
    (status,) = policy.done
    assert (np.diff(policy.requests) // PERIOD).tolist() == [3, 3, 3]
    assert (status.queries, status.requeries) == (4, 4)


def test_a_chunk_for_no_observation_is_counted_and_ignored():
    def answer(stamp, n):
        return [Answer(stamp + 1, numbered(500)), Answer(stamp, numbered(n))]

    policy = run(Policy([plan(16)], answer))
    (status,) = policy.done
    assert (status.result, status.unknown) == ('step_limit', 2)
    assert all(a[6] < 1400 for a in policy.executed)
    assert any('of no observation' in text for text in policy.warnings)


@pytest.mark.parametrize('every_step', [False, True])
def test_frames_are_only_rendered_for_those_who_look(every_step):
    class Counting(TabletopRobot):
        def observe(self, render=True):
            rendered.append(render)
            return super().observe(render=False)

    rendered: list[bool] = []
    answer = lambda stamp, n: [Answer(stamp, numbered(n))]  # noqa: E731
    run(Policy([plan(16)], answer, every_step), lambda: Counting(render=False))
    assert sum(rendered) >= 17 if every_step else sum(rendered) <= 5


class Breaking(TabletopRobot):
    """A simulation that breaks down in its fifth step, as often as `times` says."""

    times = 0

    def step(self, action, render=True):
        if self.data.time > 0.19 and Breaking.times > 0:
            Breaking.times -= 1
            raise FloatingPointError('the physics diverged')
        return super().step(action, render)


@pytest.mark.parametrize(
    ('times', 'results'),
    [(1, ['error', 'step_limit']), (9, ['error', 'error', 'error'])],
)
def test_a_broken_simulation_is_no_failed_episode_and_is_built_anew(times, results):
    Breaking.times = times
    answer = lambda stamp, n: [Answer(stamp, numbered(n))]  # noqa: E731
    policy = Policy([plan(16)] * (2 if times == 1 else 5), answer)
    run(policy, lambda: Breaking(render=False))
    assert [s.result for s in policy.done] == results
    assert policy.done[0].error == 'FloatingPointError: the physics diverged'
    assert (policy.failure is not None) == (times > 3), 'three in a row end it'


def test_settings_change_from_one_episode_to_the_next():
    answer = lambda stamp, n: [Answer(stamp, numbered(n))]  # noqa: E731
    plans = [plan(8), plan(8, mode='receding', horizon=2), plan(8, mode='ensemble')]
    policy = run(Policy(plans, answer))
    assert [(s.execution, s.queries) for s in policy.done] == [
        ('open_loop', 1), ('receding', 4), ('ensemble', 8),
    ]  # fmt: skip


def test_stopping_takes_no_longer_than_a_step_in_any_state():
    for plans, answers in [
        ([], False),  # nothing to do
        ([plan(1000)], False),  # waiting for a chunk
        ([plan(1000, realtime=True)], True),  # running
    ]:
        answer = lambda stamp, n, a=answers: [Answer(stamp, numbered(n))] if a else []  # noqa: E731
        policy = Policy(plans, answer)
        episodes = Episodes(lambda: TabletopRobot(render=False), policy)
        episodes.start()
        time.sleep(0.5)
        started = time.monotonic()
        assert episodes.stop(5)
        assert time.monotonic() - started < 1.0
        assert [s.result for s in policy.done] == ['aborted'] * len(plans)


def test_an_episode_that_is_asked_for_has_the_number_that_was_answered():
    """Also when the next of the schedule is being chosen meanwhile."""
    numbers, threads = [], []

    class Asked(Policy):
        def next_plan(self, robot, requested):
            if not threads:
                threads.append(threading.Thread(target=lambda: numbers.append(episodes.restart())))
                threads[0].start()
                time.sleep(0.2)
            chosen = super().next_plan(robot, requested)
            return chosen and replace(chosen, initial_state=5 if requested else 0)

    policy = Asked([plan(8), plan(8)], lambda stamp, n: [Answer(stamp, numbered(n))])
    episodes = Episodes(lambda: TabletopRobot(render=False), policy)
    episodes.start()
    assert policy.over.wait(60)
    assert episodes.stop(10)
    (number,) = numbers
    asked = next(status for status in policy.done if status.initial_state == 5)
    assert (asked.episode, asked.result) == (number, 'step_limit')


def test_nothing_is_sent_before_all_readers_have_what_was_sent():
    """In lockstep; or a recorder that falls behind would miss something."""
    policy = Policy([plan(12)], lambda stamp, n: [Answer(stamp, numbered(n))], every_step=True)
    waiting, sent = [], policy.observation

    def observation(*what):
        assert not waiting, 'sent too early'
        waiting.extend([False, False, False])  # three looks until it is confirmed
        sent(*what)

    policy.observation = observation
    policy.delivered = lambda: not waiting or waiting.pop()
    run(policy)
    (status,) = policy.done
    assert (status.result, status.step) == ('step_limit', 12)
    assert len(policy.images) == 2 and not policy.warnings


def test_a_change_within_an_episode_reaches_the_policy_and_the_report():
    """Another block is asked for: the policy is told, and the episode gets the steps for it."""
    robot = ShiftedRobot(make_robot('tabletop', render=False), 'instruction:1')

    def expert(stamp, executed):
        inner = robot.inner
        task = next(t for t in inner.tasks if t.instruction == inner.instruction)
        action = expert_action(task, inner.scene())
        action[6] = to_policy_gripper(action[6])
        yield Answer(stamp, np.tile(action, (8, 1)))

    policy = run(Policy([plan(120, mode='receding', horizon=1)], expert), make=lambda: robot)
    (done,) = policy.done
    assert done.result == 'success'
    assert policy.instructions == ['pick up the red block', done.instruction]
    assert done.instruction not in ('pick up the red block', '')
    assert (done.max_steps, done.extra_steps) == (200, 80)
    kinds = [event.split()[0] for event in done.events.split(', ')]
    assert kinds == ['instruction', 'recovered']
