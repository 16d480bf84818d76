# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a robot may move, by a fake clock: every failure has a state, a reason and a count."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from vla_prune_ros.execution.supervisor import Facts, PoseWatch, Progress, Rules, Supervisor

GOOD = Facts(0.0)
RULES = Rules(permit_timeout=0.5)


def enabled(rules=RULES, **facts) -> Supervisor:
    supervisor = Supervisor(rules)
    assert supervisor.enable(replace(GOOD, **facts)) == []
    return supervisor


def running(rules=RULES) -> Supervisor:
    supervisor = enabled(rules)
    assert supervisor.tick(GOOD) == 'running'
    return supervisor


# -- what stops --------------------------------------------------------------------------------
STOPS = [
    ({'misfit': 'policy_info changed: x'}, 'misfit', 'policy_info changed'),
    ({'pose_age': 1.1}, 'silence', 'pose: the newest is 1.10 s away'),
    ({'joints_age': 1.1}, 'silence', 'joint states: the newest is 1.10 s away'),
    ({'pose_fault': 'the measured pose jumped'}, 'pose', 'jumped'),
    ({'stalled': 'the arm moved 0.001 m'}, 'stall', 'moved 0.001 m'),
    ({'outside': 0.021}, 'outside', '0.021 m outside limits.box'),
    ({'rivals': ('/other',)}, 'rival', 'also commands the arm: /other'),
    ({'listeners': 0}, 'no reader', 'nobody listens'),
    ({'permit': False}, 'permit', 'permit is not given'),
    ({'permit': True, 'permit_age': 0.6}, 'permit', 'permit is 0.60 s old'),
    ({'late': 5}, 'late', '5 ticks in a row'),
]


@pytest.mark.parametrize(('facts', 'kind', 'reason'), STOPS, ids=lambda v: str(v)[:30])
def test_a_fault_stops_latches_and_holds_before_it_is_silent(facts, kind, reason):
    supervisor = running()
    assert supervisor.tick(replace(GOOD, now=1.0, **facts)) == 'stopped'
    assert reason in supervisor.reason and supervisor.events[kind] == 1
    assert supervisor.commands(1.29) and not supervisor.commands(1.31)
    assert supervisor.tick(replace(GOOD, now=2.0)) == 'stopped', 'it does not heal'
    assert 'reset first' in supervisor.enable(replace(GOOD, now=2.0))[0]
    supervisor.reset()
    assert (supervisor.state, supervisor.commands(2.0)) == ('idle', False)
    assert supervisor.enable(replace(GOOD, now=3.0)) == []


@pytest.mark.parametrize(('facts', 'kind', 'reason'), STOPS, ids=lambda v: str(v)[:30])
def test_what_would_stop_cannot_be_enabled_and_says_so(facts, kind, reason):
    supervisor = Supervisor(RULES)
    reasons = supervisor.enable(replace(GOOD, **facts))
    assert any(reason in text for text in reasons)
    assert supervisor.state == 'idle' and not supervisor.commands(0.0)


# -- what holds --------------------------------------------------------------------------------
HOLDS = [
    ({'playable': False}, 'starved', 'no action to play'),
    ({'pose_age': 0.11}, 'silence', 'no new pose for 0.1 s'),
    ({'joints_age': 0.11}, 'silence', 'no new joint states for 0.1 s'),
    ({'chunk_sources': ('/a', '/b')}, 'sources', 'chunks come from /a, /b'),
    ({'halted': 'singularity'}, 'halted', 'the controller halts: singularity'),
    ({'pause': 'the instruction changed: sing'}, 'pause', 'the instruction changed'),
]


@pytest.mark.parametrize(('facts', 'kind', 'reason'), HOLDS, ids=lambda v: str(v)[:30])
def test_what_may_pass_holds_and_then_goes_on(facts, kind, reason):
    supervisor = running()
    for now in (1.0, 2.0, 3.0):
        assert supervisor.tick(replace(GOOD, now=now, **facts)) == 'holding'
    assert reason in supervisor.reason and supervisor.events[kind] == 1
    assert supervisor.commands(3.0)
    assert supervisor.tick(replace(GOOD, now=4.0)) == 'running'


