# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Shifted worlds in LIBERO's scenes, on placeholder assets, through the same interface."""

import json

import numpy as np
import pytest
from test_libero import SIZE, TASK, assert_equal, checkpoint, our_episode  # noqa: F401

from vla_prune_ros.evaluation import evaluate
from vla_prune_ros.sim import make_robot
from vla_prune_ros.sim.shifts import ShiftedRobot

pytestmark = [pytest.mark.libero, pytest.mark.timeout(300)]
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (2, 7))


@pytest.fixture(scope='module')
def robot():
    inner = make_robot('libero', suite='libero_spatial', assets='placeholder', image_size=SIZE)
    robot = ShiftedRobot(inner)
    yield robot
    robot.close()


def test_every_axis_that_applies_shows_is_repeated_and_is_undone(robot):
    def episode(shift):
        robot.change(shift)
        return our_episode(robot, TASK, 1, ACTIONS)

    plain = episode('')
    assert_equal(plain, our_episode(robot.inner, TASK, 1, ACTIONS))
    for axis in ('camera', 'light', 'texture', 'distractors', 'noise', 'start'):
        shifted = episode(f'{axis}:4')
        change = np.abs(shifted[0]['agentview'].astype(int) - plain[0]['agentview'])
        assert change.mean() > 0.1, axis
        if axis in ('light', 'texture', 'camera', 'distractors', 'noise'):  # only seen
            np.testing.assert_array_equal(shifted[-1]['proprio'], plain[-1]['proprio'])
        else:
            way = shifted[0]['proprio'][:3] - plain[0]['proprio'][:3]
            assert np.linalg.norm(way) == pytest.approx(0.30, abs=0.05)
        if axis in ('texture', 'distractors'):
            assert_equal(shifted, episode(f'{axis}:4'))
    assert_equal(plain, episode('none'))


def test_the_shown_frame_is_late_and_the_words_are_others(robot):
    robot.change('delay:1,language:3')
    first = robot.reset(TASK, 0).images['agentview']
    late = robot.step(ACTIONS[0]).images['agentview']
    np.testing.assert_array_equal(late, first)
    assert (robot.step(ACTIONS[1]).images['agentview'] != first).any()
    assert robot.instruction != robot.inner.instruction


def test_what_does_not_apply_is_refused_by_name(robot, checkpoint, tmp_path, capsys):  # noqa: F811
    with pytest.raises(ValueError, match="'jump' does not apply to libero"):
        robot.change('jump:1')
    options = ['--suite', 'libero_spatial', '--assets', 'placeholder', '--out', str(tmp_path)]
    options += ['--checkpoint', str(checkpoint), '--shift', 'swap:1']
    assert evaluate.main(options) == 1
    assert "'swap' does not apply to libero" in capsys.readouterr().err


def test_an_evaluation_under_a_shift_says_so(checkpoint, tmp_path):  # noqa: F811
    options = ['--suite', 'libero_spatial', '--assets', 'placeholder', '--videos', '0', '--quiet']
    options += ['--checkpoint', str(checkpoint), '--modes', 'none', '--tasks', str(TASK)]
    options += ['--episodes', '1', '--max-steps', '3', '--workers', '1', '--out', str(tmp_path)]
    assert evaluate.main([*options, '--shift', 'light:3,camera:2']) == 0
    run = json.loads((tmp_path / 'results.json').read_text())['run']
    assert run['shift'] == 'camera:2,light:3'
    assert 'camera:2,light:3' in (tmp_path / 'report.md').read_text()
