# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""RLDS without TensorFlow: the authors' loader's labels, and every kind of damage."""

import contextlib
import json

import numpy as np
import pytest
from datasets_tools import GOLDEN, LENGTHS, pixels, png, small, steps_of, write_rlds
from hypothesis import given
from hypothesis import strategies as st

from vla_prune_ros.datasets import DataError, ReadOptions, open_dataset
from vla_prune_ros.datasets.statistics import statistics
from vla_prune_ros.datasets.tfrecord import parse_example

RLDS = GOLDEN / 'libero10_no_noops'


def test_labels_are_those_of_the_authors_loader():
    data = open_dataset(RLDS)
    assert (data.format, data.name, data.rate) == ('rlds', 'libero10_no_noops', 20.0)
    episodes = list(data)
    assert [len(e) for e in episodes] == [11, 14], 'in the order of the records'
    found = statistics(
        np.concatenate([e.actions for e in episodes]),
        np.concatenate([e.proprio for e in episodes]),
        data.mask(7),
        len(episodes),
    )
    wanted = json.loads((GOLDEN / 'dataset_statistics.json').read_text())['libero_10_no_noops']
    for kind in ('action', 'proprio'):
        for key, values in wanted[kind].items():
            np.testing.assert_allclose(found[kind][key], values, atol=6e-8)

    def scaled(values, kind):  # training_data section 3.2 of OpenVLA-OFT's loader
        low, high = (np.array(found[kind][key]) for key in ('q01', 'q99'))
        x = np.clip(2 * (values - low) / (high - low + 1e-8) - 1, -1, 1)
        x = np.where(np.array(found[kind]['min']) == found[kind]['max'], 0, x)
        return np.where(found[kind].get('mask', True), x, values)

    with np.load(GOLDEN / 'expected.npz') as expected:
        actions, proprio, steps = (expected[k] for k in ('actions', 'proprio', 'timestep'))
    chunks = [scaled(e.actions[t : t + 8], 'action') for e in episodes for t in e.starts(8)]
    states = [scaled(e.proprio[t], 'proprio') for e in episodes for t in e.starts(8)]
    assert np.concatenate([e.starts(8) for e in episodes]).tolist() == steps.tolist()
    np.testing.assert_allclose(chunks, actions, atol=2e-7)
    np.testing.assert_allclose(states, proprio, atol=2e-7)


def test_tfrecord_and_hdf5_of_the_same_episodes_are_the_same():
    pytest.importorskip('h5py', reason='h5py is not installed')
    rlds = list(open_dataset(RLDS))
    hdf5 = list(open_dataset(next(GOLDEN.glob('*_demo.hdf5'))))
    for a, b in zip(rlds, reversed(hdf5), strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.proprio, b.proprio)
        assert a.instructions == b.instructions
        for camera in ('agentview', 'wrist'):
            for ours, theirs in zip(b.pictures[camera], a.pictures[camera], strict=True):
                np.testing.assert_array_equal(pixels(ours), pixels(theirs))


def test_pictures_become_what_the_authors_loader_made_of_them():
    pictures = pytest.importorskip('vla_prune_ros.vla.pictures', reason='needs the exact pipeline')
    pytest.importorskip('simplejpeg', reason='simplejpeg is not installed')
    samples = [(e, t) for e in open_dataset(RLDS) for t in e.starts(8)]
    with np.load(GOLDEN / 'expected.npz') as expected:
        for number, wanted in zip(expected['frames'], expected['images'], strict=True):
            episode, t = samples[number]
            for view, camera in enumerate(('agentview', 'wrist')):
                jpeg = list(episode.pictures[camera])[t]
                made = pictures.resize(pictures.decode_jpeg(jpeg), 224).astype(int)
                off = np.abs(made - wanted[view])
                assert off.max() <= 1 and (off > 0).sum() <= 1


@pytest.fixture
def made(tmp_path):
    pytest.importorskip('google_crc32c', reason='google-crc32c is not installed')

    def make(*changes, shards=1):
        episodes = [steps_of(small(k)) for k in range(3)]
        for change in changes:
            episodes[1].update(change)
        return write_rlds(tmp_path / 'libero_small', episodes, shards)

    return make


def test_what_was_written_is_read(made):
    data = open_dataset(made(shards=2))
    assert data.cameras == ('agentview', 'wrist') and 'image' in data.notes[0]
    assert 'gripper: env, -1 open, 1 closed' in data.notes[1]
    assert [e.id for e in data] == ['train-00000/0', 'train-00000/1', 'train-00001/0']
    for number, episode in zip((0, 2, 1), data, strict=True):
        wanted = small(number)
        assert len(episode) == LENGTHS[number]
        np.testing.assert_array_equal(episode.actions, wanted.policy_actions)
        np.testing.assert_array_equal(episode.proprio, wanted.proprio)
        assert episode.instructions == (wanted.instruction,)
        for picture, frame in zip(episode.pictures['wrist'], wanted.frames[1], strict=True):
            assert np.abs(pixels(picture) - frame).max() < 12


