# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the live view draws of known messages."""

import numpy as np
import pytest

from vla_prune_ros.view.scene import STEP_POSITION, Lines, Scene, dashes

PERIOD = 50_000_000
START = 10_000_000_000


def drawn(drawings, path):
    found = [d for d in drawings if d.path == path]
    assert found, f'nothing drawn at {path}'
    return found[-1]


def chunk(direction, n=8, gripper=1.0):
    actions = np.zeros((n, 7))
    actions[:, :3], actions[:, 6] = direction, gripper
    return actions


def scene_at(stamp, position=(0.1, 0.2, 0.3)):
    scene = Scene()
    list(scene.pose(stamp, np.array(position)))
    return scene


def test_a_plan_begins_at_the_pose_of_its_observation_and_is_as_long_as_the_arm_moves():
    plan = drawn(scene_at(START).chunk(START, chunk((1, 0, 0))), 'world/plan').content.strips[0]
    assert plan[0] == pytest.approx([0.1, 0.2, 0.3])
    assert plan[-1] - plan[0] == pytest.approx([8 * STEP_POSITION, 0, 0], abs=1e-6)


def test_the_policy_may_say_how_far_a_unit_moves():
    scene = scene_at(START)
    list(scene.information(START, {'action.step_position': '0.05'}))
    plan = drawn(scene.chunk(START, chunk((0, 1, 0))), 'world/plan').content.strips[0]
    assert plan[-1] - plan[0] == pytest.approx([0, 0.4, 0], abs=1e-6)


def test_commands_beyond_the_range_move_no_further():
    plan = drawn(scene_at(START).chunk(START, chunk((9, 0, 0))), 'world/plan').content.strips[0]
    assert plan[-1][0] - plan[0][0] == pytest.approx(8 * STEP_POSITION, abs=1e-6)


def test_a_superseded_plan_shows_what_was_played_and_what_was_not():
    scene = scene_at(START)
    list(scene.chunk(START, chunk((1, 0, 0))))
    for k in range(1, 6):
        list(scene.pose(START + k * PERIOD, np.array([0.1, 0.2, 0.3])))
    drawings = list(scene.chunk(START + 3 * PERIOD, chunk((0, 1, 0))))
    (played,) = drawn(drawings, 'world/superseded').content.strips
    assert len(played) == 6  # five actions until the next chunk came, 100 ms after its picture
    assert len(drawn(drawings, 'world/unplayed').content.strips) == 3
    assert drawn(drawings, 'time/age').content == pytest.approx(100.0)


def test_a_repeated_chunk_is_drawn_once():
    scene = scene_at(START)
    assert list(scene.chunk(START, chunk((1, 0, 0))))
    assert not list(scene.chunk(START, chunk((1, 0, 0))))


def test_a_chunk_without_a_pose_still_shows_its_numbers():
    paths = {d.path for d in Scene().chunk(START, chunk((1, 0, 0), gripper=0.0))}
    assert paths == {'time/age', 'time/chunk_lasts', 'gripper/wished'}


@pytest.mark.parametrize('then', [START - 2_000_000_000, START + 10_000_000_000])
def test_a_clock_that_jumps_empties_the_scene(then):
    scene = scene_at(START)
    list(scene.chunk(START, chunk((1, 0, 0))))
    drawings = list(scene.pose(then, np.zeros(3)))
    assert drawn(drawings, 'world/plan').content == Lines([])
    (plan,) = drawn(scene.chunk(then, chunk((0, 0, 1))), 'world/plan').content.strips
    assert plan[0] == pytest.approx([0, 0, 0])


def test_kept_patches_are_drawn_on_the_picture_with_the_stamp_of_the_chunk():
    scene = Scene(cameras=('agentview',))
    list(scene.information(0, {'patches_per_view': '4'}))
    for k, light in enumerate((40, 200)):
        pixels = np.full((64, 64, 3), light, np.uint8)
        list(scene.picture('agentview', START + k * PERIOD, pixels))
    picture = drawn(scene.statistics(START, {'kept': '1'}), 'kept/agentview').content
    assert picture[20, 20, 0] == 40  # the older picture, first patch kept
    assert picture[48, 48, 0] < 40  # dropped: dimmed
    assert not [d for d in scene.statistics(START + 5 * PERIOD, {'kept': '1'}) if 'kept' in d.path]


def test_statistics_become_numbers():
    values = {'total_ms': '12.5', 'node.queue_ms': '1', 'tokens_kept': '40', 'tokens_total': '128'}
    numbers = {d.path: d.content for d in Scene().statistics(START, values)}
    assert numbers == {'time/total': 12.5, 'tokens/kept': 40.0, 'tokens/total': 128.0}


def test_the_text_says_what_runs():
    scene = Scene()
    info = {'mode': 'fastv', 'pruning.fastv.keep': '0.5', 'instruction': 'pick up the red block'}
    list(scene.information(START, info))
    (text,) = scene.episode(START, {'task': 'pick_up_red', 'state': 'done', 'result': 'success'})
    for part in ('pick up the red block', '**fastv**', 'keep 0.5', 'task pick_up_red', 'success'):
        assert part in text.content
    (text,) = scene.instruction('')
    assert 'no instruction' in text.content


def test_dashes_cover_half_of_a_line():
    pieces = dashes(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]))
    assert [float(np.ptp(p[:, 0])) for p in pieces] == [0.5, 0.5]


def test_frames_in_memory_are_bounded():
    scene = Scene()
    for k in range(1000):
        list(scene.picture('wrist', START + k, np.zeros((2, 2, 3), np.uint8)))
        list(scene.pose(START + k, np.zeros(3)))
    assert len(scene._frames['wrist']) == 64 and len(scene._poses) == 600
