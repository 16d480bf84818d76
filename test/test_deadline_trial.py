# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trial of a deadline under load: its parts, and all of it with a tiny model."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

from vla_prune_ros.benchmark import deadline
from vla_prune_ros.benchmark.contention import busy, settling
from vla_prune_ros.benchmark.deadline_episodes import Load, Machine, run_episode
from vla_prune_ros.policy import ActionChunk
from vla_prune_ros.policy.governor import Governor, LatencyModel
from vla_prune_ros.pruning import CLASSES
from vla_prune_ros.sim import SimObservation


def test_busy_loops_take_their_core_and_end():
    core = sorted(os.sched_getaffinity(0))[-1]
    with busy(core, 2):
        children = [
            int(pid)
            for pid in open(f'/proc/self/task/{os.getpid()}/children').read().split()  # noqa: SIM115
        ]
        assert len(children) >= 2
        assert all(os.sched_getaffinity(pid) == {core} for pid in children[-2:])
        time.sleep(0.2)
    left = open(f'/proc/self/task/{os.getpid()}/children').read().split()  # noqa: SIM115
    assert not {*map(str, children[-2:])} & {*left}


def test_settling_counts_the_queries_until_two_in_a_row_are_in_time():
    loads = [0, 0, 1, 1, 1, 1, 1, 0, 0, 3, 3]
    late = [0, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1]
    assert settling(late, loads) == [2, 2]
    assert settling([False] * 11, loads) == [0, 0]


def test_a_load_comes_again_and_again():
    load = Load(((0, 4.0), (1, 2.0)))
    assert [load.at(t) for t in (0.0, 3.9, 4.0, 5.9, 6.0, 10.5)] == [0, 0, 1, 1, 0, 1]


class Still:
    """A robot that notes what it is told and never succeeds."""

    control_hz, tasks = 20.0, (type('Task', (), {'instruction': 'wave', 'max_steps': 24})(),)

    def __init__(self):
        self.actions = []

    def reset(self, task, state):
        return self.observe()

    def observe(self, render=True):
        pose = np.zeros(3), np.array([0, 0, 0, 1.0])
        return SimObservation(
            images={'agentview': np.zeros((8, 8, 3), np.uint8)} if render else {},
            proprio=np.zeros(8), joint_positions=np.zeros(7), finger_positions=np.zeros(2),
            ee_position=pose[0],
            ee_quaternion=pose[1], time=0.0,
        )  # fmt: skip

    def step(self, action, render=True):
        self.actions.append(action)
        return self.observe(render)

    def success(self):
        return False


class Counting:
    """A policy whose chunks are numbered."""

    wants_frames = False

    def __init__(self):
        self.settings = type('Settings', (), {'options': {'budget': 0.0}})()
        self.asked, self.budgets, self.told = [], [], 0

    def reset(self):
        pass

    def record_executed(self, actions):
        self.told += len(actions)

    def set_budget(self, share):
        self.settings.options['budget'] = share

    def step(self, observation):
        self.asked.append(round(observation.stamp, 6))
        actions = np.full((8, 7), 0.001 * len(self.asked))
        return ActionChunk(actions, observation.stamp, np.arange(4), 'x', {}, 0, None, 8)


def outcome(seconds, lead, chooser=1.0):
    samples = {0: {0.5: [seconds / 2], 1.0: [seconds]}}
    policy, robot = Counting(), Still()
    machine = Machine(samples, Load(((0, 1.0),)))
    return policy, robot, run_episode(policy, robot, machine, chooser, lead, 0, 0, 0.0)


def test_a_chunk_in_time_leaves_no_gap_and_a_late_one_makes_the_robot_hold_still():
    policy, robot, in_time = outcome(0.2, lead=4)
    assert (in_time.starved, in_time.steps, set(in_time.missed)) == (0, 24, {False})
    assert policy.asked == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert policy.told == 20  # all that was executed before the last query
    _, robot, late = outcome(0.3, lead=4)
    assert set(late.missed) == {True} and late.starved > 0
    held = [k for k, action in enumerate(robot.actions) if not action[:6].any()]
    assert len(held) == late.starved


def test_a_governor_in_the_loop_takes_the_class_that_is_in_time():
    governor = Governor(LatencyModel(0.0, 0.3 / 600), {0.5: 300, 1.0: 600})
    policy, _, done = outcome(0.3, 4, governor)
    assert set(done.shares) == {0.5} and set(done.missed) == {False}
    assert policy.settings.options['budget'] == 0.5


