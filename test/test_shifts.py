# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Shifted worlds: repeatable, the same for every policy, and none at level 0."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

from vla_prune_ros.sim import make_robot
from vla_prune_ros.sim.shifts import (
    AXES,
    ShiftedRobot,
    check_backend,
    parse_shift,
    shift_text,
)
from vla_prune_ros.sim.tabletop.expert import expert_action

PUT_RED, PICK_RED, STATE = 'put_red_on_plate', 'pick_up_red', 3
HOLD = np.array([0.0, 0, 0, 0, 0, 0, -1.0])
MOVE = np.array([0.3, -0.2, -0.1, 0, 0, 0.1, -1.0])
LASTING = [axis for axis, shift in AXES.items() if not shift.within]
ONCE = [axis for axis, shift in AXES.items() if shift.recovers]


@pytest.fixture(scope='module')
def plain():
    robot = make_robot('tabletop')
    yield robot
    robot.close()


@pytest.fixture(scope='module')
def robot():
    robot = ShiftedRobot(make_robot('tabletop'))
    yield robot
    robot.close()


def same(a, b):
    """Bit for bit the same observation."""
    assert a.images.keys() == b.images.keys()
    for name in a.images:
        np.testing.assert_array_equal(a.images[name], b.images[name])
    for name in ('proprio', 'joint_positions', 'finger_positions', 'ee_position', 'ee_quaternion'):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.time == b.time


def episode(robot, shift, seed=0, state=STATE, steps=12, task=PUT_RED):
    robot.change(shift, seed)
    seen = [robot.reset(task, state)]
    seen += [robot.step(MOVE, render=k % 4 == 3) for k in range(steps)]
    return seen


def by_expert(robot, shift, state=STATE, task=PUT_RED, limit=280, seed=0):
    """Play an episode; yields after every step until it succeeds."""
    robot.change(shift, seed)
    robot.reset(task, state, render=False)
    inner = robot.inner
    for step in range(limit):
        now = next(t for t in inner.tasks if t.instruction == inner.instruction)
        robot.step(expert_action(now, inner.scene()), render=False)
        yield step
        if robot.success():
            return


# -- no shift ------------------------------------------------------------------------------------
@pytest.mark.parametrize('shift', ['', 'none', *(f'{axis}:0' for axis in ('jump', 'noise'))])
def test_level_0_is_the_suite_bit_for_bit(plain, robot, shift):
    episode(robot, 'texture:5,camera:5,light:5,distractors:5,plate:5')  # leaves nothing behind
    shifted = episode(robot, shift)
    wanted = [plain.reset(PUT_RED, STATE)]
    wanted += [plain.step(MOVE, render=k % 4 == 3) for k in range(12)]
    for a, b in zip(wanted, shifted, strict=True):
        same(a, b)
    assert (robot.events, robot.extra_steps) == ((), 0)
    assert robot.instruction == plain.instruction
    same(plain.observe(), robot.observe())
    drawn, wanted = robot.snapshot()(), plain.snapshot()()
    for name in wanted:
        np.testing.assert_array_equal(drawn[name], wanted[name])


@pytest.mark.parametrize('axis', AXES)
def test_every_axis_is_undone_by_the_next_reset(plain, robot, axis):
    episode(robot, f'{axis}:5')
    robot.change('')
    same(robot.reset(PICK_RED, 1), plain.reset(PICK_RED, 1))
    same(robot.step(MOVE), plain.step(MOVE))


# -- repeatable, and only by what is said --------------------------------------------------------
@pytest.mark.parametrize('axis', AXES)
def test_a_shift_is_repeated_by_its_seed(robot, axis):
    first = episode(robot, f'{axis}:4')
    events = robot.events
    episode(robot, f'{axis}:2', seed=1, state=1)  # what came between does not matter
    for a, b in zip(first, episode(robot, f'{axis}:4'), strict=True):
        same(a, b)
    assert robot.events == events


@pytest.mark.parametrize('axis', ['camera', 'texture', 'distractors', 'start', 'noise'])
def test_other_seeds_and_states_draw_otherwise(robot, axis):
    def picture(seed, state):
        robot.change(f'{axis}:5', seed)
        robot.reset(PUT_RED, state, render=False)
        return np.hstack([*robot.observe().images.values()])

    pictures = [picture(seed, STATE) for seed in range(4)]
    assert len({p.tobytes() for p in pictures}) > 1
    robot.change('')
    base = {s: np.hstack([*robot.reset(PUT_RED, s).images.values()]) for s in (1, 2)}
    change = [picture(0, s).astype(int) - base[s] for s in (1, 2)]
    assert (change[0] != change[1]).any()


