# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The comparison of shifted worlds, against values computed by hand and by other means."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from vla_prune_ros.evaluation import shifts
from vla_prune_ros.evaluation.rollouts import Entry, Episode, EpisodeRecord
from vla_prune_ros.evaluation.shift_report import cells, write_report
from vla_prune_ros.evaluation.shift_runs import read_runs
from vla_prune_ros.evaluation.shift_statistics import holm, interaction, median_with_never

FACTS = {'sha256': 'w', 'suite': 'tabletop', 'device': 'cpu', 'dtype': 'float32', 'seed': 7}
NONE, BLIND = Entry('none', 'none'), Entry('blind', 'vla_cache', {'tau': -1.0})
OTHER = Entry('lightvla', 'lightvla', checkpoint='l', sha256='x')
DENSE_OTHER = Entry('dense_lightvla', 'none', checkpoint='l', sha256='x')


def record(entry, state, success, **more):
    values = {'visual_tokens': 128, 'kept': 64.0, 'steps': 100} | more
    return EpisodeRecord(Episode(entry, 0, state), 't', 'i', success=success, **values)


def write(folder, records, **facts):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{'run': FACTS | facts}, *(r.to_json() for r in records)]
    (folder / 'episodes.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return folder


def outcomes(entry, text):
    return [record(entry, k, c == '1') for k, c in enumerate(text)]


# -- statistics ----------------------------------------------------------------------------------
def test_holm_by_hand():
    # 0.01 * 4; 0.02 * 3; 0.03 * 2; then never less than the one before
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interaction_is_a_difference_of_differences():
    # mode loses 3 of 8 against dense when shifted, 1 of 8 when not: -3/8 + 1/8
    shifted, dense_shifted = '11110000', '11111110'
    plain, dense_plain = '11111110', '11111111'
    units = [[c == '1' for c in four] for four in zip(shifted, dense_shifted, plain, dense_plain,
                                                      strict=True)]  # fmt: skip
    value, (low, high), p = interaction(units)
    assert value == pytest.approx(-0.25)
    assert low < value < high and low == pytest.approx(-0.75, abs=0.13)
    d = np.array([a - b - c + e for a, b, c, e in np.array(units, int)])
    exact = [abs(sum(s * d)) >= abs(d.sum()) for s in itertools.product((-1, 1), repeat=8)]
    assert p == pytest.approx(np.mean(exact), abs=0.02)
    assert interaction(units) == interaction(units)
    assert interaction([]) == (0.0, (-2.0, 2.0), 1.0)


def test_the_interval_of_an_interaction_covers():
    """200 runs of 60 states with a true interaction of -0.2: about 95 % of the intervals."""
    rng = np.random.default_rng(1)
    hits = 0
    for k in range(200):
        shifted = rng.random((60, 2)) < (0.5, 0.7)
        plain = rng.random((60, 2)) < (0.9, 0.9)
        _, (low, high), _ = interaction(np.hstack([shifted, plain]), seed=k)
        hits += low <= -0.2 <= high
    assert 180 <= hits <= 200


def test_a_median_counts_what_never_came():
    assert median_with_never([1.0, None, 3.0]) == 3.0
    assert median_with_never([1.0, 2.0, 3.0, None]) == 2.5
    assert median_with_never([1.0, None]) == math.inf
    assert median_with_never([None, None, 1.0]) == math.inf
    assert math.isnan(median_with_never([]))


# -- the table -----------------------------------------------------------------------------------
@pytest.fixture
def runs(tmp_path):
    plain = write(tmp_path / 'none', [
        *outcomes(NONE, '11111111'), *outcomes(BLIND, '11111110'),
        *outcomes(OTHER, '11111111'), *outcomes(DENSE_OTHER, '11111111'),
    ])  # fmt: skip
    shifted = [*outcomes(NONE, '11111100'), *outcomes(BLIND, '10000000')]
    shifted[0] = replace(shifted[0], events=[[1.0, 'jump'], [2.5, 'recovered']], path_m=0.5,
                         landmarks={'instructed block, agentview': [9, 10]},
                         landmarks_after={'instructed block, agentview': [4, 5]},
                         landmarks_next={'instructed block, agentview': [0, 1]})  # fmt: skip
    shifted[1] = replace(shifted[1], events=[[1.5, 'jump']], path_m=0.7, steps=60)
    jump = write(tmp_path / 'jump', shifted, shift='jump:4', shift_seed=0)
    more = [*outcomes(OTHER, '00001111'), *outcomes(DENSE_OTHER, '00011111')]
    lost = record(BLIND, 3, None, error='worker died')
    more = write(tmp_path / 'more', [*more, lost], shift='jump:4', shift_seed=0)
    return [plain, jump, more]


def test_every_entry_is_compared_with_dense_on_its_own_weights(runs):
    rows = {(row['shift'], row['entry']): row for row in cells(read_runs(runs))}
    assert len(rows) == 8
    blind = rows['jump:4', 'blind']
    assert (blind['episodes'], blind['successes']) == (8, 1)
    assert blind['low'] == pytest.approx(0.0224, abs=1e-3)  # Wilson of 1/8, by his formula
    assert blind['difference']['value'] == pytest.approx(-5 / 8)
    assert blind['difference']['p'] == pytest.approx(2 / 2**5)  # McNemar: 5 discordant, one way
    assert blind['interaction']['value'] == pytest.approx(-5 / 8 + 1 / 8)
    light = rows['jump:4', 'lightvla']
    assert light['difference']['value'] == pytest.approx(-1 / 8)  # not to the first dense run
    assert 'difference' not in rows['jump:4', 'none']
    assert 'interaction' not in rows['none', 'blind']
    # differences: blind and lightvla in both worlds, p 1, 1, 1 and 1/16
    assert blind['difference']['p_holm'] == pytest.approx(4 / 16)


def test_an_option_is_compared_with_the_same_mode_without_it(tmp_path):
    """Against the base: the entry with most of an entry's options, on the same weights."""
    few, more = {'budget': 0.25}, {'budget': 0.25, 'reset_grip': True}
    foreign = Entry('elsewhere', 'scout', more, 'l', 'x')
    folder = write(tmp_path / 'jump', [
        *outcomes(NONE, '1111'), *outcomes(Entry('s', 'scout'), '1110'),
        *outcomes(Entry('s.25', 'scout', few), '1100'), *outcomes(foreign, '0000'),
        *outcomes(Entry('s.25 grip', 'scout', more), '1111'),
    ], shift='jump:4')  # fmt: skip
    rows = {row['entry']: row for row in cells(read_runs([folder]), against='base')}
    assert rows['s.25 grip']['difference']['value'] == pytest.approx(2 / 4)
    assert rows['s.25']['difference']['value'] == pytest.approx(-1 / 4)
    assert all('difference' not in rows[name] for name in ('none', 's', 'elsewhere'))
    out = tmp_path / 'table'
    assert shifts.main(['table', str(folder), '--against', 'base', '--out', str(out)]) == 0
    page = (out / 'report.md').read_text()
    assert 'minus base' in page and 'dense' not in page


def test_times_and_kept_patches_after_a_change(runs):
    rows = {(row['shift'], row['entry']): row for row in cells(read_runs(runs))}
    row = rows['jump:4', 'none']
    assert (row['changed'], row['recovered']) == (2, 1)
    assert row['recovery_s'] == 'never'  # the median of 1.5 s and never
    assert row['after_change_s'] == pytest.approx((4.0 + 1.5) / 2)  # 100 and 60 steps at 20 Hz
    shares = (row['before_target'], row['next_target'], row['after_target'])
    assert shares == (1.0, 0.0, 0.8)
    assert row['before_goal'] is None
    assert row['path_m'] == pytest.approx(0.6)  # of those that have one
    assert rows['none', 'none']['recovered'] is None


def test_the_page_the_picture_and_the_numbers_are_written(runs, tmp_path, capsys):
    out = tmp_path / 'table'
    assert shifts.main(['table', *map(str, runs), '--out', str(out)]) == 0
    assert 'jump:4' in capsys.readouterr().out
    page = (out / 'report.md').read_text()
    assert '-62 (' in page and 'shifts table' in page and 'Holm' in page
    assert len(json.loads((out / 'results.json').read_text())['cells']) == 8
    assert (out / 'success.png').stat().st_size > 5000


def test_cells_that_are_too_small_or_never_shifted_are_left_out(runs, tmp_path):
    extra = write(tmp_path / 'extra', outcomes(Entry('only', 'none', {}, 'l', 'y'), '11'))
    few = write(tmp_path / 'few', outcomes(NONE, '11'), shift='noise:1')
    names = {(r['shift'], r['entry']) for r in cells(read_runs([*runs, extra, few]), least=3)}
    assert len(names) == 8 and ('noise:1', 'none') not in names
    with pytest.raises(ValueError, match='no cell has 9 episodes'):
        write_report(runs, tmp_path / 'none-left', 'x', least=9)


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match='holds no evaluation'):
        read_runs([tmp_path / 'nowhere'])
    other = write(tmp_path / 'other', outcomes(NONE, '1'), shift='noise:1', sha256='v')
    with pytest.raises(ValueError, match='other sha256'):
        read_runs([runs[0], other])
    seed = write(tmp_path / 'seed', outcomes(NONE, '1'), shift='jump:4', shift_seed=3)
    with pytest.raises(ValueError, match='other shift_seed'):
        read_runs([runs[1], seed])
    weights = write(tmp_path / 'weights', outcomes(replace(NONE, sha256='v'), '1'))
    with pytest.raises(ValueError, match="'none' ran on several weights"):
        read_runs([runs[0], weights])
    assert shifts.main(['table', str(tmp_path / 'nowhere')]) == 1


def test_the_list_names_every_axis(capsys):
    assert shifts.main(['list']) == 0
    text = capsys.readouterr().out
    assert '| jump ' in text and '0.02, 0.04, 0.06, 0.09, 0.12' in text


def test_a_report_of_the_suite_alone_has_no_changes(runs, tmp_path):
    write_report(runs[:1], tmp_path / 'alone', 'x')
    assert 'After a change' not in (tmp_path / 'alone' / 'report.md').read_text()
