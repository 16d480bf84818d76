# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The tabletop's expert behind the nodes: what it does is a data set afterwards."""

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='MuJoCo is not installed')

from vla_prune_ros.sim.tabletop import TabletopRobot
from vla_prune_ros.sim.tabletop.expert import Demonstrator, expert_action
from vla_prune_ros.sim.tabletop.tasks import TASKS


def drive(robot, expert, index, state):
    """Steps until success; None without it."""
    robot.reset(index, state)
    for step in range(TASKS[index].max_steps):
        robot.advance(expert.action(TASKS[index], robot.scene()))
        if robot.success():
            return step
    return None


def test_a_disturbed_expert_still_gets_there_and_another_way():
    robot = TabletopRobot(split='train', render=False)
    for index in (0, 5):
        assert drive(robot, Demonstrator(), index, 3) is not None
        ends = [drive(robot, Demonstrator(0.1, seed), index, 3) for seed in range(4)]
        assert sum(end is not None for end in ends) >= 2, ends
    robot.reset(0, 3)
    scene = robot.scene()
    clean = expert_action(TASKS[0], scene)
    np.testing.assert_array_equal(Demonstrator().action(TASKS[0], scene), clean)
    disturbed = Demonstrator(0.1, seed=1).action(TASKS[0], scene)
    assert 0 < np.abs(disturbed - clean)[:6].max() < 0.5 and disturbed[6] == clean[6]
    assert np.abs(disturbed).max() <= 1


def test_objects_are_where_the_scene_says():
    robot = TabletopRobot(render=False)
    robot.reset(2, 7)
    objects, scene = robot.objects(), robot.scene()
    for colour, position in scene.blocks.items():
        np.testing.assert_array_equal(objects[f'{colour}_block'][:3], position)
    np.testing.assert_array_equal(objects['plate'][:3], scene.plate)
    assert all(abs(np.linalg.norm(pose[3:]) - 1) < 1e-9 for pose in objects.values())


def test_recorded_through_the_nodes_it_is_a_data_set(ros, start, namespace, tmp_path):
    from vla_prune_ros.bags.demonstrations import register
    from vla_prune_ros.datasets import ReadOptions, open_dataset

    words = ('--ros-args', '-r', f'__ns:={namespace}', '-r', '/clock:=clock')
    expert = start('expert_node', *words, '-p', 'noise:=0.05')
    recorder = start('record', '--complete', '--out', str(tmp_path / 'bag'), *words)
    parameters = ('episodes:=2', 'publish_objects:=true', 'recorder:=recorder', 'max_steps:=12')
    bridge = start('sim_bridge', *words, *(word for p in parameters for word in ('-p', p)))
    bridge.wait_for_log('all episodes are done')
    assert [p.end()[0] for p in (bridge, expert, recorder)] == [0, 0, 0]
    register()
    data = open_dataset(tmp_path / 'bag')
    # what was done after the last question of an episode, nobody is told
    assert [len(e) for e in data] == [11, 11] and data.rate == 20.0, data.notes
    for episode, task in zip(data, TASKS, strict=False):
        assert episode.instructions == (task.instruction,)
        assert (episode.actions[:, 6] == 1).all(), 'open on the way to the block'
        assert np.ptp(episode.proprio[:, 0]) > 0.005, 'and it moves'
        assert len(list(episode.pictures['wrist'])) == 11
    assert not len(open_dataset(tmp_path / 'bag', ReadOptions(only_success=True)))