@pytest.mark.parametrize('axis', LASTING)
def test_a_shift_shows_and_levels_differ(robot, axis):
    if axis == 'language':
        robot.change('')
        robot.reset(PUT_RED, STATE, render=False)
        texts = [robot.instruction]
        for level in range(1, 6):
            robot.change(f'language:{level}')
            robot.reset(PUT_RED, STATE, render=False)
            texts.append(robot.instruction)
        assert len(set(texts)) == 6
        assert all('red' in text for text in texts)  # the meaning stays
        return
    pictures = []
    for level in range(6):
        robot.change(f'{axis}:{level}')
        both = robot.reset(PUT_RED, STATE).images
        pictures.append(np.hstack([both['agentview'], both['wrist']]).astype(float))
    strength = [np.abs(picture - pictures[0]).mean() for picture in pictures]
    assert all(value > 0.1 for value in strength[1:]), strength
    assert len(set(strength)) == 6


def test_the_severity_is_what_the_table_says(robot):
    def reset(shift):
        robot.change(shift)
        return robot.reset(PUT_RED, STATE, render=False)

    reset('')
    pose, hand = robot.camera_pose('agentview')[0], robot.observe(False).ee_position
    blocks = robot.inner.scene().blocks
    reset('camera:5')
    moved = robot.camera_pose('agentview')[0]
    middle = np.mean([*blocks.values()], axis=0)
    rotation = np.array([[0, -0.624], [1, 0], [0, -0.7815]])  # of the camera, columns x and z
    point = pose + rotation[:, 1] * (middle[2] - pose[2]) / rotation[2, 1]
    a, b = (pose - point)[:2], (moved - point)[:2]
    angle = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    assert angle == pytest.approx(30.0, abs=0.01)
    assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b))
    for level, metres in ((1, 0.10), (5, 0.40)):
        start = reset(f'start:{level}').ee_position
        assert np.linalg.norm(start - hand) == pytest.approx(metres, abs=0.02)
    spread = reset('layout:1') and robot.inner.scene().blocks
    for colour in blocks:
        a = blocks[colour][:2] - middle[:2]
        b = spread[colour][:2] - middle[:2]
        np.testing.assert_allclose(b, 1.3 * a, atol=1e-9)
    reset('distractors:4')
    assert len(robot.mujoco_scene().decorations) == 8
    reset('light:5')
    np.testing.assert_allclose(robot.inner.model.light_diffuse, 0.48 * 0.45)
    noisy = reset('noise:2') and robot.observe().images['agentview'].astype(float)
    clean = reset('') and robot.observe().images['agentview'].astype(float)
    inside = (clean > 100) & (clean < 150)  # hardly clipped
    assert (noisy - clean)[inside].std() == pytest.approx(60.0, rel=0.1)


def test_time_starts_with_the_episode_whatever_was_done_before(robot):
    robot.change('start:5')
    assert robot.reset(PUT_RED, STATE, render=False).time == 0.0
    assert robot.step(HOLD, render=False).time == pytest.approx(0.05)


# -- changes within an episode -------------------------------------------------------------------
@pytest.mark.parametrize('axis', ONCE)
def test_a_change_happens_once_and_the_expert_recovers_from_it(robot, axis):
    for _ in by_expert(robot, f'{axis}:3'):
        pass
    assert robot.success()
    assert [event.kind for event in robot.events] == [axis, 'recovered']
    assert robot.events[0].time < robot.events[1].time
    assert robot.extra_steps == 80


def target(robot):
    scene = robot.mujoco_scene()
    return scene.target, scene.position(scene.target)


@pytest.mark.parametrize(('axis', 'metres'), [('jump', 0.06), ('slide', 0.06), ('push', 0.07)])
def test_the_target_moves_as_far_as_the_level_says(robot, axis, metres):
    for state in range(4):
        before, moved = None, None
        for step in by_expert(robot, f'{axis}:3', state):
            if not robot.events:
                before = target(robot)
            elif before and moved is None and step >= robot.events[0].time * 20 + 13:
                moved = target(robot)
        assert moved[0] == before[0]
        way = np.linalg.norm((moved[1] - before[1])[:2])
        assert way == pytest.approx(metres, abs=1e-3 if axis != 'push' else 0.02)
        assert abs(moved[1][2] - before[1][2]) < 2e-3


