# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Is my data right? What is counted, what is warned of, and that nothing bad goes unnamed."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from datasets_tools import Small, small, steps_of, write_libero, write_rlds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vla_prune_ros.datasets import open_dataset
from vla_prune_ros.datasets.looking import look_at
from vla_prune_ros.datasets.sheet import save_sheet

pytest.importorskip('h5py', reason='h5py is not installed')


def libero(folder, episodes):
    write_libero(folder / 'lift_the_cup_demo.hdf5', episodes)
    return open_dataset(folder)


def test_what_is_counted(tmp_path):
    found = look_at(libero(tmp_path, [small(k) for k in range(3)]), chunk=8)
    assert (found.episodes, found.frames, found.samples, found.short) == (3, 26, 8, 1)
    assert found.instructions == {'lift the cup': 3}
    assert found.sizes == {c: {(24, 24): 3} for c in ('agentview', 'wrist')}
    assert found.gripper_changes == [1, 1, 1] and found.open_share == pytest.approx(12 / 26)
    assert found.statistics['num_transitions'] == 26
    assert not found.errors and found.warnings == [
        '1 episodes are shorter than a chunk of 8 actions'
    ]


def changed(episode, **values):
    actions = episode.actions.copy()
    for name, value in values.items():
        step, number = map(int, name[1:].split('_'))
        actions[step, number] = value
    return episode._replace(actions=actions)


def test_what_is_warned_of(tmp_path):
    first, second = changed(small(0), a3_1=-2.5), small(2)
    first.actions[:, 6], second.actions[:, 6] = 1, 1
    first.actions[:, 2] = second.actions[:, 2] = 0.25
    second.frames[1, 0] = 7
    found = look_at(libero(tmp_path, [first, second]))
    text = '\n'.join(found.warnings)
    assert 'demo_0, step 3: number 1 is -2.5, beyond -1..1' in text
    assert 'action: number 2, 6 never changes' in text
    assert 'the gripper never opens or closes: is the convention right?' in text
    assert 'demo_1: the first picture of wrist is of one colour' in text
    assert len(found.warnings) == 4 and not found.errors


def test_only_short_episodes_are_an_error(tmp_path):
    (error,) = look_at(libero(tmp_path, [small(1)])).errors
    assert 'no episode is as long as a chunk of 8 actions; record longer' in str(error)


def test_every_bad_episode_is_named_and_the_others_are_counted(tmp_path):
    episodes = [small(0), changed(small(1), a2_3=np.nan), small(2), small(0)]
    episodes[3] = episodes[3]._replace(proprio=np.zeros((9, 9), np.float32))
    found = look_at(libero(tmp_path, episodes))
    assert [e.episode for e in found.errors[:1]] == ['lift_the_cup_demo/demo_1']
    assert 'states have 9 numbers, in the episodes before it 8' in str(found.errors[1])
    assert found.episodes == 2 and len(found.errors) == 2


def test_every_picture_is_decoded_if_it_is_wanted(tmp_path):
    pytest.importorskip('google_crc32c', reason='google-crc32c is not installed')
    steps = steps_of(small(0))
    steps['steps/observation/wrist_image'][5] = b'\xff\xd8cut off'
    data = open_dataset(write_rlds(tmp_path / 'set', [steps, steps_of(small(2))]))
    assert not look_at(data).errors
    (error,) = look_at(data, every_picture=True).errors
    assert 'step 5: a picture of wrist cannot be decoded' in str(error)


def test_first_frames_are_a_picture(tmp_path):
    data = libero(tmp_path, [small(k) for k in range(3)])
    path = save_sheet(look_at(data).first, data.cameras, tmp_path / 'out/first.png')
    with Image.open(path) as sheet:
        picture = np.asarray(sheet.convert('RGB')).astype(int)
    column, row = 4 + 12, 2 * 26 + 12  # middle of the first frame
    assert np.abs(picture[row, column] - small(0).frames[0, 0, 12, 12]).max() < 14


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_small_sets_of_any_kind(data):
    """Lengths, grippers and damage as they come: everything is counted or named."""
    count = data.draw(st.integers(1, 4))
    chunk = data.draw(st.integers(1, 9))
    episodes, bad = [], set()
    for number in range(count):
        episode = small(number, data.draw(st.integers(2, 14)))
        if data.draw(st.booleans()):
            values = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
            step = data.draw(st.integers(0, len(episode.actions) - 1))
            array = data.draw(st.sampled_from(['actions', 'proprio']))
            getattr(episode, array)[step, data.draw(st.integers(0, 5))] = values
            bad.add((f'lift_it_demo/demo_{number}', step))
        episodes.append(episode)
    with tempfile.TemporaryDirectory() as folder:
        write_libero(Path(folder) / 'lift_it_demo.hdf5', episodes)
        found = look_at(open_dataset(folder), chunk)
    whole = [e for e in episodes if np.isfinite(e.actions).all() and np.isfinite(e.proprio).all()]
    assert {(e.episode, e.step) for e in found.errors if e.episode} == bad
    assert found.episodes == len(whole) and found.frames == sum(len(e.actions) for e in whole)
    samples = sum(max(0, len(e.actions) - chunk + 1) for e in whole)
    assert found.samples == samples
    assert bool(found.errors) == (bool(bad) or not samples)
    check_statistics(found, whole)


def check_statistics(found, whole: list[Small]) -> None:
    if whole:
        actions = np.concatenate([e.policy_actions for e in whole]).astype(float)
        block = found.statistics['action']
        np.testing.assert_allclose(block['mean'], actions.mean(0), atol=1e-6)
        np.testing.assert_allclose(block['q01'], np.quantile(actions, 0.01, axis=0), atol=1e-6)
