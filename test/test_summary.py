# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From records to rows, tables and pictures: nothing lost, exceptions apart, pairs matched."""

import csv
from dataclasses import replace

import pytest
from PIL import Image

from vla_prune_ros import command_line
from vla_prune_ros.evaluation import plots, report, summary
from vla_prune_ros.evaluation.rollouts import Entry, Episode, EpisodeRecord

DENSE, HALF = Entry('none', 'none'), Entry('half', 'random', {'keep': 32})


def record(entry, state, success, queries=2, rows=(128.0, 128.0), error=None, task=0):
    return EpisodeRecord(
        Episode(entry, task, state), f'task{task}', 'do it', None if error else success,
        steps=8 * queries, queries=queries, visual_tokens=128, kept=rows[-1],
        visual_rows=list(rows), flops={'vision': 10.0, 'decoder': sum(rows)},
        timing_ms={'vision': [9.0] + [1.0] * (queries - 1),
                   'total': [90.0] + [2.0 + state] * (queries - 1)},
        resets={'new episode': 1}, wall_s=1.0, error=error,
        actions=[[0.1, 0.2]] * 8 if state == 0 else None,
    )  # fmt: skip


RECORDS = [
    record(DENSE, 0, True), record(DENSE, 1, True), record(DENSE, 2, False),
    record(HALF, 0, False, queries=1, rows=(128.0, 64.0)),
    record(HALF, 1, True, queries=3, rows=(128.0, 32.0)),
    record(HALF, 2, None, error='ValueError: no'),
]  # fmt: skip


def test_exceptions_are_neither_successes_nor_failures():
    dense, half = summary.summarise([DENSE, HALF], RECORDS, 'none')
    assert (dense['episodes'], dense['successes'], dense['exceptions']) == (3, 2, 0)
    assert (half['episodes'], half['successes'], half['exceptions']) == (2, 1, 1)
    assert half['success'] == 0.5


def test_pairs_are_the_initial_states_that_both_entries_finished():
    dense, half = summary.summarise([DENSE, HALF], RECORDS, 'none')
    assert dense['paired'] is None
    assert half['paired']['n'] == 2
    assert (half['paired']['only_this'], half['paired']['only_baseline']) == (0, 1)
    assert half['paired']['difference'] == pytest.approx(-0.5)
    assert half['paired']['p'] == 1.0


def test_means_are_over_queries_not_episodes():
    half = summary.summarise([HALF], RECORDS)[0]
    assert half['visual_rows_per_layer'] == [128.0, (64 + 3 * 32) / 4]
    assert half['kept_last_layer'] == pytest.approx(40.0)
    assert half['flops']['decoder'] == pytest.approx((192 + 3 * 160) / 4)
    assert half['queries_per_episode'] == 2.0


def test_latency_leaves_the_first_query_of_an_episode_out():
    dense = summary.summarise([DENSE], RECORDS)[0]
    assert dense['latency_ms']['total']['n'] == 3
    assert dense['latency_ms']['total']['p50'] == 3.0
    assert dense['latency_ms']['vision']['p50'] == 1.0


def test_an_entry_without_finished_episodes_is_shown_as_such():
    row = summary.summarise([HALF], [RECORDS[-1]])[0]
    assert (row['episodes'], row['exceptions'], row['low'], row['high']) == (0, 1, 0.0, 1.0)
    assert 'no episode' in summary.summary_table([row])


def test_notes_and_other_checkpoints_are_marked_and_stand_below_the_table():
    entries = [replace(DENSE, checkpoint='here'), replace(HALF, checkpoint='there')]
    rows = summary.summarise(entries, RECORDS, notes={'half': 'not the method'})
    table, _, below = summary.summary_table(rows, 'here').partition('\n\n')
    assert [line.split('|')[1].strip() for line in table.splitlines()[2:]] == [
        'none', 'half [1] [2]'
    ]  # fmt: skip
    assert below.splitlines() == ['- [1] on checkpoint there', '- [2] not the method']
    assert '[1]' not in summary.summary_table(summary.summarise([DENSE, HALF], RECORDS))


def test_record_survives_json():
    original = RECORDS[4]
    again = EpisodeRecord.from_json(original.to_json())
    assert again == original
    assert again.episode.key == original.episode.key


def test_csv_files_hold_one_line_per_entry_and_per_episode(tmp_path):
    there = replace(HALF, checkpoint='there', sha256='def')
    rows = summary.summarise([DENSE, there], RECORDS, 'none')
    summary.write_summary_csv(rows, tmp_path / 's.csv')
    summary.write_episodes_csv(RECORDS, tmp_path / 'e.csv')
    with (tmp_path / 's.csv').open() as file:
        lines = list(csv.DictReader(file))
    assert [line['entry'] for line in lines] == ['none', 'half']
    assert lines[1]['options'] == '{"keep": 32}'
    assert float(lines[1]['difference']) == -0.5
    assert (lines[1]['checkpoint'], lines[1]['sha256']) == ('there', 'def')
    with (tmp_path / 'e.csv').open() as file:
        lines = list(csv.DictReader(file))
    assert [line['success'] for line in lines] == ['1', '1', '0', '0', '1', '']
    assert lines[-1]['error'] == 'ValueError: no'


def test_entries_with_the_same_tokens_share_a_picture(tmp_path):
    again = Entry('again', 'random', {'keep': 33})
    records = [*RECORDS, *(record(again, s, True, rows=(128.0, 40.0)) for s in range(2))]
    records = [r for r in records if r.episode.entry != HALF]
    records += [record(HALF, s, True, rows=(128.0, 40.0)) for s in range(2)]
    rows = summary.summarise([HALF, again], records)
    plots.success_against_tokens(rows, tmp_path / 'curve.png')
    assert (tmp_path / 'curve.png').exists()


def test_page_shows_command_checkpoint_tables_and_its_pictures(tmp_path):
    here = {'checkpoint': 'here', 'sha256': 'abc'}
    entries = [replace(DENSE, **here), replace(HALF, checkpoint='there', sha256='def')]
    rows = summary.summarise(entries, RECORDS, 'none')
    pictures = report.write_pictures(rows, RECORDS, ['dx', 'grip'], 8, tmp_path)
    run = {
        'command': command_line.command_line(['--option', 'random.keep=3 2'], 'evaluate'),
        'environment': command_line.environment(), **here,
        'suite': 'tabletop', 'device': 'cpu', 'dtype': 'float32', 'workers': 2, 'threads': 1,
        'notes': ['a remark'],
    }  # fmt: skip
    page = report.markdown(run, rows, pictures)
    for text in ("'random.keep=3 2'", 'a remark', '50.0 % (9.5 to 90.5)'):
        assert text in page
    assert '- checkpoint `here`, sha256 `abc`: none\n' in page
    assert '- checkpoint `there`, sha256 `def`: half\n' in page
    assert {name for name, _ in pictures} == {p.name for p in tmp_path.glob('*.png')}
    for name, _ in pictures:
        assert f']({name})' in page
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100


def test_modes_and_weights_differ_by_marker_as_well_as_by_colour():
    rows = [{'mode': f'mode{k}', 'checkpoint': 'here'} for k in range(7)]
    rows += [{'mode': 'mode0', 'checkpoint': 'there'}]
    looks = plots.styles(rows).values()
    assert len({look['color'] for look in looks}) == 8
    assert len({look['marker'] for look in looks}) == 8
