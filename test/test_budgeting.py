# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which budget an inference gets, between deadline, fine motion and audit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tiny import INSTRUCTIONS, observation, tiny_checkpoint

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import MatchedSet
from vla_prune_ros.nodes.policy.budgeting import Budgeting, InPlay
from vla_prune_ros.nodes.policy.modes import check_pruning, pruning_specs
from vla_prune_ros.nodes.policy.parameters import POLICY, PolicyConfig
from vla_prune_ros.nodes.policy.trigger import Tick
from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.policy.calibration import calibrate
from vla_prune_ros.pruning import CLASSES, MODES

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
PERIOD = 50_000_000
FAST, SLOW = [0.9, 0, 0, 0, 0, 0, 1.0], [0.1, 0, -0.1, 0, 0, 0, 1.0]


def values(**changes):
    named = {name.replace('__', '.'): value for name, value in changes.items()}
    return {s.name: s.default for s in (*POLICY, *pruning_specs())} | named


def config(**changes):
    usual = {'pruning__mode': 'fastv', 'governor__floor': 0.0}
    return PolicyConfig.from_values(values(**usual | changes))


def tick(stamp=0, actions=()):
    """An observation after some actions that ended just before it, one every period."""
    ends = tuple(stamp - PERIOD * k for k in reversed(range(len(actions))))
    done = (Executed(np.array(actions, np.float64).reshape(-1, 7), ends),) if len(actions) else ()
    return Tick(MatchedSet(stamp, {}), done, (), INSTRUCTIONS[0])


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('budgeting'), seed=1)


class Bench:
    """A policy and its budgeting with a clock that the test moves."""

    def __init__(self, directory, mode='fastv', **changes):
        self.config = config(pruning__mode=mode, **changes)
        self.policy = VLAPolicy.from_pretrained(directory, mode)
        self.budgeting = Budgeting(SimpleNamespace(info=lambda text: None))
        self.budgeting.load()
        self.now, self.stamp = 0.0, 0
        self.apply()

    def apply(self, **changes):
        if changes:
            self.config = config(**changes)
        changed = self.budgeting.apply(self.policy, self.config, INSTRUCTIONS[0])
        while self.budgeting.measuring:
            self.budgeting.measure(self.policy)
        return changed

    def ask(self, actions=(), waited=0.0, took=0.01):
        """One inference; the budget that it had."""
        self.stamp += PERIOD * max(1, len(actions))
        self.budgeting.before(self.policy, self.config, tick(self.stamp, actions), waited)
        budget = self.policy.settings.options['budget']
        chunk = self.policy.step(observation(0, self.stamp / 1e9))
        begun, self.now = self.now, self.now + took
        answer = SimpleNamespace(chunk=chunk, cold=False, requery=0, offered=begun)
        self.budgeting.after(answer, self.stamp, begun, True, self.now)
        return budget


def test_measuring_the_classes_tells_rows_and_leaves_no_trace(directory):
    for mode, method in MODES.items():
        policy = VLAPolicy.from_pretrained(directory, mode)
        if method.budget_kind == 'none':
            with pytest.raises(ValueError, match=f'{mode}.*no budget'):
                calibrate(policy, INSTRUCTIONS[0])
            continue
        plain = VLAPolicy.from_pretrained(directory, mode)
        governor = calibrate(policy, INSTRUCTIONS[0])
        assert tuple(governor.rows) == CLASSES
        rows = [*governor.rows.values()]
        assert rows[0] < rows[-1]
        assert method.budget_kind == 'bound' or rows == sorted(rows)
        assert policy.settings == plain.settings and policy.history.queries == 0
        for i in range(3):
            one, other = (p.step(observation(i, float(i))) for p in (policy, plain))
            np.testing.assert_array_equal(one.actions, other.actions)


def test_off_the_budget_is_that_of_the_mode(directory):
    bench = Bench(directory, pruning__fastv__budget=0.25)
    assert bench.ask() == 0.25
    assert bench.budgeting.values() == {} and bench.budgeting.info() == {}
    assert not bench.apply()