def test_the_version_folder_and_the_folder_above_are_found(made):
    folder = made()
    assert open_dataset(folder / '1.0.0').name == 'libero_small'
    assert open_dataset(folder.parent).name == 'libero_small'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'steps/action': np.zeros(27, np.float32)},
            r'/1: .* has 27 numbers for 4 steps',
        ),
        ({'steps/action': np.full(28, np.nan, np.float32)}, '00000/1, step 0: number 0 of the a'),
        ({'steps/language_instruction': [b''] * 4}, 'there is no instruction'),
        ({'steps/observation/image': [b'x'] * 4}, '1 bytes are no whole picture'),
        ({'steps/observation/image': [b'\xff\xd8'] * 3}, '3 pictures of agentview'),
    ],
)
def test_bad_episodes_are_named(made, change, message):
    data = open_dataset(made(change))
    with pytest.raises(DataError, match=message):
        list(data.read(1).pictures['agentview'])
    assert len(data.read(2)) == LENGTHS[2]


def test_png_becomes_jpeg_once(made):
    frames = small(1).frames[0]
    data = open_dataset(made({'steps/observation/image': [png(f) for f in frames]}))
    for picture, frame in zip(data.read(1).pictures['agentview'], frames, strict=True):
        assert picture[:2] == b'\xff\xd8' and np.abs(pixels(picture) - frame).max() < 12


def test_damage_names_the_place_and_the_episodes_before_it(made):
    folder = made()
    file = next(folder.glob('1.0.0/*.tfrecord*'))
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    data = open_dataset(folder)
    assert len(data) == 3
    with pytest.raises(DataError, match=r'ends within the record at byte \d+; 2 episodes before'):
        data.read(2)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    file.write_bytes(broken)
    data = open_dataset(folder)
    with pytest.raises(DataError, match='the checksum is wrong'):
        [data.read(k) for k in range(3)]
    broken = bytearray(whole)
    broken[3] ^= 1
    file.write_bytes(broken)
    with pytest.raises(DataError, match='the length at byte 0 is damaged; 0 episodes before it'):
        open_dataset(folder).read(0)
    file.write_bytes(b'version https://git-lfs.github.com/spec/v1')
    with pytest.raises(DataError, match='git lfs pull'):
        open_dataset(folder).read(0)


def test_keys_that_are_not_there_are_named(made):
    data = open_dataset(made(), ReadOptions(state='pose'))
    with pytest.raises(DataError, match=r'no steps/observation/pose; name it; there are: .*state'):
        data.read(0)


@given(st.binary(max_size=60))
def test_no_bytes_get_past_the_parser_unseen(data):
    with contextlib.suppress(KeyError, ValueError):
        parse_example(data)


def test_what_is_done_is_what_every_step_says(tmp_path):
    values = steps_of(small(0))
    values['steps/language_instruction'] = [b'lift it'] * 4 + [b'drop it'] * 5
    episode = open_dataset(write_rlds(tmp_path / 'two', [values])).read(0)
    assert episode.instructions == ('lift it', 'drop it')
    assert episode.segments == ((0, 4), (4, 9))
    assert episode.starts(5).tolist() == [4]


@pytest.mark.parametrize('texts', [None, [b' '] * 9, []], ids=str)
def test_a_missing_instruction_can_be_given(tmp_path, texts):
    values = steps_of(small(0)) | {'steps/language_instruction': texts}
    path = write_rlds(tmp_path / 'set', [{k: v for k, v in values.items() if v is not None}])
    with pytest.raises(DataError, match='no instruction; give one with --instruction'):
        open_dataset(path).read(0)
    episode = open_dataset(path, ReadOptions(instruction='lift it')).read(0)
    assert (episode.instructions, episode.segments) == (('lift it',), ())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda v: {k: x[:0] for k, x in v.items()}, 'train-00000/0: there is no step'),
        (lambda v: v | {'steps/language_instruction': [b'\xff'] * 9}, 'instruction is no UTF-8'),
    ],
)
def test_odd_records_are_named(tmp_path, change, message):
    path = write_rlds(tmp_path / 'set', [change(steps_of(small(0)))])
    with pytest.raises(DataError, match=message):
        open_dataset(path).read(0)
