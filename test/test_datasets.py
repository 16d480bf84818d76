# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets: the format is found by looking, and every reader gives the same conventions."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from conftest import HERE

from vla_prune_ros.datasets import (
    FORMATS,
    DataError,
    Episode,
    ReadOptions,
    Store,
    make_store,
    open_dataset,
)
from vla_prune_ros.datasets.checks import checked
from vla_prune_ros.datasets.gripper import guess, to_policy

GOLDEN = HERE / 'data/training'


def episode(**changes):
    values = {
        'id': 'e',
        'file': GOLDEN,
        'instructions': ('lift it',),
        'actions': np.zeros((9, 7), np.float32),
        'proprio': np.zeros((9, 8), np.float32),
        'pictures': {'agentview': [b''] * 9},
    }
    return Episode(**values | changes)


def test_chunks_start_where_a_whole_one_lies_in_a_segment():
    assert episode().starts(8).tolist() == [0, 1]
    assert episode().starts(10).tolist() == []
    assert episode(segments=((0, 4), (4, 9))).starts(3).tolist() == [0, 1, 4, 5, 6]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'proprio': np.zeros((8, 8), np.float32)}, 'lengths differ: 9 actions, 8 states'),
        ({'pictures': {'wrist': [b''] * 8}}, '8 pictures of wrist'),
        ({'actions': np.zeros((9, 7))}, 'actions are float64'),
        ({'instructions': (' ',)}, 'no instruction; give one with --instruction'),
        ({'actions': np.zeros((0, 7), np.float32)}, 'there is no step'),
    ],
)
def test_what_cannot_be_used_is_refused(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        checked(episode(**changes))
    assert caught.value.episode == 'e' and str(GOLDEN) in str(caught.value)


def test_a_number_that_is_not_finite_is_named_with_its_step():
    actions = np.zeros((9, 7), np.float32)
    actions[[4, 6], 2] = np.nan, np.inf
    with pytest.raises(DataError, match='episode e, step 4: number 2 of the action is nan'):
        checked(episode(actions=actions))


@pytest.mark.parametrize(
    ('convention', 'given', 'wanted'),
    [
        ('env', [-1, 1, 0.25, 0], [1, 0, 0.75, 1]),
        ('policy', [1, 0, 0.25], [1, 0, 0.25]),
        ('inverse', [1, 0, 0.25], [0, 1, 0.75]),
        ('none', [30, -4], [30, -4]),
    ],
)
def test_conventions_of_the_gripper(convention, given, wanted):
    actions = np.zeros((len(given), 7), np.float32)
    actions[:, 6] = given
    np.testing.assert_array_equal(to_policy(actions, convention)[:, 6], np.float32(wanted))
    np.testing.assert_array_equal(actions[:, 6], np.float32(given), 'the argument was changed')


@pytest.mark.parametrize(
    ('convention', 'given'),
    [('env', [0, 1, 1]), ('env', [-3, 3]), ('policy', [-1, 1]), ('inverse', [0, 20])],
)
def test_numbers_of_another_convention_are_refused(convention, given):
    actions = np.zeros((len(given), 7), np.float32)
    actions[:, 6] = given
    with pytest.raises(ValueError, match=f'not the convention {convention}'):
        to_policy(actions, convention)


def test_only_what_leaves_no_doubt_is_guessed():
    assert guess(np.float32([-1, 1, 1])) == 'env'
    assert guess(np.float32([0, 1])) is None
    assert guess(np.float32([1, 1])) is None


# -- opening -----------------------------------------------------------------------------------
def test_nothing_known_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r'no data set was found here; looked for: .*LIBERO HDF5'):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match='there is nothing'):
        open_dataset(tmp_path / 'absent')
    with pytest.raises(ValueError, match=f"unknown format 'csv'; valid: {', '.join(FORMATS)}"):
        open_dataset(tmp_path, ReadOptions(format='csv'))


def test_two_data_sets_are_told_apart_by_the_user(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'x_demo.hdf5').write_bytes(b'')
    with pytest.raises(DataError, match=r'2 data sets; give one of them, or --format: .*/a: .*/b'):
        open_dataset(tmp_path)


@pytest.mark.parametrize('option', [{'rotate': 90}, {'gripper': 'x'}, {'rate': 0}])
def test_options_that_mean_nothing_are_refused(option):
    with pytest.raises(ValueError, match=r'valid: |degrees|above 0'):
        ReadOptions(**option)


# -- tabletop ----------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def tabletop(tmp_path_factory):
    pytest.importorskip('mujoco')
    from vla_prune_ros.training.demonstrations import CollectionConfig, collect

    folder = tmp_path_factory.mktemp('tabletop')
    collect(CollectionConfig(folder / 'a', 1, stride=12, detour=10, alternatives=2), 1, False)
    collect(CollectionConfig(folder / 'b', 1, first=5, stride=12), 1, False)
    return folder