def test_an_arm_does_not_start_by_surprise_after_a_long_hold():
    supervisor = running()
    supervisor.tick(replace(GOOD, now=1.0, playable=False))
    assert supervisor.tick(replace(GOOD, now=10.9, playable=False)) == 'holding'
    assert supervisor.tick(replace(GOOD, now=11.1, playable=False)) == 'stopped'
    assert 'held still for 10 s: no action to play' in supervisor.reason
    waiting = enabled()
    assert waiting.tick(replace(GOOD, now=9.0, playable=False)) == 'holding'
    assert waiting.reason == 'enabled, waiting for a chunk' and not waiting.events
    assert waiting.tick(replace(GOOD, now=10.1, playable=False)) == 'stopped'


# -- enable, disable, stop ---------------------------------------------------------------------
def test_it_starts_disabled_and_commands_nothing():
    supervisor = Supervisor(Rules())
    assert supervisor.tick(GOOD) == 'idle' and not supervisor.commands(0.0)


@pytest.mark.parametrize(
    ('facts', 'reason'),
    [
        ({'pose_age': inf}, 'no pose yet'),
        ({'joints_age': inf}, 'no joint states yet'),
        ({'pose_age': 0.2}, 'pose: the newest is 0.20 s away'),
        ({'outside': 0.001}, 'outside limits.box'),
        ({'chunk_sources': ()}, 'nobody publishes chunks'),
        ({'chunk_sources': ('/a', '/b')}, '/a, /b'),
        ({'permit': False}, 'permit'),
    ],
)
def test_enabling_is_refused_with_every_reason(facts, reason):
    reasons = Supervisor(RULES).enable(replace(GOOD, **facts, misfit='no policy_info yet'))
    assert 'no policy_info yet' in reasons
    assert any(reason in text for text in reasons)


def test_disabling_holds_and_then_leaves_the_arm_to_others():
    supervisor = running()
    supervisor.disable(5.0)
    assert supervisor.state == 'idle'
    assert supervisor.commands(5.2) and not supervisor.commands(5.4)
    supervisor.stop('service', 'stop', 6.0)
    assert supervisor.state == 'stopped' and not supervisor.commands(6.0), 'nothing moved'
    supervisor.disable(7.0)
    assert supervisor.state == 'stopped', 'disabling is no reset'


def test_a_stop_needs_nothing_and_every_change_is_told():
    told = []
    supervisor = Supervisor(Rules(), lambda *words: told.append(words))
    supervisor.enable(GOOD)
    supervisor.tick(GOOD)
    supervisor.stop('service', '~/stop was called', 1.0)
    assert [state for state, _ in told] == ['holding', 'running', 'stopped']
    assert told[-1][1] == '~/stop was called'


def test_dry_run_needs_no_arm_that_listens_or_follows():
    supervisor = enabled(Rules(dry_run=True), listeners=0)
    assert supervisor.tick(replace(GOOD, listeners=0, stalled='x')) == 'running'


# -- what is measured --------------------------------------------------------------------------
def test_a_jump_is_faster_than_an_arm_may_be():
    watch = PoseWatch(speed=0.25)
    path = [watch.check(0.01 * k, np.array([0.0025 * k, 0, 0])) for k in range(20)]
    assert not any(path)
    assert 'jumped by 0.1' in watch.check(0.2, np.array([0.2, 0, 0]))
    watch.forget()
    assert watch.check(0.21, np.array([5.0, 0, 0])) == ''
    assert watch.check(0.21, np.array([9.0, 0, 0])) == '', 'the same stamp says nothing'


@pytest.mark.parametrize(('share', 'stalls'), [(1.0, False), (0.5, False), (0.2, True)])
def test_an_arm_that_does_less_than_a_third_stalls(share, stalls):
    progress, step = Progress(2.0), np.array([0.002, 0, 0])
    found = [progress.add(0.05 * k, step, share * k * step) for k in range(60)]
    assert any(found) == stalls
    assert not any(found[:40]), 'not before the time is over'


def test_small_motions_cannot_stall():
    progress, step = Progress(2.0), np.array([0.001, 0, 0])
    assert not any(progress.add(0.05 * k, step, np.zeros(3)) for k in range(100))
