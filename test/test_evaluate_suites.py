# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""evaluate: trials, one model for all workers, videos of failures, one run per directory."""

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from vla_prune_ros.evaluation import evaluate as module
from vla_prune_ros.evaluation.plan import make_plan
from vla_prune_ros.evaluation.published import PUBLISHED, SUITES, published_table
from vla_prune_ros.evaluation.rollouts import (
    Entry,
    Episode,
    EpisodeRecord,
    Session,
    Setup,
    suite_statistics,
)
from vla_prune_ros.evaluation.shared_model import ServerGoneError, shared_model
from vla_prune_ros.evaluation.summary import summarise
from vla_prune_ros.evaluation.workers import EpisodeLog, run_episodes
from vla_prune_ros.sim import SimulationError, make_robot

NONE, RANDOM = Entry('none', 'none'), Entry('few', 'random', {'keep': 3, 'layer': 1})
RUN = {'sha256': 'of these weights'}


def options(*arguments):
    return module.parser().parse_args([*arguments])


def plain(record):
    """What must not depend on the clock."""
    data = record.to_json()
    del data['timing_ms'], data['wall_s']
    return data


# -- plan --------------------------------------------------------------------------------------
FACTS = {
    'tasks': ['a', 'b', 'c'],
    'shifted_tasks': [0, 1, 2],
    'n_initial_states': 50,
    'slow_task_change': False,
}


def starts(plan):
    return [(episode.task, episode.state) for episode in plan]


def test_trials_are_episodes_of_every_task():
    plan = make_plan([NONE], FACTS, options('--trials', '2', '--first-state', '4'))
    assert starts(plan) == [(0, 4), (1, 4), (2, 4), (0, 5), (1, 5), (2, 5)]


def test_where_changing_the_task_is_slow_its_episodes_follow_each_other_and_stay_paired():
    facts = {**FACTS, 'slow_task_change': True}
    plan = make_plan([NONE, RANDOM], facts, options('--trials', '2', '--tasks', 'c,a'))
    assert starts(plan)[::2] == starts(plan)[1::2] == [(2, 0), (2, 1), (0, 0), (0, 1)]
    assert [e.entry.name for e in plan[:4]] == ['none', 'few', 'none', 'few']


def test_more_trials_than_initial_states_are_refused():
    with pytest.raises(ValueError, match='50 initial states'):
        make_plan([NONE], FACTS, options('--trials', '51'))


def test_trials_and_episodes_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        options('--trials', '2', '--episodes', '4')
    assert 'not allowed with' in capsys.readouterr().err


def test_statistics_are_found_by_the_name_of_the_suite(tmp_path, checkpoint):
    assert suite_statistics(checkpoint, 'tabletop') == 'tabletop'
    assert suite_statistics(checkpoint, 'libero_10') is None
    shutil.copytree(checkpoint, tmp_path / 'other')
    sets = json.loads((checkpoint / 'dataset_statistics.json').read_text())
    renamed = dict.fromkeys(('libero_10_no_noops', 'other'), *sets.values())
    (tmp_path / 'other' / 'dataset_statistics.json').write_text(json.dumps(renamed))
    assert suite_statistics(tmp_path / 'other', 'libero_10') == 'libero_10_no_noops'