def test_the_episodes_of_the_tabletop(tabletop):
    from vla_prune_ros.sim.tabletop.tasks import TASKS

    data = open_dataset(tabletop)
    assert (data.format, data.name, data.rate) == ('tabletop', 'tabletop', 20.0)
    first, second = data
    assert (first.id, second.id) == ('a/episode_000000', 'b/episode_000005')
    with np.load(tabletop / 'a/episode_000000.npz') as arrays:
        labels = first.labels
        assert len(labels.frame) == arrays['task'].size == 3 * len(first)
        np.testing.assert_array_equal(labels.actions[1], arrays['actions'][0, 1])
        np.testing.assert_array_equal(labels.extras['relative'][4], arrays['relative'][1, 1])
        np.testing.assert_array_equal(first.proprio, arrays['proprio'].astype(np.float32))
        for view, name in enumerate(data.cameras):
            pictures = list(first.pictures[name])
            np.testing.assert_array_equal(pictures[-1], arrays['images'][-1, view])
        texts = [first.instructions[i] for i in labels.instruction]
        assert texts == [TASKS[i].instruction for i in arrays['task'].reshape(-1)]
    assert second.instructions[second.labels.instruction[0]] == TASKS[5].instruction


def test_a_damaged_episode_of_the_tabletop_is_named(tabletop, tmp_path):
    whole = (tabletop / 'a/episode_000000.npz').read_bytes()
    (tmp_path / 'episode_000003.npz').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r'episode_000003.npz.*collect again'):
        open_dataset(tmp_path).read(0)
    with np.load(tabletop / 'a/episode_000000.npz') as arrays:
        del (rest := dict(arrays))['instructions']
    np.savez(tmp_path / 'episode_000003.npz', **rest)
    with pytest.raises(DataError, match=r'has no instructions; delete it and collect again'):
        open_dataset(tmp_path).read(0)


def test_damaged_pictures_of_the_tabletop_are_named_and_can_be_left_out(tabletop, tmp_path):
    shutil.copytree(tabletop, tmp_path / 'set')
    file = tmp_path / 'set/a/episode_000000.npz'
    with zipfile.ZipFile(file) as members:
        place = members.getinfo('images.npy').header_offset + 200
    content = bytearray(file.read_bytes())
    content[place] ^= 0xFF
    file.write_bytes(content)
    data = open_dataset(tmp_path / 'set')
    with pytest.raises(DataError, match=r'episode_000000.npz: cannot be read: .*collect again'):
        make_store(data, tmp_path / 'store', progress=False)
    shutil.rmtree(tmp_path / 'store.partial')
    make_store(data, tmp_path / 'store', skip_damaged=True, progress=False, warn=lambda text: None)
    with Store(tmp_path / 'store') as store:
        assert [entry['id'] for entry in store.episodes] == ['b/episode_000005']


# -- LIBERO ------------------------------------------------------------------------------------
@pytest.fixture
def h5py():
    return pytest.importorskip('h5py', reason='h5py is not installed')


