# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Closed-loop episodes: reproducible, resumable, the same in parallel; exceptions apart."""

import gc
import json
import os
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import tiny_checkpoint

from vla_prune_ros import weights
from vla_prune_ros.evaluation import playing
from vla_prune_ros.evaluation.landmarks import count_landmarks
from vla_prune_ros.evaluation.rollouts import (
    Entry,
    Episode,
    EpisodeRecord,
    Session,
    Setup,
    checkpoint_directory,
)
from vla_prune_ros.evaluation.workers import EpisodeLog, run_episodes

RED, BLUE_ON_PLATE = 0, 6  # the two tasks that the tiny tokenizer knows every word of
NONE, RANDOM = Entry('none', 'none'), Entry('few', 'random', {'keep': 3, 'layer': 1})
BROKEN = Entry('broken', 'random', {'no_such_option': 1})
STEPS = 12  # one whole chunk and a half
RUN = {'sha256': 'of these weights'}


def episode(entry=NONE, task=RED, state=0, **more):
    return Episode(entry, task, state, max_steps=STEPS, **more)


def plain(record):
    """What must not depend on the clock."""
    data = record.to_json()
    del data['timing_ms'], data['wall_s']
    return data


class Dying(Session):
    """A worker that the operating system takes away in initial state 1."""

    def run(self, episode):
        if episode.state == 1:
            os._exit(9)
        return super().run(episode)


@pytest.fixture(scope='module')
def setup(checkpoint):
    return Setup(checkpoint=str(checkpoint))


@pytest.fixture(scope='module')
def session(setup):
    session = Session(setup)
    yield session
    session.close()


def test_an_episode_plays_whole_chunks_and_reports_what_was_computed(session):
    record = session.run(episode(RANDOM, keep_actions=True))
    assert record.error is None
    assert record.success is False
    assert (record.steps, record.queries) == (12, 2)
    assert (record.visual_tokens, record.kept) == (32, 6.0)
    assert record.visual_rows == [32.0, 6.0, 6.0, 6.0]
    assert record.flops['decoder'] > 0
    assert {len(values) for values in record.timing_ms.values()} == {2}
    assert np.shape(record.actions) == (12, 7)
    assert record.resets == {'reset': 1}
    assert record.instruction == 'pick up the red block'


def test_executed_actions_reach_the_history_as_they_were_played(session):
    session.run(episode())
    assert session.policy.history.step == STEPS
    assert session.policy.history.queries == 2


def test_an_episode_does_not_depend_on_those_before_it(session):
    first = plain(session.run(episode(RANDOM, state=2)))
    session.run(episode(NONE, state=3))
    session.run(episode(RANDOM, state=4))
    assert plain(session.run(episode(RANDOM, state=2))) == first
    assert plain(session.run(episode(RANDOM, state=2))) == first


def test_frames_that_are_drawn_when_looked_at_give_the_same_episode(session, monkeypatch):
    looking = Entry('specprune', 'specprune')
    later = plain(session.run(episode(looking, keep_actions=True)))
    drawn = []

    def at_once(self, robot):
        drawn.append(robot.observe().images)
        session.policy.observe(drawn[-1])

    monkeypatch.setattr(playing._Later, 'show', at_once)
    assert plain(session.run(episode(looking, keep_actions=True))) == later
    assert len(drawn) == STEPS - 2


def test_every_initial_state_gets_a_draw_of_its_own(session):
    seeds = set()
    for task, state in ((0, 0), (0, 1), (1, 0)):
        session.run(Episode(RANDOM, task, state, max_steps=1))
        seeds.add(session.policy.settings.options['seed'])
    assert len(seeds) == 3
    session.run(Episode(Entry('own', 'random', {'seed': 5}), 0, 0, max_steps=1))
    assert session.policy.settings.options['seed'] == 5


def test_success_ends_the_episode_at_that_step(session):
    class Solved:
        """The real robot, but the third step solves the task."""

        def __init__(self, robot):
            self.robot, self.steps = robot, 0

        def __getattr__(self, name):
            return getattr(self.robot, name)

        def step(self, action, render=True):
            self.steps += 1
            return self.robot.step(action, render)

        def success(self):
            return self.steps >= 3

    robot = session.robot
    session.robot = Solved(robot)
    try:
        record = session.run(episode())
    finally:
        session.robot = robot
    assert (record.success, record.steps, record.queries) == (True, 3, 1)


def test_an_exception_is_recorded_apart_from_failures(session):
    record = session.run(episode(BROKEN))
    assert record.success is None
    assert record.error.startswith('ValueError at base.py:')
    assert 'no_such_option' in record.error


def test_an_episode_runs_on_the_checkpoint_of_its_entry(session, setup, tmp_path):
    other = str(tiny_checkpoint(tmp_path / 'other', seed=1))
    alone = Session(replace(setup, checkpoint=other))
    wanted = plain(alone.run(episode(keep_actions=True)))
    alone.close()
    elsewhere = Entry('elsewhere', 'none', checkpoint=other)
    got = plain(session.run(episode(elsewhere, keep_actions=True)))
    assert session.policy.checkpoint == tmp_path / 'other'
    own = plain(session.run(episode(keep_actions=True)))
    assert session.policy.checkpoint == Path(setup.checkpoint)
    assert got['actions'] == wanted['actions'] != own['actions']