# -- wrong use ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--suite', 'libero_space'], 'valid: tabletop, libero_spatial'),
        (['--suite', 'libero_spatial'], 'needs a --checkpoint'),
        (['--assets', 'placeholder'], '--assets is for LIBERO'),
        (['--shared-model', '--executor', 'ray'], '--shared-model is for --executor processes'),
    ],
)
def test_wrong_use_is_told_in_one_line(arguments, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, 'find_workers', lambda *_: (1, []))
    out = ['--out', str(tmp_path), '--modes', 'none', '--episodes', '8', '--quiet']
    assert module.main([*arguments, *out]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert 'Traceback' not in error


def test_two_evaluations_into_one_directory_are_refused_and_into_two_are_not(tmp_path, capsys):
    with module.exclusive(tmp_path / 'one'):
        command = [
            sys.executable,
            '-m',
            'vla_prune_ros',
            'evaluate',
            '--out',
            str(tmp_path / 'one'),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert 'another evaluation writes to' in done.stderr
        assert f'process {os.getpid()}' in done.stderr
        with module.exclusive(tmp_path / 'two'):
            pass
    with (
        module.exclusive(tmp_path / 'one'),
        (tmp_path / 'one/.lock').open() as lock,
        pytest.raises(OSError),
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- one model for all workers -----------------------------------------------------------------
def test_a_shared_model_gives_the_episodes_that_own_models_give(checkpoint, tmp_path):
    setup = Setup(checkpoint=str(checkpoint))
    plan = [
        Episode(entry, task=0, state=state, max_steps=12, keep_actions=True)
        for state in (0, 1)
        for entry in (NONE, RANDOM, Entry('cache', 'vla_cache'))
    ]
    own = run_episodes(setup, plan, EpisodeLog(tmp_path / 'own.jsonl', RUN))
    with shared_model(setup) as session:
        log = EpisodeLog(tmp_path / 'shared.jsonl', RUN)
        shared = run_episodes(setup, plan, log, workers=2, session=session)
    assert [r.error for r in own] == [None] * len(plan)
    assert list(map(plain, shared)) == list(map(plain, own))


def test_errors_of_a_policy_in_the_server_come_back_to_the_episode(checkpoint):
    with shared_model(Setup(checkpoint=str(checkpoint))) as factory:
        session = factory(Setup(checkpoint=str(checkpoint)))
        try:
            broken = session.run(Episode(Entry('broken', 'random', {'nothing': 1}), 0, 0))
            assert broken.failure == 'policy'
            assert 'nothing' in broken.error
            assert session.run(Episode(NONE, 0, 0, max_steps=1)).success is False
        finally:
            session.close()


def test_the_end_of_the_server_is_no_outcome_of_an_episode(checkpoint):
    with shared_model(Setup(checkpoint=str(checkpoint))) as factory:
        session = factory(Setup(checkpoint=str(checkpoint)))
    try:
        with pytest.raises(ServerGoneError):
            session.run(Episode(NONE, 0, 0, max_steps=1))
    finally:
        session.robot.close()


def test_a_server_that_cannot_load_says_why(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r'could not start:(.|\n)*config\.json'),
        shared_model(Setup(checkpoint=str(tmp_path))),
    ):
        pass


# -- failures ----------------------------------------------------------------------------------
def test_failed_episodes_are_filmed_up_to_the_limit(checkpoint, tmp_path):
    import cv2

    setup = Setup(checkpoint=str(checkpoint), videos=str(tmp_path / 'videos'), max_videos=1)
    session = Session(setup)
    try:
        for state in (0, 1):
            assert session.run(Episode(NONE, 0, state, max_steps=5)).success is False
    finally:
        session.close()
    (path,) = (tmp_path / 'videos').iterdir()
    assert path.name == 'none--task0-state0.mp4'
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    _, frame = video.read()
    assert frame.shape == (256, 512, 3)
    images = first_observation().images
    expected = np.hstack([images['agentview'], images['wrist']])[..., ::-1]
    assert np.abs(frame.astype(float) - expected).mean() < 12  # the codec loses a little


def first_observation():
    robot = make_robot()
    try:
        return robot.reset(0, 0)
    finally:
        robot.close()


def test_failures_of_the_environment_stand_apart(checkpoint, tmp_path):
    session = Session(Setup(checkpoint=str(checkpoint)))

    def explode(action, render=True):
        raise SimulationError('the table is on fire')

    session.robot.step = explode
    try:
        record = session.run(Episode(NONE, 0, 0))
    finally:
        session.close()
    assert (record.success, record.failure) == (None, 'environment')
    (row,) = summarise([NONE], [record])
    assert (row['episodes'], row['exceptions'], row['environment_failures']) == (0, 1, 1)


# -- published numbers -------------------------------------------------------------------------
def test_published_numbers_stand_beside_measured_ones_with_their_source():
    record = EpisodeRecord(
        Episode(NONE, 0, 0), 'a', 'do a', success=True, queries=1, kept=32, visual_rows=[32.0]
    )
    rows = summarise([NONE, Entry('fast', 'fastv'), Entry('g', 'grid')], [record])
    lines = published_table(rows, 'libero_10').splitlines()
    assert '100.0 %' in lines[2]
    assert '94.5' in lines[2]
    assert 'arXiv 2502.19645' in lines[2]
    assert '88.8' in lines[3]
    assert 'its step limit (here 520)' in lines[0]
    assert ' 520 |' in lines[2] and ' 600 |' in lines[3] and ' - |' in lines[4]
    assert 'no published number' in lines[4]
    assert published_table(rows, 'tabletop') == ''
    assert published_table(rows, 'libero_90') == ''


def test_published_means_agree_with_those_that_the_papers_print():
    means = {
        ('specprune', '96.6'), ('specprune', '96.1'), ('lightvla', '97.4'),
        ('vla_cache', '97.4'), ('efficient_vla', '88.9'), ('fastv', '93.3'), ('none', '97.1'),
    }  # fmt: skip
    computed = {(p.mode, f'{sum(p.success) / len(SUITES) + 1e-9:.1f}') for p in PUBLISHED}
    assert computed == means


def test_the_page_names_failures_and_the_csv_keeps_the_episodes(checkpoint, tmp_path):
    out = tmp_path / 'out'
    arguments = [
        '--checkpoint', str(checkpoint), '--modes', 'none', '--trials', '1', '--tasks', '0',
        '--max-steps', '3', '--workers', '1', '--out', str(out), '--quiet', '--videos', '1',
    ]  # fmt: skip
    assert module.main(arguments) == 0
    results = json.loads((out / 'results.json').read_text())
    assert results['run']['failures'] == []
    assert results['run']['readout_start'] == -58
    assert [p.name for p in (out / 'videos').iterdir()] == ['none--task0-state0.mp4']
    with (out / 'episodes.csv').open() as file:
        assert len(list(csv.DictReader(file))) == 1