def test_blocks_swap_the_plate_moves_and_another_block_is_meant(robot):
    last = None
    for _ in by_expert(robot, 'swap:1'):
        now = robot.inner.scene().blocks
        if robot.events:
            break
        last = now
    moved = [c for c in now if np.linalg.norm(now[c] - last[c]) > 0.05]
    assert len(moved) == 2 and 'red' in moved
    np.testing.assert_allclose(now[moved[0]][:2], last[moved[1]][:2], atol=2e-3)

    plate = None
    for _ in by_expert(robot, 'plate:5'):
        if not robot.events:
            plate = robot.inner.scene().plate
    assert np.linalg.norm(robot.inner.scene().plate - plate) == pytest.approx(0.11)
    assert robot.inner.scene().on_plate('red')

    for _ in by_expert(robot, 'instruction:2'):
        pass
    assert robot.instruction != 'put the red block on the plate'
    assert robot.instruction.startswith('put the ')
    assert robot.success()
    robot.change('')
    robot.reset(PUT_RED, STATE, render=False)
    assert robot.instruction == 'put the red block on the plate'


def test_the_plate_of_a_task_without_one_stays(robot):
    for _ in by_expert(robot, 'plate:5', task=PICK_RED):
        pass
    assert robot.success() and robot.events == ()


def test_late_frozen_and_covered_frames(robot, plain):
    wanted = [plain.reset(PUT_RED, STATE).images['wrist']]
    wanted += [plain.step(MOVE).images['wrist'] for _ in range(60)]

    def shown(shift):
        robot.change(shift)
        return [robot.reset(PUT_RED, STATE).images['wrist']] + [
            robot.step(MOVE).images['wrist'] for _ in range(60)
        ]

    for step, image in enumerate(shown('delay:3')):
        np.testing.assert_array_equal(image, wanted[max(0, step - 4)])
    frozen, last = 0, 0
    for step, image in enumerate(shown('freeze:5')):
        if (image == wanted[step]).all():
            last = step
        else:
            np.testing.assert_array_equal(image, wanted[last])
            frozen += 1
    assert 0.5 < frozen / 60 < 0.9
    for state in range(6):  # until it is this camera
        robot.change('occlude:2')
        images = [robot.reset(PUT_RED, state).images]
        images += [robot.step(MOVE).images for _ in range(60)]
        black = [step for step, i in enumerate(images) if not i['wrist'].any()]
        other = [step for step, i in enumerate(images) if not i['agentview'].any()]
        covered = black or other
        assert len(covered) == 16 and not (black and other)
        start, end = (event.time for event in robot.events)
        assert [round(20 * start) + 1, round(20 * end) + 1] == [covered[0], covered[-1] + 1]


def test_a_frame_does_not_depend_on_those_that_nobody_looked_at(robot):
    for shift in ('noise:3', 'delay:5,noise:1', 'freeze:3'):
        every = [o.images for o in episode(robot, shift)]
        robot.change(shift)
        robot.reset(PUT_RED, STATE, render=False)
        for _ in range(12):
            robot.step(MOVE, render=False)
        last = robot.observe().images
        for name in last:
            np.testing.assert_array_equal(last[name], every[-1][name])


# -- what may be written -------------------------------------------------------------------------
def test_axes_act_in_one_order_however_they_are_named():
    assert parse_shift('jump:2,camera:5,noise:0') == (('camera', 5), ('jump', 2))
    assert shift_text(parse_shift('jump:2, camera:5')) == 'camera:5,jump:2'
    assert parse_shift('') == parse_shift('none') == ()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('sepia:2', "unknown axis 'sepia'; valid: layout, start, camera"),
        ('camera', 'camera needs a level from 0 to 5'),
        ('camera:6', 'camera needs a level from 0 to 5'),
        ('camera:1,camera:2', 'camera is given twice'),
        ('camera:2,', "unknown axis ''"),
    ],
)
def test_what_is_no_shift_is_refused_and_the_old_one_stays(robot, text, message):
    with pytest.raises(ValueError, match=message):
        parse_shift(text)
    robot.change('occlude:1')
    with pytest.raises(ValueError, match=message):
        robot.change(text)
    robot.reset(PUT_RED, STATE, render=False)
    for _ in range(60):
        robot.step(HOLD, render=False)
    assert [event.kind for event in robot.events] == ['occlude', 'uncover']


def test_axes_that_a_backend_cannot_have_are_refused_by_name():
    check_backend(parse_shift('camera:1,noise:2,start:3'), 'libero')
    for axis in ('layout', 'jump', 'slide', 'push', 'plate', 'swap', 'instruction'):
        with pytest.raises(ValueError, match=f"'{axis}' does not apply to libero; valid: start,"):
            check_backend(parse_shift(f'camera:1,{axis}:1'), 'libero')


def test_every_axis_has_five_levels_and_says_what_they_are():
    for axis, shift in AXES.items():
        assert shift.axis == axis and len(set(shift.levels)) == 5
        assert shift.summary and shift.unit