def test_switched_on_and_off_it_takes_the_budget_and_gives_it_back(directory):
    bench = Bench(directory)
    assert bench.ask() == 0.0
    bench.apply(governor__deadline=1e-4)
    assert bench.ask() == CLASSES[0]
    said = bench.budgeting.values()
    assert said['governor.state'] == 'infeasible' and said['governor.budget'] == CLASSES[0]
    assert said['governor.deadline_ms'] == 0.1
    assert not bench.apply(governor__deadline=10.0)  # nothing new about the machine
    assert [bench.ask() for _ in range(8)][-1] == CLASSES[2]  # the governor is the same as before
    assert bench.budgeting.values()['governor.state'] == 'held'
    assert 'governor.constant_ms' in bench.budgeting.info()
    assert bench.apply() is False
    assert bench.apply(governor__deadline=0.0)
    assert bench.ask() == 0.0 and bench.budgeting.values() == {}


def test_while_it_measures_the_mode_goes_on_with_its_own_budget(directory):
    bench = Bench(directory)
    bench.config = config(governor__deadline=1e-4)
    bench.budgeting.apply(bench.policy, bench.config, INSTRUCTIONS[0])
    passes = 0
    while not bench.budgeting.measure(bench.policy):
        assert bench.ask() == 0.0
        assert bench.budgeting.values() == {'governor.state': 'measuring'}
        passes += 1
    assert passes > len(CLASSES) and not bench.budgeting.measuring
    assert bench.ask() == CLASSES[0]
    assert not bench.budgeting.measure(bench.policy)


def test_what_an_observation_waited_is_gone_from_its_deadline(directory):
    bench = Bench(directory, governor__deadline=10.0)
    assert bench.ask(waited=9.0) == 1.0
    assert bench.budgeting.decision.deadline == pytest.approx(1.0)
    assert bench.ask(waited=11.0) == CLASSES[0]


def test_the_actions_left_set_the_deadline(directory):
    bench = Bench(directory, governor__auto=True, governor__reserve=0.02)
    bench.ask()
    assert bench.budgeting.decision.state == 'waiting'  # no chunk is in play
    bench.ask([FAST] * 5)
    assert bench.budgeting.decision.deadline == pytest.approx(3 * 0.05 - 0.02)
    bench.ask([FAST] * 8)
    assert bench.budgeting.decision.deadline is None  # it had run dry: nothing is to be held
    bench.apply(governor__auto=True, governor__deadline=0.04)
    bench.ask([FAST])
    assert bench.budgeting.decision.deadline == 0.04  # the shorter one
    bench.budgeting.forget()
    bench.ask([FAST] * 5)
    assert bench.budgeting.decision.deadline == 0.04


def test_actions_count_from_the_observation_that_the_chunk_answers():
    play = InPlay()
    assert play.left is None
    play.published(10 * PERIOD, 8)
    play.told(tick(11 * PERIOD))
    assert play.left is None  # nobody tells what is executed
    play.told(tick(12 * PERIOD, [FAST] * 5))  # three of them ended before the observation
    assert play.left == 6
    play.told(tick(18 * PERIOD, [FAST] * 6))
    assert play.left is None


def test_as_delivered_it_keeps_the_share_that_still_solved_tasks(directory):
    floor = values()['governor.floor']
    bench = Bench(directory, governor__deadline=1e-4, governor__floor=floor)
    assert bench.ask([FAST] * 8) == floor == CLASSES[2]


def test_joint_positions_are_no_motion(tmp_path):
    directory = tiny_checkpoint(tmp_path, action_kind='joint_positions')
    bench = Bench(directory, governor__deadline=1e-4, governor__floor_fine=0.5)
    assert [bench.ask([SLOW] * 8) for _ in range(2)] == [CLASSES[0]] * 2


def test_fine_motion_has_a_floor_of_its_own(directory):
    bench = Bench(directory, governor__deadline=1e-4, governor__floor_fine=0.5)
    assert bench.ask([FAST] * 8) == CLASSES[0]
    assert bench.ask([SLOW] * 8) == 0.5
    bench.budgeting.forget()
    assert bench.ask() == CLASSES[0]
    bench.apply(governor__deadline=1e-4, governor__floor=0.2)
    assert bench.ask() == 0.25