def rows(steps, seed=0):
    """The numbers of one demonstration, with the observation before each action."""
    rng = np.random.default_rng(seed)
    states = rng.normal(0, 0.1, (steps + 1, 20))
    actions = rng.uniform(-1, 1, (steps, 7))
    actions[:, 6] = np.where(np.arange(steps) < steps // 2, -1, 1)
    frames = rng.integers(0, 255, (2, steps + 1, 16, 16, 3), dtype=np.uint8)
    return states, actions, frames


def write_demo(group, states, actions, frames, offset):
    """As the original script writes it (offset 1), or the regenerating one (0)."""
    seen = slice(offset, offset + len(actions))
    group['actions'], group['states'] = actions, states[:-1]
    obs = group.create_group('obs')
    obs['joint_states'] = states[seen, 1:8]
    obs['ee_states'], obs['gripper_states'] = states[seen, 8:14], states[seen, 14:16]
    obs['agentview_rgb'], obs['eye_in_hand_rgb'] = frames[:, seen]


@pytest.fixture
def libero(h5py, tmp_path):
    def make(offset, steps=12, still=(), name='pick_up_the_bowl_demo.hdf5'):
        states, actions, frames = rows(steps)
        actions[list(still), :6] = 0
        with h5py.File(tmp_path / name, 'w') as file:
            write_demo(file.create_group('data/demo_3'), states, actions, frames, offset)
        return tmp_path / name, states, actions, frames

    return make


@pytest.mark.parametrize('offset', [0, 1])
def test_frames_meet_the_actions_that_follow_them(libero, offset):
    file, states, actions, frames = libero(offset)
    data = open_dataset(file)
    (found,) = data
    assert found.id == 'pick_up_the_bowl_demo/demo_3'
    assert found.instructions == ('pick up the bowl',)
    # Both files hold the same pairs, but the original has no frame before its first action.
    np.testing.assert_array_equal(found.actions[:, :6], np.float32(actions[offset:, :6]))
    np.testing.assert_array_equal(found.proprio, np.float32(states[offset:12, 8:16]))
    assert ('original LIBERO file' in ''.join(data.notes)) == bool(offset)
    assert ('16 px' in ''.join(data.notes)) == bool(offset)
    seen = decoded(next(iter(found.pictures['agentview'])))
    assert seen.shape == (16, 16, 3)
    upright = frames[0, offset, ::-1, ::-1].astype(int)
    assert np.abs(seen - upright).mean() < np.abs(seen - upright[::-1, ::-1]).mean()


def decoded(jpeg):
    import cv2

    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(int)


def test_no_ops_of_original_files_are_left_out(libero):
    # the gripper changes at step 6: a step that moves nothing else is no no-op
    file, _, actions, _ = libero(1, still=(1, 3, 4, 6, 7))
    (found,) = open_dataset(file)
    kept = [2, 5, 6, 8, 9, 10, 11]
    np.testing.assert_array_equal(found.actions[:, :6], np.float32(actions[kept, :6]))
    assert found.actions[:, 6].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert len(found.pictures['wrist']) == len(list(found.pictures['wrist'])) == 7


def test_regenerated_files_are_taken_as_they_are(libero):
    file, _, actions, _ = libero(0, still=(1, 3))
    (found,) = open_dataset(file)
    assert len(found) == len(actions)


def test_a_file_that_fits_neither_is_refused(libero, h5py):
    file, *_ = libero(0)
    with h5py.File(file, 'r+') as data:
        data['data/demo_3/obs/joint_states'][:] = 1.0
    with pytest.raises(DataError, match='neither at the same step nor at the next'):
        open_dataset(file).read(0)


def test_instructions_come_from_the_name_or_the_attributes(libero, h5py):
    file, *_ = libero(0, name='LIVING_ROOM_SCENE12_put_it_there_demo.hdf5')
    assert open_dataset(file).read(0).instructions == ('put it there',)
    other = file.rename(file.with_name('recording.hdf5'))
    with pytest.raises(DataError, match='there is no instruction; give one with --instruction'):
        open_dataset(other).read(0)
    given = open_dataset(other, ReadOptions(instruction='lift')).read(0)
    assert given.instructions == ('lift',)
    with h5py.File(other, 'r+') as data:
        data['data'].attrs['problem_info'] = json.dumps({'language_instruction': 'open it'})
    assert open_dataset(other).read(0).instructions == ('open it',)


def test_damaged_hdf5_is_named_and_the_rest_is_read(libero, tmp_path):
    file, *_ = libero(0)
    whole = file.read_bytes()
    file.with_name('a_demo.hdf5').write_bytes(whole[: len(whole) // 2])
    file.with_name('b_demo.hdf5').write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
    file.with_name('c_demo.hdf5').write_bytes(b'')
    data = open_dataset(tmp_path)
    assert len(data) == 4
    for index, message in enumerate(
        (r'a_demo.hdf5: no HDF5.*ends too early', r'b_demo.hdf5: .*git lfs pull', r'c_.* empty')
    ):
        with pytest.raises(DataError, match=message):
            data.read(index)
    assert len(data.read(3)) == 12


def test_what_an_hdf5_lacks_is_named_with_what_it_has(libero, h5py):
    file, *_ = libero(0)
    with pytest.raises(DataError, match=r'demo_3: no obs/front; name it; there are: .*agentview'):
        open_dataset(file, ReadOptions(cameras={'agentview': 'front'})).read(0)
    with h5py.File(file, 'r+') as data:
        del data['data/demo_3/obs/agentview_rgb']
        data['data/demo_3/obs/agentview_rgb'] = np.zeros((12, 16, 16), np.float32)
    with pytest.raises(DataError, match=r'float32 \(16, 16\), not uint8 RGB'):
        open_dataset(file).read(0)


def test_the_regenerated_layout_of_the_authors(h5py, tmp_path):
    source = next(GOLDEN.glob('*_demo.hdf5'))
    shutil.copy(source, tmp_path)
    data = open_dataset(tmp_path)
    first, second = data
    assert [len(first), len(second)] == [14, 11]
    assert first.id.endswith('/demo_0') and second.id.endswith('/demo_2')
    assert first.instructions == ('turn on the stove and put the moka pot on it',)
    assert first.actions[1, 6] == 0.75 and not data.notes
