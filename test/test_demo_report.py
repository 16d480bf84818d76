# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The demo's table and pictures, from episodes as the topics tell them."""

import json

import numpy as np
import pytest
from PIL import Image

from vla_prune_ros.trials.demo_report import (
    DemoEpisode,
    Frame,
    Query,
    choose_episode,
    comparable,
    demo_rows,
    demo_table,
    query_at,
    write_animation,
    write_results,
    write_strip,
)


def episode(mode, success=True, task='pick_up_red', kept=128, steps=16, state=0):
    view = np.full((64, 64, 3), 180, dtype=np.uint8)
    rng = np.random.default_rng(3)
    ids = np.sort(rng.choice(np.arange(1, 129), kept, replace=False))
    return DemoEpisode(
        mode, task, 'pick up the red block', state, success, steps,
        queries=[Query(mode, 0.4 * k, ids, 128, 10.0 + k) for k in range(steps // 8)],
        frames=[Frame(0.05 * k, (view + k, view)) for k in range(steps)],
    )  # fmt: skip


def test_rows_count_successes_tokens_and_warm_latency():
    rows = demo_rows(
        ['none', 'random', 'late'],
        [episode('none'), episode('none', False), episode('random', kept=32, steps=24)],
    )
    none, random, late = rows
    assert (none['episodes'], none['successes'], none['kept']) == (2, 1, 128)
    assert (random['kept'], random['visual_tokens']) == (32, 128)
    assert random['latency_ms']['p50'] == 11.5  # 10, 11, 12 without the first
    assert (late['episodes'], late['latency_ms']['n']) == (0, 0)
    text = demo_table(rows)
    assert '50.0 % (9.5 to 90.5)' in text
    assert '32.0 of 128' in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_a_mode_with_a_note_is_marked_and_the_note_is_below_the_table():
    shown = [episode('none'), episode('lightvla'), episode('other')]
    shown[1].note = shown[2].note = 'not the method'
    text = demo_table(demo_rows(['none', 'lightvla', 'other'], shown))
    table, _, below = text.partition('\n\n')
    assert [line.split('|')[1].strip() for line in table.splitlines()[2:]] == [
        'none', 'lightvla [1]', 'other [1]'
    ]  # fmt: skip
    assert below == '- [1] not the method'


def test_results_are_json_with_every_episode(tmp_path):
    episodes = [episode('random', kept=5)]
    path = tmp_path / 'results.json'
    write_results(path, {'command': 'x'}, demo_rows(['random'], episodes), episodes)
    data = json.loads(path.read_text())
    assert data['episodes'][0]['kept'] == [5, 5]
    assert data['modes'][0]['mode'] == 'random'


def test_a_frame_shows_the_query_in_force_at_its_time():
    one = episode('none', steps=24)
    assert query_at(one, 0.35).stamp == 0.0
    assert query_at(one, 0.4).stamp == pytest.approx(0.4)
    assert query_at(one, 9.0).stamp == pytest.approx(0.8)
    assert query_at(one, -1.0).stamp == 0.0


def test_a_successful_pruned_episode_is_shown_before_failed_random_and_dense_ones():
    best = episode('fastv', kept=40)
    others = [episode('none'), episode('random', kept=8), episode('fastv', False, kept=40)]
    assert choose_episode([*others, best]) is best
    with pytest.raises(ValueError, match='pictures'):
        choose_episode([])


def test_rows_of_the_strip_share_task_and_initial_state():
    same = [episode('none', task='b'), episode('random', task='b', kept=9)]
    assert comparable([episode('none', task='a'), *same]) == same


def test_animation_and_strip_open_and_show_the_dimmed_patches(tmp_path):
    episodes = [episode('none'), episode('random', kept=20)]
    write_animation(tmp_path / 'a.gif', episodes[1])
    write_strip(tmp_path / 's.png', episodes)
    with Image.open(tmp_path / 'a.gif') as gif:
        assert gif.n_frames == 16
        assert gif.info['duration'] == 50
        assert gif.size == (128, 64 + 46)
        first = np.asarray(gif.convert('RGB'))[:64]
    with Image.open(tmp_path / 's.png') as strip:
        assert strip.size == (3 * 128, 2 * 110)
    assert (first.max(axis=2) < 100).mean() > 0.5  # 108 of 128 patches are dropped