def test_in_a_trace_the_governor_holds_what_can_be_held_with_more_tokens_than_the_smallest():
    rows = {f'{share:g}': 90 + 512 * share for share in CLASSES}
    quiet = {share: 60 + 0.5 * n for share, n in rows.items()}
    samples = {
        str(loops): {
            s: [ms * (1 + loops) * x for x in (0.97, 1.0, 1.03)] for s, ms in quiet.items()
        }
        for loops in (0, 1, 3)
    }
    machine = {'constant_ms': 60.0, 'per_row_us': 500.0, 'rows': rows, 'samples_ms': samples}
    args = deadline.parser().parse_args([])
    cells = deadline.traced(args, machine)['cells']
    governed, least, _, _, dense = (c for c in cells if c['deadline_ms'] == 400)
    missed, share = zip(*governed['by_loops'].values(), strict=True)
    assert missed[0] < 0.03 and missed[1] < 0.06
    assert missed[2] == 1.0  # four times 121 ms: nothing fits
    assert share[0] > 0.7 > share[1] > 0.2 and share[2] < 0.12  # up takes four queries a class
    assert governed['settling'][0] <= 3 and governed['changes'] < 60
    assert [m for m, _ in dense['by_loops'].values()] == [0.0, 1.0, 1.0]
    assert [m for m, _ in least['by_loops'].values()] == [0.0, 0.0, 1.0]


def test_wrong_arguments_and_other_latencies_are_refused(tmp_path, capsys):
    file = tmp_path / 'results.json'
    file.write_text(json.dumps({'machine': {'mode': 'random'}}))
    arguments = ['--latencies', str(file), '--mode', 'fastv', '--out', str(tmp_path / 'out')]
    assert deadline.main(arguments) == 1
    assert 'latencies of random' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        ('--budgets foo', "'foo' is no list"),
        ('--budgets 0.25,2', "'0.25,2' is no list"),
        ('--budgets governor:x', "'governor:x' is no list"),
        ('--leads 4,x', 'not a whole number from 1 on'),
        ('--loads -1', 'not a whole number from 0 on'),
        ('--mode none', 'modes with a budget are specprune, '),
    ],
)
def test_what_cannot_be_compared_is_refused_before_it_is_measured(wrong, said, tmp_path, capsys):
    try:
        code = deadline.main([*wrong.split(), '--out', str(tmp_path / 'out')])
    except SystemExit as end:
        code = end.code
    assert code in (1, 2) and said in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('other', 'kept'),
    [('', 1), ('--mode scout', 0), ('--first-state 8', 0), ('--faster 5', 0), ('--episodes 2', 0)],
)
def test_cells_of_another_comparison_are_not_taken_over(other, kept, tmp_path):
    episodes = {'faster': 1.0, 'first_state': 0, 'cells': [{'episodes': 16}]}
    content = {'machine': {'mode': 'fastv'}, 'episodes': episodes}
    (tmp_path / 'results.json').write_text(json.dumps(content))
    args = deadline.parser().parse_args([*other.split(), '--out', str(tmp_path)])
    assert len(deadline.finished(args)) == kept


@pytest.mark.slow
def test_the_trial_runs_and_writes_page_and_pictures(tmp_path, capsys):
    out = tmp_path / 'out'
    measured = ['--size', 'tiny', '--samples', '2', '--measure', '--out', str(out), '--quiet']
    assert deadline.main(measured) == 0
    results = json.loads((out / 'results.json').read_text())
    assert results['episodes'] is None and set(results['machine']['live']) == {
        'governor',
        '1',
        '0.5',
    }
    played = [
        '--latencies', str(out / 'results.json'), '--leads', '4', '--budgets', 'governor:0.25,0.5',
        '--episodes', '1', '--out', str(out), '--quiet',
    ]  # fmt: skip
    assert deadline.main(played) == 0
    cells = json.loads((out / 'results.json').read_text())['episodes']['cells']
    assert [cell['arm'] for cell in cells] == ['governor:0.25', '0.5']
    assert cells[0]['share'] >= 0.25
    page = (out / 'deadline.md').read_text()
    assert 'settled after' in page and 'success (95 % Wilson)' in page
    assert (out / 'live.png').stat().st_size > 10_000 < (out / 'success.png').stat().st_size