def test_the_audit_raises_the_budget_above_its_threshold_and_never_without(directory):
    clock = lambda: 0.0  # noqa: E731
    bench = Bench(directory, audit__enabled=True, pruning__fastv__budget=0.25)
    for _ in range(4):
        assert bench.ask() == 0.25
        bench.budgeting.audit(bench.policy, lambda: False, clock)
    said = bench.budgeting.values()
    assert said['audit.overall'] > 0 and said['audit.count'] == 4 and said['audit.floor'] == 0
    assert {'audit.translation', 'audit.rotation', 'audit.gripper', 'audit.smoothed'} <= {*said}
    assert said['audit.stamp'] == bench.stamp
    bench.budgeting.audit(bench.policy, lambda: False, clock)  # once for every chunk
    assert bench.budgeting.values() == said

    settings = {'audit__enabled': True, 'audit__threshold': 1e-9, 'pruning__fastv__budget': 0.25}
    bench.apply(**settings)
    budgets = []
    for _ in range(4):
        budgets.append(bench.ask())
        bench.budgeting.audit(bench.policy, lambda: False, clock)
    assert budgets == [0.25, 0.375, 0.5, 0.75]
    bench.budgeting.audit(bench.policy, lambda: True, clock)
    bench.apply(**settings, audit__response='dense')
    bench.ask()
    bench.budgeting.audit(bench.policy, lambda: False, clock)
    assert bench.ask() == 1.0


def test_the_audit_never_asks_for_less_than_the_options_of_the_mode_keep(directory):
    clock = lambda: 0.0  # noqa: E731
    settings = {'audit__enabled': True, 'pruning__fastv__keep': 8}  # of 16
    bench = Bench(directory)
    bench.policy.set_pruning('fastv', keep=8)
    bench.apply(**settings, audit__threshold=1e-9)  # always above
    budgets = []
    for _ in range(3):
        budgets.append(bench.ask())
        bench.budgeting.audit(bench.policy, lambda: False, clock)
    assert budgets == [0.0, 0.75, 1.0]
    watch = bench.budgeting._watch
    watch.threshold = 2.0  # now far below
    for _ in range(8):
        budgets.append(bench.ask())
        bench.budgeting.audit(bench.policy, lambda: False, clock)
    assert budgets[3:] == [1.0, 0.75, *[0.0] * 6] and watch.floor == 0.0


def test_an_audit_of_a_mode_whose_options_leave_no_budget_is_refused(directory):
    with pytest.raises(ValueError, match="mode 'vla_cache' has no budget with these options"):
        policy = VLAPolicy.from_pretrained(directory, 'vla_cache', stages='1:0')
        chosen = config(pruning__mode='vla_cache', audit__enabled=True, audit__threshold=0.1)
        Budgeting(None).apply(policy, chosen, INSTRUCTIONS[0])


def test_an_audit_that_is_given_up_is_counted(directory):
    bench = Bench(directory, audit__enabled=True)
    bench.ask()
    bench.budgeting.audit(bench.policy, lambda: True, lambda: 0.0)
    assert bench.budgeting.values() == {'audit.count': 0, 'audit.given_up': 1}


@pytest.mark.parametrize(
    'changed',
    [
        {'governor.deadline': 0.1},
        {'governor.auto': True},
        {'audit.enabled': True, 'audit.threshold': 0.1},
    ],
)
def test_a_mode_without_a_budget_is_refused_with_those_that_have_one(changed):
    name = [*changed][-1]
    with pytest.raises(ValueError, match=f'{name}.*pruning.mode none.*specprune.*fastv'):
        check_pruning(values(), changed)
    with pytest.raises(ValueError, match=name):
        check_pruning(values(**{'pruning.mode': 'fastv'}) | changed, {'pruning.mode': 'none'})
    check_pruning(values(), changed | {'pruning.mode': 'fastv'})
    check_pruning(values(), {'audit.enabled': True})


@pytest.mark.usefixtures('stand_in')
@pytest.mark.parametrize('mode', [m for m, k in MODES.items() if k.budget_kind != 'none'])
def test_once_governed_no_class_is_recorded_while_the_robot_waits(directory, mode):
    policy = VLAPolicy.from_pretrained(directory, mode, runtime='graphs')
    budgeting = Budgeting(SimpleNamespace(info=lambda text: None))
    budgeting.load()
    budgeting.apply(policy, config(pruning__mode=mode, governor__deadline=1.0), INSTRUCTIONS[0])
    while budgeting.measuring:
        budgeting.measure(policy)
    said = []
    for i in range(2 * len(CLASSES)):
        policy.set_budget(CLASSES[i % len(CLASSES)])
        said.append(policy.step(observation(i, float(i))).stats['runtime'])
        policy.audit()
    assert set(said) == {'replay'}
