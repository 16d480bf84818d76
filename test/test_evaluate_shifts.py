# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation in shifted worlds: what is recorded, what is paired, what never mixes."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

from vla_prune_ros.evaluation import evaluate
from vla_prune_ros.evaluation.motion import path_length, rms_jerk
from vla_prune_ros.evaluation.rollouts import Entry, Episode, Session, Setup
from vla_prune_ros.evaluation.workers import EpisodeLog, run_episodes

NONE, RANDOM = Entry('none', 'none'), Entry('few', 'random', {'keep': 40})
PUT_RED = 4
QUICK = ['--quiet', '--workers', '1']


def plain(record):
    data = record.to_json()
    del data['timing_ms'], data['wall_s']
    return data


@pytest.fixture(scope='module')
def session():
    session = Session(Setup(checkpoint='tabletop', shift='jump:2'))
    yield session
    session.close()


def test_an_episode_tells_what_happened_and_gets_the_steps_for_it(session):
    record = session.run(Episode(NONE, PUT_RED, 0))
    assert record.error is None
    (start, kind), *rest = record.events
    assert kind == 'jump' and 0.3 < start < 3.0
    assert record.success and rest[0][1] == 'recovered'
    short = session.run(Episode(NONE, PUT_RED, 0, max_steps=int(start * 20) + 4))
    assert (short.success, short.steps) == (False, short.episode.max_steps + 80)
    shown = 'instructed block, agentview'
    before = record.landmarks[shown][1] - record.landmarks_after[shown][1]
    assert before == 1 + int(start * 20 - 1e-6) // 8  # queries up to then
    assert record.landmarks_next[shown] == [1, 1]


def test_every_mode_meets_the_same_and_so_does_every_worker(tmp_path):
    setup = Setup(checkpoint='tabletop', shift='camera:5,noise:2,occlude:1')
    plan = [Episode(e, t, 1, max_steps=48) for t in (0, 4) for e in (NONE, RANDOM)]
    one = run_episodes(setup, plan, EpisodeLog(tmp_path / 'a.jsonl', setup.fingerprint()))
    two = run_episodes(
        setup, plan, EpisodeLog(tmp_path / 'b.jsonl', setup.fingerprint()), workers=2
    )
    assert [plain(r) for r in one] == [plain(r) for r in two]
    assert one[0].events == one[1].events != one[2].events


def test_a_change_of_the_instruction_empties_the_history_once():
    session = Session(Setup(checkpoint='tabletop', shift='instruction:1'))
    try:
        record = session.run(Episode(Entry('c', 'vla_cache'), 0, 0))
    finally:
        session.close()
    assert record.resets == {'reset': 1, 'instruction': 1}
    assert record.instruction == 'pick up the red block'


def test_shifts_never_mix_and_none_is_the_run_of_before(tmp_path, capsys):
    command = ['--modes', 'none', '--tasks', '4', '--episodes', '1', '--max-steps', '8', *QUICK]
    out = ['--out', str(tmp_path / 'a')]
    assert evaluate.main([*command, *out, '--shift', 'jump:3']) == 0
    for other in (['--shift', 'jump:2'], ['--shift', 'jump:3', '--shift-seed', '1'], []):
        assert evaluate.main([*command, *out, *other]) == 1
        assert 'holds episodes of another run (different: shift' in capsys.readouterr().err
    assert evaluate.main([*command, *out, '--shift', 'jump:3,noise:0']) == 0
    assert 'In a shifted world: `jump:3`' in (tmp_path / 'a' / 'report.md').read_text()
    run = json.loads((tmp_path / 'a' / 'results.json').read_text())['run']
    assert (run['shift'], run['shift_seed']) == ('jump:3', 0)
    assert not {'shift', 'shift_seed'} & Setup('tabletop', shift_seed=4).fingerprint().keys()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--shift', 'sepia:1'], "unknown axis 'sepia'"),
        (['--shift', 'jump:9'], 'jump needs a level from 0 to 5'),
        (['--shift', 'plate:3', '--tasks', '0,1'], 'changes nothing in any of these tasks'),
    ],
)
def test_a_wrong_shift_is_told_in_one_line(options, message, tmp_path, capsys):
    assert evaluate.main(['--out', str(tmp_path), *QUICK, *options]) == 1
    assert message in capsys.readouterr().err


def test_tasks_in_which_nothing_changes_are_left_out(tmp_path):
    command = ['--modes', 'none', '--episodes', '4', '--max-steps', '1', '--shift', 'plate:1']
    assert evaluate.main([*command, '--out', str(tmp_path), *QUICK]) == 0
    data = json.loads((tmp_path / 'results.json').read_text())
    assert all(name.startswith('put_') for name in data['entries'][0]['per_task'])
    assert any('are left out' in note for note in data['run']['notes'])


def test_way_and_jerk_of_known_motions():
    t = np.arange(9) / 20.0
    line = np.stack([0.3 * t, 0 * t, 0.4 * t], axis=1)
    assert path_length(line) == pytest.approx(0.5 * t[-1])
    assert rms_jerk(line, 20.0) == pytest.approx(0.0, abs=1e-6)
    cubic = np.stack([0 * t, t**3, 0 * t], axis=1)  # third derivative 6
    assert rms_jerk(cubic, 20.0) == pytest.approx(6.0, abs=1e-6)
    assert rms_jerk(cubic[:3], 20.0) == 0.0
