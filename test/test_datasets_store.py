# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The store: what was read comes out again; killed and resumed it is the same, byte by byte."""

import json
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import HERE

from vla_prune_ros.datasets import (
    DataError,
    DataSet,
    Episode,
    Labels,
    ReadOptions,
    Store,
    make_store,
    open_dataset,
)
from vla_prune_ros.datasets.statistics import statistics

GOLDEN = HERE / 'data/training'


class Made(DataSet):
    """Episodes of given lengths; what `damaged` names cannot be read."""

    format, name, cameras, rate = 'made', 'made', ('agentview', 'wrist'), 10.0

    def __init__(self, path, lengths, damaged=(), labels=0, **changes):
        self.path, self.notes, self.lengths, self.damaged = path, [], lengths, damaged
        self.labels, self.changes = labels, changes
        (path / 'data').write_text(str(lengths))

    def __len__(self):
        return len(self.lengths)

    def files(self):
        return [self.path / 'data']

    def read(self, index):
        if index in self.damaged:
            raise DataError(self.path, 'is damaged', episode=str(index))
        n, rng = self.lengths[index], np.random.default_rng(index)
        labels = None
        if self.labels:
            labels = Labels(
                np.arange(n).repeat(self.labels),
                np.tile(np.arange(self.labels), n),
                rng.random((n * self.labels, 4, 7), np.float32),
                {'task': rng.integers(0, 9, n * self.labels)},
            )
        values = {
            'id': str(index),
            'file': self.path,
            'instructions': ('lift it', 'drop it')[index % 2 :] if labels is None else ('a', 'b'),
            'actions': rng.random((n, 7), np.float32),
            'proprio': rng.random((n, 8), np.float32),
            'pictures': {
                'agentview': [b'\xff\xd8' + bytes([index, t]) * t for t in range(n)],
                'wrist': list(rng.integers(0, 255, (n, 5, 6, 3), np.uint8)),
            },
            'labels': labels,
            'extras': {'place': rng.random((n, 2))},
        }
        return Episode(**values | (self.changes if index else {}))


def quiet(data, path, **options):
    return make_store(data, path, progress=False, warn=lambda text: None, **options)


def test_what_went_in_comes_out(tmp_path):
    data = Made(tmp_path, [9, 3, 6])
    with Store(quiet(data, tmp_path / 'store')) as store:
        assert (store.name, store.cameras, store.rate) == ('made', ('agentview', 'wrist'), 10.0)
        assert store.instructions == ('lift it', 'drop it') and len(store) == 18
        first = 0
        for episode in data:
            for t in range(len(episode)):
                assert store.picture(first + t, 0) == episode.pictures['agentview'][t]
                np.testing.assert_array_equal(
                    store.picture(first + t, 1), episode.pictures['wrist'][t]
                )
                np.testing.assert_array_equal(store.actions[first + t], episode.actions[t])
                np.testing.assert_array_equal(store.proprio[first + t], episode.proprio[t])
                np.testing.assert_array_equal(
                    store.extras['place'][first + t], episode.extras['place'][t]
                )
            first += len(episode)
        samples = store.samples(4)
        assert samples.frame.tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14]  # 3 steps are too short
        assert samples.episode.tolist() == [0] * 6 + [2] * 3
        chunks = samples.actions(np.array([6, 2]))
        np.testing.assert_array_equal(chunks[0], store.actions[12:16])
        np.testing.assert_array_equal(chunks[1], store.actions[2:6])
        assert store.samples(4, [2]).frame.tolist() == [12, 13, 14]
        assert pickle.loads(pickle.dumps(store)).picture(0, 0) == store.picture(0, 0)
        with pytest.raises(ValueError, match='no episode is as long as a chunk of 10 actions'):
            store.samples(10)


def test_no_chunk_crosses_the_end_of_a_segment(tmp_path):
    data = Made(tmp_path, [4, 9], segments=((0, 4), (4, 9)))
    with Store(quiet(data, tmp_path / 'store')) as store:
        assert store.samples(4).frame.tolist() == [0, 4, 8, 9]


def test_labels_are_samples_of_their_own(tmp_path):
    data = Made(tmp_path, [3, 2], labels=2)
    with Store(quiet(data, tmp_path / 'store')) as store:
        samples = store.samples(4)
        assert samples.frame.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert [store.instructions[i] for i in samples.instruction] == ['a', 'b'] * 5
        second = data.read(1)
        np.testing.assert_array_equal(samples.actions(np.array([7])), second.labels.actions[[1]])
        np.testing.assert_array_equal(store.label_extras['task'][6:], second.labels.extras['task'])
        assert store.samples(4, [1]).frame.tolist() == [3, 3, 4, 4]
        every = np.concatenate([e.labels.actions for e in data]).reshape(-1, 7)
        np.testing.assert_allclose(store.statistics['action']['max'], every.max(0))
        with pytest.raises(ValueError, match='has chunks of 4 actions, not 8'):
            store.samples(8)


