# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes on a real ray cluster of two nodes: workers, a machine and the driver are lost.

Both nodes are on this machine, with one core each, and processes of their own. Skipped where ray
is not installed; it is no requirement.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla_prune_ros.evaluation import evaluate
from vla_prune_ros.evaluation.rollouts import Entry, Episode, Session, Setup
from vla_prune_ros.evaluation.workers import EpisodeLog, run_episodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
RUN = {'sha256': 'of these weights'}
FEW = Entry('few', 'random', {'keep': 3, 'layer': 1})
PLAN = [Episode(FEW, 0, state, max_steps=9) for state in range(6)]
KILLED = 'VLA_TEST_KILLED'  # environment variable: a folder in which deaths are noted


def plain(record):
    data = record.to_json()
    del data['timing_ms'], data['wall_s']
    return data


class Placed(Session):
    """Tells on which node it ran."""

    def run(self, episode):
        import ray

        record = super().run(episode)
        record.resets['node ' + ray.get_runtime_context().get_node_id()] = 1
        return record


class KilledOnce(Session):
    """Gets kill -9 in the middle of state 2, the first time; in state 4 every time."""

    def run(self, episode):
        note = Path(os.environ[KILLED]) / str(episode.state)
        if episode.state == 4 or (episode.state == 2 and not note.exists()):
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(episode)


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """Two nodes of one core; whoever reads RAY_ADDRESS joins them."""
    ray = pytest.importorskip('ray', reason='ray is not installed')
    from ray.cluster_utils import Cluster

    paths = [str(Path(__file__).parent), os.environ['PYTHONPATH']]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(paths))
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    monkeypatch.setenv(KILLED, str(tmp_path))
    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})
    cluster.second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setenv('RAY_ADDRESS', cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def setup(checkpoint):
    return Setup(checkpoint=str(checkpoint))


@pytest.fixture
def alone(setup, tmp_path):
    """The records of the same episodes in this process."""
    log = EpisodeLog(tmp_path / 'alone.jsonl', RUN)
    return [plain(record) for record in run_episodes(setup, PLAN, log)]


def test_two_nodes_share_the_episodes_and_give_the_same(cluster, setup, alone, tmp_path):
    log = EpisodeLog(tmp_path / 'log.jsonl', RUN)
    records = run_episodes(setup, PLAN, log, workers=2, session=Placed, executor='ray')
    nodes = {key for r in records for key in r.resets if key.startswith('node ')}
    for record in records:
        for node in nodes:
            record.resets.pop(node, None)
    assert len(nodes) == 2
    assert [plain(r) for r in records] == alone


def test_a_killed_worker_is_replaced_and_its_episode_tried_once_more(
    cluster, setup, alone, tmp_path
):
    log = EpisodeLog(tmp_path / 'log.jsonl', RUN)
    records = run_episodes(setup, PLAN, log, workers=2, session=KilledOnce, executor='ray')
    assert (tmp_path / '2').exists()
    assert records[4].error.startswith('worker died twice: ')
    others = [k for k in range(len(PLAN)) if k != 4]
    assert [plain(records[k]) for k in others] == [alone[k] for k in others]


def test_the_loss_of_a_machine_costs_nothing_but_time(cluster, setup, alone, tmp_path):
    log = EpisodeLog(tmp_path / 'log.jsonl', RUN)
    lost = []

    def lose(record):
        if not lost:
            lost.append(cluster.remove_node(cluster.second, allow_graceful=False))

    records = run_episodes(setup, PLAN, log, 2, lose, Session, 'ray')
    assert lost
    assert [plain(r) for r in records] == alone


def test_after_the_loss_of_the_driver_the_same_command_goes_on(cluster, checkpoint, tmp_path):
    command = [
        '--checkpoint', str(checkpoint), '--modes', 'none,random', '--episodes', '24',
        '--max-steps', '9', '--workers', '2', '--quiet',
    ]  # fmt: skip
    out = tmp_path / 'ray'
    log = out / 'episodes.jsonl'
    driver = subprocess.Popen(
        [sys.executable, '-m', 'vla_prune_ros', 'evaluate', *command, '--executor', 'ray',
         '--out', str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not (log.exists() and log.read_text().count('\n') >= 4):
            assert driver.poll() is None, 'it ended before it could be killed'
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    before = log.read_text().count('\n') - 1
    assert 3 <= before < 48
    assert evaluate.main([*command, '--executor', 'ray', '--out', str(out)]) == 0
    here = tmp_path / 'here'
    assert evaluate.main([*command, '--out', str(here)]) == 0
    results = []
    for folder in (out, here):
        data = json.loads((folder / 'results.json').read_text())
        for row in data['entries']:
            del row['latency_ms']
        results.append(data)
    assert results[0]['entries'] == results[1]['entries']
    notes = results[0]['run']['notes']
    assert f'{before} of 48 episodes were taken over from an earlier run' in notes
    assert 'run by ray on 2 machine(s); the hardware above is that of one' in notes