def test_few_policies_stay_in_memory_and_the_last_used_stay_longest(setup, tmp_path):
    others = [str(tiny_checkpoint(tmp_path / f'{k}', seed=k)) for k in range(2)]
    session = Session(setup)
    own, first = session.policy, session.use(others[0])
    assert session.use(None) is own
    gone = weakref.ref(first.model)
    del first
    session.use(others[1])
    gc.collect()
    assert gone() is None
    assert session.use(None) is own
    session.close()


def test_a_checkpoint_may_be_the_name_of_an_embedded_policy(tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path / 'embedded' / 'mine')
    monkeypatch.setattr(weights, 'files', lambda _: tmp_path / 'embedded')
    monkeypatch.chdir(tmp_path)
    assert checkpoint_directory('mine') == tmp_path / 'embedded' / 'mine'
    assert checkpoint_directory('yours') == Path('yours')
    tiny_checkpoint(tmp_path / 'mine')
    assert checkpoint_directory('mine') == Path('mine')


def test_parallel_workers_give_the_same_records_as_one(setup, tmp_path):
    plan = [
        episode(e, t, s) for s in range(2) for t in (RED, BLUE_ON_PLATE) for e in (NONE, RANDOM)
    ]
    serial = run_episodes(setup, plan, EpisodeLog(tmp_path / 'a.jsonl', RUN))
    parallel = run_episodes(setup, plan, EpisodeLog(tmp_path / 'b.jsonl', RUN), workers=2)
    assert [plain(r) for r in serial] == [plain(r) for r in parallel]
    assert [r.episode for r in parallel] == plan


def test_a_run_goes_on_after_a_kill_in_the_middle_of_a_line(setup, session, tmp_path):
    path = tmp_path / 'log.jsonl'
    first, second = episode(), episode(RANDOM)
    log = EpisodeLog(path, RUN)
    log.add(session.run(first))
    log.add(session.run(episode(BROKEN)))
    with path.open('a') as file:
        file.write('{"episode": {"entry"')
    started = []

    records = run_episodes(
        setup,
        [first, episode(BROKEN), second],
        EpisodeLog(path, RUN),
        session=lambda _: Counted(session, started),
    )
    assert started == ['broken', 'few']  # finished ones stay, exceptions are tried again
    assert [r.episode.entry.name for r in records] == ['none', 'broken', 'few']
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 5
    again = EpisodeLog(path, RUN)
    assert again.finished(second) == records[2]
    assert again.finished(episode(BROKEN)) is None


class Counted:
    """A session that notes what it was asked for."""

    def __init__(self, session, started):
        self.session, self.started = session, started

    def run(self, episode):
        self.started.append(episode.entry.name)
        return self.session.run(episode)

    def close(self):
        pass


def test_a_log_of_other_weights_is_refused(tmp_path):
    EpisodeLog(tmp_path / 'log.jsonl', RUN)
    with pytest.raises(ValueError, match='different: sha256'):
        EpisodeLog(tmp_path / 'log.jsonl', {'sha256': 'of others'})


def test_an_episode_is_told_by_mode_options_task_state_and_step_limit(tmp_path):
    log = EpisodeLog(tmp_path / 'log.jsonl', RUN)
    log.add(EpisodeRecord(episode(RANDOM), 't', 'i', success=True))
    assert log.finished(episode(RANDOM, keep_actions=True)) is not None
    for other in (
        episode(Entry('few', 'random', {'keep': 4, 'layer': 1})),
        episode(replace(RANDOM, checkpoint='elsewhere', sha256='of other weights')),
        episode(RANDOM, task=1),
        episode(RANDOM, state=1),
        Episode(RANDOM, RED, 0, max_steps=None),
    ):
        assert log.finished(other) is None


def test_a_worker_that_dies_costs_one_episode(setup, tmp_path):
    plan = [episode(state=s) for s in range(3)]
    log = EpisodeLog(tmp_path / 'log.jsonl', RUN)
    records = run_episodes(setup, plan, log, workers=2, session=Dying)
    assert [r.error for r in records] == [None, 'worker died with exit code 9', None]


def test_a_worker_that_cannot_start_stops_the_run_with_its_reason(setup, tmp_path):
    nowhere = Setup(checkpoint=str(tmp_path / 'nowhere'))
    log = EpisodeLog(tmp_path / 'log.jsonl', RUN)
    with pytest.raises(RuntimeError, match='nowhere'):
        run_episodes(nowhere, [episode(), episode(state=1)], log, workers=2)


def test_landmarks_count_the_patches_that_show_them(session):
    dense = session.run(episode())
    block = dense.landmarks['instructed block, agentview']
    assert block == [dense.queries] * 2  # in view, and every patch is kept
    assert dense.landmarks['other blocks, agentview'][1] == 3 * dense.queries

    robot, views = session.robot, session.policy.settings.cameras
    robot.reset(RED, 0)
    side = session.policy.config.featurizer.grid
    x, y = robot.landmarks('agentview')['instructed block'][0]
    width = robot.cameras[0].width
    margin = (1 - 0.9**0.5) / 2 * width  # the model sees the central 90 % of the area
    column, row = (int((p + 0.5 - margin) / (width - 2 * margin) * side) for p in (x, y))
    here = 1 + row * side + column
    n_visual = len(views) * side * side
    for kept, expected in (([here], 1), (sorted({*range(1, side * side + 1)} - {here}), 0)):
        counts = {}
        chunk = SimpleNamespace(kept=np.array(kept), n_visual=n_visual)
        count_landmarks(counts, robot, views, chunk)
        assert counts['instructed block, agentview'] == [expected, 1]
        assert counts['instructed block, wrist'][0] == 0
