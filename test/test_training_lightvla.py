# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LightVLA fine-tuning: marked checkpoints, one training sample as at inference, noise."""

import json
import warnings

import pytest
import torch
from demonstrations import tiny_recipe, tiny_run
from tiny import inputs, tiny_model

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import make_selector
from vla_prune_ros.training.finetune import finetune
from vla_prune_ros.training.learner import Learner
from vla_prune_ros.training.lightvla import sample_noise, training_pass
from vla_prune_ros.training.train import main
from vla_prune_ros.vla.checkpoint import save_pretrained


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('lightvla')


def test_a_fine_tuned_checkpoint_says_what_it_was_trained_for(folder):
    run = tiny_run(folder, recipe=tiny_recipe('lightvla'), lightvla=True)
    output = finetune(run, progress=False)
    assert json.loads((output / 'config.json').read_text())['pruning_trained'] == 'lightvla'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        policy = VLAPolicy.from_pretrained(output, pruning='lightvla')
    assert policy.info()['note'] == ''
    again = folder / 'again'
    save_pretrained(policy.model, again, tokenizer=output)
    assert VLAPolicy.from_pretrained(again).config.pruning_trained == 'lightvla'
    assert VLAPolicy.from_pretrained(run.start).config.pruning_trained == ''
    log = [json.loads(line) for line in (run.output / 'log.jsonl').open()]
    assert all(1 <= record['kept'] <= 32 for record in log)
    assert all(record['total'] == record['action'] for record in log)


def test_the_auxiliary_losses_must_be_off():
    with pytest.raises(ValueError, match='L1 loss alone'):
        Learner(tiny_model(), tiny_recipe('lightvla'), lightvla=True, grounding=True)


def test_without_noise_the_training_pass_chooses_what_inference_keeps():
    model = tiny_model(pruning_trained='lightvla')
    data = inputs(model.config)
    mask = torch.ones(1, 12, dtype=torch.bool)
    with torch.no_grad():
        out = model(*data, selector=make_selector('lightvla', model.config))
        actions, _, kept = training_pass(model, *data, mask)
    assert actions.shape == out.actions.shape
    assert float(kept) == len(out.kept)


@pytest.mark.parametrize('kind', ['uniform', 'gumbel'])
def test_noise_belongs_to_a_sample_and_has_its_amplitude(kind):
    seeds = torch.tensor([3, 4, 3])
    noise = sample_noise(seeds, 32, kind, 0.5)
    assert noise.shape == (3, 32, 32)
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    torch.testing.assert_close(sample_noise(seeds[1:], 32, kind, 1.0), 2 * noise[1:])
    if kind == 'uniform':
        assert noise.min() >= 0 and noise.max() < 0.5
    else:
        assert noise.min() < 0 and noise.max() > 1


def test_the_verb_trains_and_names_what_is_missing(folder, capsys):
    pytest.importorskip('h5py', reason='LIBERO files need h5py')
    from conftest import HERE

    tiny_run(folder)
    file = next((HERE / 'data/training').glob('*_demo.hdf5'))
    command = ['lightvla', '--start', str(folder / 'start'), '--workers', '1', '--steps', '2']
    command += ['--batch-size', '2', '--noise', 'gumbel', '--lora-rank', '0', '--fresh-heads']
    out = ['--out', str(folder / 'verb')]
    assert main([*command, '--data', str(file), *out]) == 0
    said = capsys.readouterr().out
    assert str(folder / 'verb' / 'step-000002') in said
    VLAPolicy.from_pretrained(folder / 'verb' / 'latest', pruning='lightvla')
    assert main([*command, '--data', str(folder / 'start'), *out]) == 1
    assert 'no data set was found' in capsys.readouterr().err
