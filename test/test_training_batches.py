# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training batches: the authors' labels, and the same samples whoever they are shared out to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import HERE
from demonstrations import made_store, tiny_recipe
from tiny import tiny_checkpoint, tiny_config

from vla_prune_ros.datasets import Store, make_store, open_dataset
from vla_prune_ros.training.batches import Batches
from vla_prune_ros.vla.tokenizer import PromptTokenizer


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('batches')
    tiny_checkpoint(folder / 'start')
    made_store(folder)
    made_store(folder, 'other', lengths=(20,), seed=1)
    return folder


def batches(folder, stores=('made',), config=None, held_out=0.0, **recipe):
    opened = [Store(folder / f'{name}.store') for name in stores]
    tokenizer = PromptTokenizer.from_directory(folder / 'start', 1, 256)
    return Batches(
        opened,
        config or tiny_config(),
        [store.statistics for store in opened],
        tokenizer,
        tiny_recipe(**recipe),
        held_out=held_out,
    )


def test_labels_states_and_pictures_are_the_authors(folder, tmp_path):
    pytest.importorskip('h5py', reason='LIBERO files need h5py')
    file = next((HERE / 'data/training').glob('*_demo.hdf5'))
    store = Store(make_store(open_dataset(file), tmp_path / 'store', progress=False))
    config = replace(
        tiny_config(),
        featurizer=replace(tiny_config().featurizer, image_size=224),
        fused_featurizer=replace(tiny_config().fused_featurizer, image_size=224),
    )
    tokenizer = PromptTokenizer.from_directory(folder / 'start', 1, 256)
    recipe = tiny_recipe(batch_size=11)
    data = Batches([store], config, [store.statistics], tokenizer, recipe)
    batch = data.batch(0)
    with np.load(HERE / 'data/training/expected.npz') as arrays:
        expected = dict(arrays)
    assert len(data) == len(expected['actions'])
    places = []
    for actions in expected['actions']:
        near = np.abs(batch.actions.numpy() - actions).max((1, 2))
        places.append(near.argmin())
        assert near.min() <= 2e-7
    assert sorted(places) == list(range(11))
    varying = store.statistics['proprio']
    varying = np.asarray(varying['min']) != np.asarray(varying['max'])
    ours = batch.proprio.numpy()[places]
    np.testing.assert_allclose(ours[:, varying], expected['proprio'][:, varying], atol=3e-7)
    for frame, pictures in zip(expected['frames'], expected['images'], strict=True):
        difference = np.abs(batch.images[places[frame]].numpy().astype(int) - pictures)
        assert difference.max() <= 1 and np.count_nonzero(difference) <= 8


def test_labels_are_clipped_and_constant_numbers_are_zero(folder):
    clipped = torch.cat([batches(folder).batch(step).actions for step in range(3)])
    assert clipped[..., :6].abs().max() == 1.0
    assert (clipped[..., 3] == 0).all()
    assert set(clipped[..., 6].unique().tolist()) == {0.0, 1.0}, 'the gripper is not scaled'
    free = torch.cat([batches(folder, clip_labels=False).batch(s).actions for s in range(3)])
    assert free[..., :3].abs().max() > 1.0


def test_every_sample_comes_once_in_a_pass_and_passes_differ(folder):
    data = batches(folder)
    assert len(data) == (12 + 10 + 9) - 3 * 7
    stream = torch.cat([data.batch(step).proprio for step in range(10)])  # four passes
    order = [tuple(row) for row in stream.tolist()]
    assert all(len({*order[k : k + 10]}) == 10 for k in (0, 10, 20, 30))
    assert order[:10] != order[10:20]


@pytest.mark.parametrize('parts', [2, 4])
def test_the_parts_of_a_batch_make_it_up(folder, parts):
    data = batches(folder)
    for step in (0, 2):  # the third batch begins in one pass and ends in the next
        whole = data.batch(step)
        shares = [data.batch(step, part, parts) for part in range(parts)]
        for name in ('images', 'draws', 'proprio', 'actions', 'seed'):
            assert torch.equal(torch.cat([getattr(s, name) for s in shares]), getattr(whole, name))


def test_a_batch_is_larger_than_the_data(folder):
    assert len(batches(folder, batch_size=32).batch(0).actions) == 32


def test_data_sets_are_mixed_by_their_size(folder):
    data = batches(folder, ('made', 'other'))
    assert len(data) == 10 + 13
    states = torch.cat([data.batch(step).proprio for step in range(23)])
    assert len(states.unique(dim=0)) == 23


def test_held_out_episodes_are_validated_and_not_trained_on(folder):
    data = batches(folder, held_out=0.5)
    store = Store(folder / 'made.store')
    held = torch.cat([batch.seed for batch in data.validation(4)])
    assert len(data) > 0 and len(data) + len(held) == len(store.samples(8))
    trained = torch.cat([data.batch(step).actions for step in range(8)])
    for batch in data.validation(4):
        middle = batch.draws[0, 0]
        assert torch.equal(middle[2:], torch.tensor([0.0, 1.0, 1.0, 0.0]))
        for chunk in batch.actions:
            assert not (trained == chunk).flatten(1).all(1).any()


def test_data_that_the_model_cannot_take_is_named(folder):
    with pytest.raises(ValueError, match='actions have 7 numbers, those of the model 6'):
        batches(folder, config=tiny_config(action_dim=6))
    with pytest.raises(ValueError, match=r'state has 8 numbers, that of the model 9.*--state'):
        batches(folder, config=tiny_config(proprio_dim=9))
    with pytest.raises(ValueError, match='as long as a chunk of 30'):
        batches(folder, config=tiny_config(chunk_len=30))
    with pytest.raises(ValueError, match='held out'):
        batches(folder, held_out=1.0)


def test_short_episodes_are_no_part_of_either_half(folder):
    """Lengths are such that one of the halves has episodes without a chunk only."""
    made_store(folder, 'short', lengths=(4, 12, 5, 6))
    long = sum(np.maximum(0, np.array([4, 12, 5, 6]) - 7))
    seen = []
    for share in np.linspace(0.05, 0.95, 19):
        try:
            data = batches(folder, ('short',), held_out=float(share))
        except ValueError as error:
            assert 'as long as a chunk would be held out' in str(error)
            seen.append('all')
            continue
        assert len(data) == long and not list(data.validation(4))
        seen.append('none')
    assert set(seen) == {'all', 'none'}
    made_store(folder, 'shorter', lengths=(4, 5))
    with pytest.raises(ValueError, match='no episode is as long as a chunk of 8'):
        batches(folder, ('shorter',), held_out=0.5)
