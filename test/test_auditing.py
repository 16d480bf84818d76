# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How well a deviation predicts failure: the area, its interval, and `evaluate --audit`."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from vla_prune_ros.evaluation import evaluate
from vla_prune_ros.evaluation.auditing import audit_row, audit_table, running_mean
from vla_prune_ros.evaluation.rollouts import Entry, Episode, EpisodeRecord, Setup
from vla_prune_ros.evaluation.statistics import auroc, auroc_interval
from vla_prune_ros.policy.audit import Deviation, Watch


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    assert auroc([3, 4], [1, 2]) == 1.0
    assert auroc([1, 2], [3, 4]) == 0.0
    assert auroc([1, 2], [1, 2]) == 0.5
    assert auroc([2], [1, 2, 3, 4]) == pytest.approx((1 + 0.5) / 4)
    for sides in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match='both'):
            auroc(*sides)


def test_the_interval_has_a_width_everywhere_and_shrinks_with_the_numbers():
    for area in (0.0, 0.3, 0.5, 0.9, 1.0):
        small, large = auroc_interval(area, 8, 20), auroc_interval(area, 80, 200)
        assert 0 <= small.low <= area <= small.high <= 1
        assert 0 < large.high - large.low < small.high - small.low
    mirrored = auroc_interval(0.2, 9, 30)
    assert auroc_interval(0.8, 9, 30) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))
    for wrong in ((1.1, 3, 3), (0.5, 0, 3)):
        with pytest.raises(ValueError, match='no area'):
            auroc_interval(*wrong)


@pytest.mark.parametrize(('shift', 'truth'), [(0.0, 0.5), (1.0, 0.7602), (2.0, 0.9214)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(shift, truth):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        bad, good = rng.normal(shift, 1, 12), rng.normal(0, 1, 36)
        low, high = auroc_interval(auroc(bad, good), 12, 36)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.99


def record(success, deviations, error=None):
    audit = {'translation': deviations, 'overall': deviations}
    return EpisodeRecord(
        Episode(Entry('a', 'fastv'), 0, 0), 'task', '', success, error=error, audit=audit
    )


def test_the_running_mean_is_that_of_the_node():
    watch, seen = Watch(), []
    values = [0.1, 0.5, 0.2, 0.0]
    for value in values:
        watch.take(Deviation(0.0, {}, value), 1.0)
        seen.append(watch.smoothed)
    assert running_mean(values) == pytest.approx(seen)


def test_an_entry_is_summed_up_with_the_threshold_of_its_false_alarms():
    good = [record(True, [0.01 * k] * 4) for k in range(1, 21)]
    bad = [record(False, [0.0, 0.9, 0.0, 0.0]), record(False, [0.15] * 4)]
    row = audit_row([*good, *bad, record(None, [9.0], error='broken')])
    assert (row['episodes'], row['failures'], row['queries']) == (22, 2, 88)
    assert row['threshold']['value'] == pytest.approx(0.2)
    assert row['threshold']['noticed'] == 0.5
    assert row['auroc']['running mean']['value'] == pytest.approx((20 + 14.5) / 40)
    assert row['auroc']['mean overall']['low'] < row['auroc']['mean overall']['value']
    text = audit_table([{'name': 'fastv', 'audit': row}, {'name': 'none', 'audit': None}])
    assert 'fastv' in text and '2 / 22' in text and 'none' not in text
    assert audit_row([record(True, [])]) is None and audit_table([{'audit': None}]) == ''
    only_good = audit_row(good)
    assert only_good['auroc']['running mean'] is None
    assert only_good['threshold']['noticed'] is None


def test_logs_without_an_audit_go_on():
    old = Setup('x').fingerprint()
    assert 'audit' not in old and Setup('x', audit=True).fingerprint() == old | {'audit': True}


@pytest.mark.parametrize('shared', ['--no-shared-model', '--shared-model'])
def test_evaluate_audits_without_changing_an_episode(shared, tmp_path, capsys):
    common = [
        '--modes', 'fastv:budget=0.25', '--episodes', '1', '--workers', '1', '--max-steps', '20',
        '--quiet',
    ]  # fmt: skip
    plain, audited = tmp_path / 'plain', tmp_path / 'audited'
    assert evaluate.main([*common, '--out', str(plain)]) == 0
    assert evaluate.main([*common, '--audit', shared, '--out', str(audited)]) == 0
    assert 'AUROC' in capsys.readouterr().out
    runs = []
    for folder in (plain, audited):
        (line,) = (folder / 'episodes.jsonl').read_text().splitlines()[1:]
        runs.append(json.loads(line))
    assert runs[0]['actions'] == runs[1]['actions'] and runs[0]['flops'] == runs[1]['flops']
    assert not runs[0]['audit'] and len(runs[1]['audit']['overall']) == runs[1]['queries']
    assert min(runs[1]['audit']['overall']) > 0
    (row,) = json.loads((audited / 'results.json').read_text())['entries']
    assert row['audit']['deviation']['translation'] > 0
    assert 'What pruning changed' in (audited / 'report.md').read_text()


def test_what_the_node_published_of_joints_is_compared_too(tmp_path):
    pytest.importorskip('rclpy', reason='messages need ROS')
    from bag_tools import write

    from vla_prune_ros.bags.auditing import audit_report
    from vla_prune_ros.bags.compare import TickOutput
    from vla_prune_ros.bags.files import Bag
    from vla_prune_ros.bags.streams import FeedSettings
    from vla_prune_ros.bags.tracks import Track
    from vla_prune_ros.ros.messages import values_message

    said = {'audit.stamp': 7, 'audit.actions': 0.25, 'audit.overall': 0.5}
    topic, lines = '/vla_policy/inference_stats', []
    path = write(tmp_path / 'bag', [(topic, 9, values_message('s', said, 9))])
    found = {'actions': 0.25, 'overall': 0.375}
    kept, actions = np.arange(3), np.zeros((25, 14))
    output = TickOutput(7, 'fastv', actions, kept, 3, '', {}, '', found)
    with Bag(path) as bag:
        tracks = {'recorded': Track('recorded', (output,))}
        text = audit_report(bag, FeedSettings(), tracks, SimpleNamespace(write=lines.append))
    assert 'audited 1 of these ticks while it ran; largest difference 0.12' in text
    assert lines[-1] == {'type': 'audit', 'published': 1, 'largest': 0.125}