def test_a_damaged_episode_stops_it_or_is_left_out(tmp_path):
    data = Made(tmp_path, [4, 4, 5], damaged=(1,))
    with pytest.raises(DataError, match='episode 1: is damaged'):
        quiet(data, tmp_path / 'store')
    assert not (tmp_path / 'store').exists()
    with pytest.raises(ValueError, match='skip_damaged'):  # another store
        quiet(data, tmp_path / 'store', skip_damaged=True)
    said = []
    make_store(data, tmp_path / 'other', None, True, False, said.append)
    with Store(tmp_path / 'other') as store:
        assert [e['id'] for e in store.episodes] == ['0', '2'] and len(store) == 9
    assert said == [f'left out: {tmp_path}, episode 1: is damaged']
    with pytest.raises(DataError, match='no episode that can be read'):
        quiet(Made(tmp_path, [4], damaged=(0,)), tmp_path / 'none', skip_damaged=True)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'actions': np.zeros((4, 6), np.float32)}, r'numbers are actions \[6\].*before it act'),
        ({'pictures': {'agentview': [b''] * 4, 'wrist': [b''] * 3}}, '4 steps, but 3 pictures'),
        ({'pictures': {'agentview': [b''] * 4, 'wrist': [b''] * 5}}, '4 steps, but 5 pictures'),
    ],
)
def test_an_episode_that_does_not_fit_leaves_nothing_behind(tmp_path, changes, message):
    data = Made(tmp_path, [4, 4, 4], **changes)
    with pytest.raises(DataError, match=message):
        quiet(data, tmp_path / 'store')
    quiet(Made(tmp_path, [4, 4, 4], damaged=(1, 2)), tmp_path / 'wanted', skip_damaged=True)
    data = Made(tmp_path, [4, 4, 4], **changes)
    data_again = quiet(data, tmp_path / 'skipped', skip_damaged=True)
    for name in ('pictures', 'actions.float32', 'index.int64'):
        assert (data_again / name).read_bytes() == (tmp_path / 'wanted' / name).read_bytes()


def test_another_data_set_in_the_same_folder_is_refused(tmp_path):
    quiet(Made(tmp_path, [4]), tmp_path / 'store')
    quiet(Made(tmp_path, [4]), tmp_path / 'other', options=ReadOptions(rotate=0))
    with pytest.raises(ValueError, match="holds the data set 'made', read with other files"):
        quiet(Made(tmp_path, [4, 4]), tmp_path / 'store')
    with pytest.raises(ValueError, match='other files or options'):
        quiet(Made(tmp_path, [4]), tmp_path / 'store', options=ReadOptions(rotate=0))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/precious').write_text('x')
    with pytest.raises(ValueError, match='exists and is no store'):
        quiet(Made(tmp_path, [4]), tmp_path / 'mine')
    with pytest.raises(FileNotFoundError, match='no store of a data set'):
        Store(tmp_path / 'mine')


def test_a_full_disk_is_seen_early(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: type('', (), {'free': 1 << 20}))
    with pytest.raises(OSError, match=r'needs about 0\.1 GB more, the disk has 0\.0 GB'):
        quiet(Made(tmp_path, [4, 4]), tmp_path / 'store')


KILLED = """
import os, signal, sys
from pathlib import Path
from vla_prune_ros.datasets import make_store, open_dataset

calls, deadly = 0, int(sys.argv[3])

def count(real):
    def call(*arguments):
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call

os.fsync, Path.rename = count(os.fsync), count(Path.rename)
make_store(open_dataset(sys.argv[1]), Path(sys.argv[2]), progress=False)
print(calls)
"""


def build(source, path, deadly):
    command = [sys.executable, '-c', KILLED, str(source), str(path), str(deadly)]
    return subprocess.run(command, capture_output=True, text=True)


def test_killed_and_resumed_gives_the_same_store(tmp_path):
    pytest.importorskip('h5py', reason='h5py is not installed')
    source = tmp_path / 'set'
    source.mkdir()
    shutil.copy(next(GOLDEN.glob('*_demo.hdf5')), source)
    done = build(source, tmp_path / 'whole', 0)
    total = int(done.stdout)
    assert total > 8
    for deadly in (2, total // 2, total // 2 + 1, total - 2, total):
        killed = build(source, tmp_path / 'killed', deadly)
        assert killed.returncode == -signal.SIGKILL and not (tmp_path / 'killed').exists()
        quiet(open_dataset(source), tmp_path / 'killed')
        assert contents(tmp_path / 'killed') == contents(tmp_path / 'whole')
        shutil.rmtree(tmp_path / 'killed')


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# -- statistics --------------------------------------------------------------------------------
def test_statistics_are_those_of_the_authors(tmp_path):
    pytest.importorskip('h5py', reason='h5py is not installed')
    source = next(GOLDEN.glob('*_demo.hdf5'))
    options = ReadOptions(name='libero_10_no_noops')
    path = quiet(open_dataset(source, options), tmp_path / 'store', options=options)
    ((name, made),) = json.loads((path / 'dataset_statistics.json').read_text()).items()
    ((wanted_name, wanted),) = json.loads((GOLDEN / 'dataset_statistics.json').read_text()).items()
    assert name == wanted_name and made.keys() == wanted.keys()
    for kind in ('action', 'proprio'):
        assert made[kind].keys() == wanted[kind].keys()
        for key, values in wanted[kind].items():
            np.testing.assert_allclose(made[kind][key], values, atol=6e-8, err_msg=f'{kind} {key}')
    assert [made[k] for k in ('num_transitions', 'num_trajectories')] == [25, 2]


def test_quantiles_are_taken_in_double_precision():
    rng = np.random.default_rng(0)
    values = (rng.random((1000, 2)) * 1e-3 + 7).astype(np.float32)
    found = statistics(values, None, [True, False], 3)
    wanted = np.quantile(values.astype(np.float64), 0.99, axis=0)
    assert found['action']['q99'] == wanted.tolist()
    assert 'proprio' not in found and found['action']['mask'] == [True, False]
