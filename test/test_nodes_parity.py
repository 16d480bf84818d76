# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An episode over ROS is the episode of the evaluation, step for step.

Pinned: a bridge that is started again repeats its stamps, and the policy once took the state of
the time before for the new one.
"""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

import numpy as np
from bridge_peer import Robot
from conftest import REPOSITORY

from vla_prune_ros import weights
from vla_prune_ros.evaluation.rollouts import Entry, Episode, Session, Setup
from vla_prune_ros.ros import messages as m

pytestmark = pytest.mark.slow
OPTIONS = {'requery_on_enter': True}
TASKS = (4, 5, 0)


@pytest.fixture(scope='module')
def expected():
    """Success, steps and executed actions without ROS."""
    if 'tabletop' not in weights.available():
        pytest.skip('no embedded policy')
    session = Session(Setup('tabletop'))
    entry = Entry('specprune', 'specprune', OPTIONS)
    records = {t: session.run(Episode(entry, t, 0, keep_actions=True)) for t in TASKS}
    session.close()
    return records


def test_simulations_one_after_the_other_give_the_episodes_of_the_evaluation(
    ros, start, namespace, expected
):
    common = ['--ros-args', '-r', f'__ns:={namespace}']
    common += ['--params-file', str(REPOSITORY / 'config' / 'sim.yaml')]
    policy = start(
        'policy_node', *common, '-p', 'pruning.mode:=specprune', '-p', 'torch_threads:=1',
        '-p', 'pruning.specprune.requery_on_enter:=true', '-p', 'device:=cpu',
    )  # fmt: skip
    for task, record in expected.items():
        watcher = Robot(namespace, answers=False)
        simulation = start('sim_bridge', *common, '-p', 'episodes:=1', '-p', f"task:='{task}'")
        status = watcher.wait_until_done(120.0)
        assert simulation.end()[0] == 0, simulation.log
        assert (status['success'] == 'true', int(status['step']), int(status['queries'])) == (
            record.success, record.steps, record.queries,
        ), policy.log  # fmt: skip
        executed = np.concatenate([m.actions_from(r) for r in watcher.requests])
        here = np.clip(record.actions, [-1] * 6 + [0], 1)[: len(executed)]
        np.testing.assert_allclose(executed, here, atol=1e-6)
        watcher.close()
