# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes on a ray cluster: the same records, deaths survived; without ray a clear word.

The tests with a cluster run where ray is installed; it is no requirement.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vla_prune_ros.evaluation import evaluate
from vla_prune_ros.evaluation.rollouts import Entry, Episode, Session, Setup
from vla_prune_ros.evaluation.workers import EpisodeLog, run_episodes

NONE, RANDOM = Entry('none', 'none'), Entry('few', 'random', {'keep': 3, 'layer': 1})
RUN = {'sha256': 'of these weights'}


def episode(entry=NONE, task=0, state=0):
    return Episode(entry, task, state, max_steps=9)


def plain(record):
    data = record.to_json()
    del data['timing_ms'], data['wall_s']
    return data


class Dying(Session):
    """A worker that the operating system takes away in initial state 1."""

    def run(self, episode):
        if episode.state == 1:
            os._exit(9)
        return super().run(episode)


@pytest.fixture
def setup(checkpoint):
    return Setup(checkpoint=str(checkpoint))


@pytest.fixture(scope='module')
def cluster():
    """A cluster of two workers on this machine, of its own; workers find this module, too."""
    ray = pytest.importorskip('ray')
    paths = [str(Path(__file__).parent), os.environ['PYTHONPATH']]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('RAY_ADDRESS', raising=False)
        patch.setenv('RAY_USAGE_STATS_ENABLED', '0')
        patch.setenv('PYTHONPATH', os.pathsep.join(paths))
        ray.init('local', num_cpus=2, include_dashboard=False)
        yield
        ray.shutdown()


@pytest.fixture
def command(checkpoint, tmp_path):
    return [
        '--checkpoint', str(checkpoint), '--out', str(tmp_path / 'out'), '--modes', 'none,random',
        '--episodes', '2', '--tasks', '0,6', '--max-steps', '9', '--quiet',
    ]  # fmt: skip


def test_without_ray_the_command_says_how_to_get_it_before_anything_runs(
    command, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(sys.modules, 'ray', None)  # import ray: ImportError
    assert evaluate.main([*command, '--executor', 'ray']) == 1
    assert 'pip install ray' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_the_verb_gives_the_same_results_on_a_cluster(command, cluster, tmp_path):
    results = []
    for executor in ('ray', 'processes'):
        out = tmp_path / executor
        more = ['--executor', executor, '--out', str(out)]
        assert evaluate.main([*command, *more, '--workers', '2']) == 0
        data = json.loads((out / 'results.json').read_text())
        for row in data['entries']:
            del row['latency_ms']
        results.append(data)
    assert results[0]['entries'] == results[1]['entries']
    assert (results[0]['run']['executor'], results[0]['run']['workers']) == ('ray', 2)
    assert 'run by ray on 1 machine(s)' in (tmp_path / 'ray' / 'report.md').read_text()


@pytest.mark.slow
def test_a_worker_that_dies_costs_one_episode(setup, cluster, tmp_path):
    plan = [episode(state=s) for s in range(4)]
    log = EpisodeLog(tmp_path / 'log.jsonl', RUN)
    records = run_episodes(setup, plan, log, workers=2, session=Dying, executor='ray')
    assert [bool(r.error) for r in records] == [False, True, False, False]
    assert records[1].error.startswith('worker died twice: ')


@pytest.mark.slow
@pytest.mark.parametrize('what', ['directory', 'weights of the run', 'weights of an entry'])
def test_a_worker_without_the_right_checkpoint_stops_the_run(setup, cluster, tmp_path, what):
    entry, message = NONE, 'holds other weights on '
    if what == 'directory':
        setup, message = replace(setup, checkpoint=str(tmp_path / 'nowhere')), 'nowhere'
    elif what == 'weights of the run':
        setup = replace(setup, sha256='of others')
    else:
        entry = replace(NONE, checkpoint=setup.checkpoint, sha256='of others')
    log = EpisodeLog(tmp_path / 'log.jsonl', RUN)
    with pytest.raises(RuntimeError, match=message):
        run_episodes(setup, [episode(entry), episode(entry, state=1)], log, 2, executor='ray')


@pytest.mark.slow
def test_a_cluster_without_room_for_a_worker_is_refused(setup, cluster, tmp_path):
    log = EpisodeLog(tmp_path / 'log.jsonl', RUN)
    for more in ({'device': 'cuda'}, {'threads': 3}):
        with pytest.raises(RuntimeError, match='no machine of the ray cluster has'):
            run_episodes(replace(setup, **more), [episode()], log, executor='ray')
