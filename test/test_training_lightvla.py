# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LightVLA fine-tuning: resumable, marked checkpoints, one training sample as at inference."""

import builtins
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import inputs, tiny_model

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import make_selector
from vla_prune_ros.sim.tabletop.tasks import TASKS
from vla_prune_ros.training import behaviour_cloning
from vla_prune_ros.training.behaviour_cloning import STATE_FILE, CloningConfig, clone
from vla_prune_ros.training.dataset import DemonstrationSet
from vla_prune_ros.training.embedded import fresh_checkpoint
from vla_prune_ros.training.lightvla import Finetuning, merged, prepare, training_pass
from vla_prune_ros.training.train import main
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import save_pretrained


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two made-up episode files and a fresh policy."""
    folder = tmp_path_factory.mktemp('lightvla')
    rng = np.random.default_rng(0)
    for task in (1, 6):
        n, k = 5, 2  # frames, labels
        np.savez(
            folder / f'episode_{task:06d}.npz',
            images=rng.integers(0, 256, (n, 2, 112, 112, 3), dtype=np.uint8),
            proprio=rng.normal(size=(n, 8)),
            actions=rng.uniform(-1, 1, (n, k, 8, 7)).astype(np.float32),
            block_pixels=rng.uniform(0, 112, (n, 2, 4, 2)).astype(np.float32),
            plate_pixels=rng.uniform(0, 112, (n, 2, 2)).astype(np.float32),
            relative=rng.normal(size=(n, k, 6)).astype(np.float32),
            task=np.tile([task, 3], (n, 1)),
        )
    files = sorted(folder.glob('*.npz'))
    fresh_checkpoint(folder / 'dense', DemonstrationSet(files, folder / 'frames.npy'), seed=0)
    return folder


def config(folder, output, **changes):
    settings = CloningConfig(
        start=folder / 'dense',
        output=output,
        files=tuple(sorted(folder.glob('*.npz'))),
        cache=folder / 'frames.npy',
        steps=4,
        batch_size=4,
        learning_rate=1e-3,
        warmup=1,
        grounding=False,
        lightvla=Finetuning(),
        save_every=2,
        log_every=1,
    )
    return replace(settings, **changes)


def test_a_fine_tuned_checkpoint_says_what_it_was_trained_for(folder, tmp_path):
    output = clone(config(folder, tmp_path), progress=False)
    assert json.loads((output / 'config.json').read_text())['pruning_trained'] == 'lightvla'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        policy = VLAPolicy.from_pretrained(output, pruning='lightvla')
    assert policy.info()['note'] == ''
    again = tmp_path / 'again'
    save_pretrained(policy.model, again, tokenizer=output)
    assert VLAPolicy.from_pretrained(again).config.pruning_trained == 'lightvla'
    assert VLAPolicy.from_pretrained(folder / 'dense').config.pruning_trained == ''
    log = [json.loads(line) for line in (output / 'log.jsonl').open()]
    assert all(1 <= record['kept'] <= 128 for record in log)
    assert all(record['total'] == record['action'] for record in log)


def test_an_interrupted_run_ends_with_the_same_weights(folder, tmp_path, monkeypatch):
    straight = clone(config(folder, tmp_path / 'straight'), progress=False)
    saved = behaviour_cloning._save

    def save_and_die(*args):
        saved(*args)
        raise KeyboardInterrupt

    broken = config(folder, tmp_path / 'broken')
    with monkeypatch.context() as patch:
        patch.setattr(behaviour_cloning, '_save', save_and_die)
        with pytest.raises(KeyboardInterrupt):
            clone(broken, progress=False)
    resumed = clone(broken, progress=False)
    a, b = (OpenVLAOFT.from_pretrained(d).state_dict() for d in (straight, resumed))
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_two_workers_train(folder, tmp_path):
    output = clone(config(folder, tmp_path, workers=2, steps=2), progress=False)
    assert OpenVLAOFT.from_pretrained(output).config.pruning_trained == 'lightvla'


@pytest.mark.parametrize(
    'other', [None, Finetuning(noise='gumbel'), Finetuning(fresh_heads=True)], ids=str
)
def test_a_state_of_another_kind_of_run_is_refused(folder, tmp_path, other):
    clone(config(folder, tmp_path, steps=1), progress=False)
    with pytest.raises(ValueError, match='another training run'):
        clone(config(folder, tmp_path, steps=1, lightvla=other), progress=False)


def test_the_auxiliary_losses_must_be_off(folder, tmp_path):
    with pytest.raises(ValueError, match='L1 loss alone'):
        clone(config(folder, tmp_path, grounding=True), progress=False)


def test_fresh_heads_are_fresh_and_the_rest_is_kept(folder):
    model = OpenVLAOFT.from_pretrained(folder / 'dense')
    before = {name: p.clone() for name, p in model.named_parameters()}
    prepare(model, Finetuning(fresh_heads=True))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(n.startswith(('action_head', 'proprio_projector')) for n in changed)
    assert {n.split('.')[0] for n in changed} == {'action_head', 'proprio_projector'}


def test_without_noise_the_training_pass_chooses_what_inference_keeps():
    model = tiny_model(pruning_trained='lightvla')
    data = inputs(model.config)
    mask = torch.ones(1, 12, dtype=torch.bool)
    with torch.no_grad():
        out = model(*data, selector=make_selector('lightvla', model.config))
        actions, kept = training_pass(
            model, *data, mask, Finetuning(), (5, 5), torch.Generator().manual_seed(0)
        )
    assert actions.shape == out.actions.shape
    assert float(kept) == len(out.kept)


def test_noise_depends_on_the_generator_and_fades(folder):
    model = tiny_model(pruning_trained='lightvla')
    data, mask = inputs(model.config), torch.ones(1, 12, dtype=torch.bool)

    def actions(step, seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return training_pass(model, *data, mask, Finetuning(), (step, 10), generator)[0]

    assert torch.equal(actions(0, 1), actions(0, 1))
    assert not torch.equal(actions(0, 1), actions(0, 2))
    assert torch.equal(actions(10, 1), actions(10, 2))


def test_half_precision_runs_under_autocast():
    model = tiny_model(pruning_trained='lightvla').to(torch.bfloat16)
    mask = torch.ones(1, 12, dtype=torch.bool)
    actions, _ = training_pass(
        model, *inputs(model.config), mask, Finetuning(), (0, 2), torch.Generator().manual_seed(0)
    )
    actions.abs().mean().backward()
    assert actions.dtype == torch.float32
    assert all(p.grad is not None for p in model.decoder.layers.parameters())


def test_lora_without_peft_says_what_to_install(folder, tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without_peft(name, *args, **kwargs):
        if name.split('.')[0] == 'peft':
            raise ModuleNotFoundError(f'No module named {name!r}')
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without_peft)
    command = ['lightvla', '--start', str(folder / 'dense'), '--data', str(folder)]
    command += ['--out', str(tmp_path), '--lora-rank', '4', '--workers', '1']
    assert main(command) == 1
    assert 'pip install peft' in capsys.readouterr().err


def test_adapters_and_heads_are_all_that_trains_and_are_merged(folder, tmp_path):
    pytest.importorskip('peft')
    finetuning = Finetuning(lora_rank=2)
    settings = config(folder, tmp_path, lightvla=finetuning, steps=2, ema=0.0)
    output = clone(settings, progress=False)
    dense, tuned = (OpenVLAOFT.from_pretrained(d) for d in (folder / 'dense', output))
    a, b = dense.state_dict(), tuned.state_dict()
    linear = {f'{n}.weight' for n, m in dense.named_modules() if isinstance(m, torch.nn.Linear)}
    heads = {n for n in a if n.startswith(('action_head', 'proprio_projector'))}
    changed = {n for n in a if not torch.equal(a[n], b[n])}
    assert changed <= linear | heads
    assert len(linear - changed) <= 2
    state = torch.load(output / STATE_FILE, weights_only=True)['learner']
    assert all('.lora_' in n or n.removeprefix('model.') in heads for n in state)
    rank = torch.linalg.matrix_rank(
        b['decoder.layers.0.mlp.up_proj.weight'] - a['decoder.layers.0.mlp.up_proj.weight']
    )
    assert int(rank) <= 2
    clone(replace(settings, output=tmp_path), progress=False)  # a finished run stays finished


def test_a_merged_model_computes_what_the_adapters_computed():
    pytest.importorskip('peft')
    model = tiny_model()
    prepare(model, Finetuning(lora_rank=3))
    for name, parameter in model.named_parameters():
        if '.lora_B' in name:
            torch.nn.init.normal_(parameter, std=0.02)
    data = inputs(model.config)
    with torch.no_grad():
        torch.testing.assert_close(
            merged(model)(*data).actions, model(*data).actions, rtol=0, atol=1e-5
        )


def test_the_verb_trains_and_names_what_is_missing(folder, tmp_path, capsys):
    command = ['lightvla', '--start', str(folder / 'dense'), '--workers', '1']
    out = ['--out', str(tmp_path / 'out')]
    steps = ['--steps', '2', '--batch-size', '2', '--noise', 'gumbel', '--validation', '1']
    assert main([*command, '--data', str(folder), *out, *steps]) == 0
    assert str(tmp_path / 'out') in capsys.readouterr().out
    assert '"success": 0.0' in (tmp_path / 'out' / 'log.jsonl').read_text()
    policy = VLAPolicy.from_pretrained(tmp_path / 'out', pruning='lightvla')
    assert policy.processor.prompt(TASKS[0].instruction)[0].shape[0] == 1
    assert main([*command, '--data', str(tmp_path / 'out'), *out]) == 1
    assert 'no demonstration files' in capsys.readouterr().err
