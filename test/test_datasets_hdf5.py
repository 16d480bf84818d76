# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ALOHA's HDF5, and the same episodes in every format of one arm."""

import numpy as np
import pytest
from datasets_tools import (
    pixels,
    small,
    steps_of,
    write_aloha,
    write_lerobot,
    write_libero,
    write_rlds,
)

from vla_prune_ros.datasets import DataError, ReadOptions, open_dataset

h5py = pytest.importorskip('h5py', reason='h5py is not installed')


def test_every_format_gives_the_same(tmp_path):
    pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    pytest.importorskip('google_crc32c', reason='google-crc32c is not installed')
    episodes = [small(k) for k in range(3)]
    hdf5 = tmp_path / 'hdf5'
    hdf5.mkdir()
    for number, episode in enumerate(episodes):
        name = episode.instruction.replace(' ', '_')
        write_libero(hdf5 / f'SCENE{number}_{name}_demo.hdf5', [episode])
    written = [
        hdf5,
        write_rlds(tmp_path / 'rlds', [steps_of(e) for e in episodes]),
        write_lerobot(tmp_path / 'v2', 'v2.1', True),
        write_lerobot(tmp_path / 'v3', 'v3.0', True),
    ]
    read = [list(open_dataset(path)) for path in written]
    for same in zip(*read, strict=True):
        pictures = [[list(e.pictures[c]) for c in ('agentview', 'wrist')] for e in same]
        for episode, own in zip(same[1:], pictures[1:], strict=True):
            assert episode.instructions == same[0].instructions
            np.testing.assert_array_equal(episode.actions, same[0].actions)
            np.testing.assert_array_equal(episode.proprio, same[0].proprio)
            assert own == pictures[0], 'the same JPEG bytes, byte by byte'


def test_aloha(tmp_path):
    folder = tmp_path / 'put_red_pepper_into_pot'
    for split, number in (('train', 10), ('train', 9), ('val', 0)):
        write_aloha(folder / split / f'episode_{number}.hdf5', number)
    data = open_dataset(folder)
    assert data.format == 'aloha_hdf5' and data.name == 'put_red_pepper_into_pot'
    assert data.cameras == ('cam_high', 'cam_left_wrist', 'cam_right_wrist')
    assert data.rate is None and any('control rate (--rate)' in n for n in data.notes)
    assert data.mask(14) == [True] * 14
    assert [e.id for e in data] == ['train/episode_9', 'train/episode_10', 'val/episode_0']
    first = data.read(0)
    assert first.instructions == ('put red pepper into pot',)
    with h5py.File(folder / 'train/episode_9.hdf5') as file:
        np.testing.assert_array_equal(first.actions, file['action'])
        np.testing.assert_array_equal(first.proprio, np.float32(file['observations/qpos']))
    pictures = list(first.pictures['cam_high'])
    assert len(pictures) == 9 and pixels(pictures[0]).shape == (256, 256, 3)
    assert open_dataset(folder / 'train').name == 'put_red_pepper_into_pot'
    single = folder / 'val/episode_0.hdf5'
    assert open_dataset(single, ReadOptions(instruction='stir')).read(0).instructions == ('stir',)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'observations/images/cam_high': None}, 'no observations/images/cam_high; name it; ther'),
        ({'action': np.zeros((8, 14))}, 'lengths differ: 8 actions, 9 states'),
        ({'action': np.full((9, 14), np.inf)}, 'step 0: number 0 of the action is inf'),
        ({'observations/images/cam_high': np.zeros((9, 40), np.uint8)}, r'not uint8 RGB'),
    ],
)
def test_bad_aloha_episodes_are_named(tmp_path, changes, message):
    write_aloha(tmp_path / 'episode_0.hdf5', **changes)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path).read(0)
    assert caught.value.episode == 'episode_0'


def test_compressed_aloha_is_refused_with_that_word(tmp_path):
    with h5py.File(write_aloha(tmp_path / 'episode_0.hdf5'), 'r+') as data:
        data.attrs['compress'] = True
    with pytest.raises(DataError, match='compressed'):
        open_dataset(tmp_path).read(0)


def test_without_the_library_its_name_is_said(tmp_path, monkeypatch):
    write_aloha(tmp_path / 'episode_0.hdf5')
    monkeypatch.setitem(__import__('sys').modules, 'h5py', None)
    with pytest.raises(ModuleNotFoundError, match=r'reading HDF5 needs the package h5py \(pip in'):
        open_dataset(tmp_path)
