# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: the same weights however a run is shared out, and after an interruption."""

import json
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from demonstrations import assert_equal, environment, made_store, tiny_recipe, tiny_run, verb

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.training.finetune import finetune
from vla_prune_ros.training.folder import STATE, Folder
from vla_prune_ros.training.processes import Team, run_workers
from vla_prune_ros.training.trainer import Trainer
from vla_prune_ros.vla import OpenVLAOFT

LORA = {'lora_rank': 4, 'lora_convolutions': True, 'fresh_heads': True}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('finetune')
    tiny_run(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(run):
    return torch.load(finetune(run, progress=False) / STATE, weights_only=True)


def assert_same(a, b):
    """Mean gradients to rounding; weights nearly: AdamW makes whole steps of rounding errors."""
    moments = [[s['exp_avg'] for s in x['optimizer']['state'].values()] for x in (a, b)]
    for (name, weight), ours, theirs in zip(b['learner'].items(), *moments, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * ours.abs().max() + 1e-9, name
        assert (weight - a['learner'][name]).abs().max() <= 5e-5, name


def log_of(run, key='step'):
    lines = map(json.loads, (run.output / 'log.jsonl').read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.fixture(scope='module')
def alone(folder):
    """What one process trains, by kind."""
    pytest.importorskip('peft', reason='adapters need peft')
    weights = {}
    for kind in ('oft', 'lightvla'):
        recipe = tiny_recipe(kind, **(LORA if kind == 'oft' else {}))
        run = tiny_run(folder, f'alone_{kind}', recipe, lightvla=kind == 'lightvla')
        weights[kind] = run, trained(run)
    return weights


@pytest.mark.parametrize('kind', ['oft', 'lightvla'])
@pytest.mark.parametrize(
    'shared',
    [
        {'workers': 2},
        {'accumulate': 2},
        {'checkpointing': True},
        pytest.param({'workers': 2, 'accumulate': 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_however_a_batch_is_shared_out_the_weights_are_the_same(alone, tmp_path, kind, shared):
    run, weights = alone[kind]
    other = replace(run, output=tmp_path, **shared)
    assert_same(weights, trained(other))
    assert log_of(other) == [1, 2, 3, 4], 'one process writes'
    for ours, theirs in zip(log_of(other, 'action'), log_of(run, 'action'), strict=True):
        assert abs(ours - theirs) < 1e-6


@pytest.mark.parametrize('kind', ['oft', 'lightvla'])
@pytest.mark.parametrize('rank', [0, 4])
def test_everything_that_is_trained_gets_a_gradient(folder, tmp_path, kind, rank):
    pytest.importorskip('peft', reason='adapters need peft')
    recipe = tiny_recipe(kind, lora_rank=rank, lora_convolutions=True, steps=2, decay_all=True)
    run = tiny_run(folder, recipe=recipe, output='grad', lightvla=kind == 'lightvla')
    trainer = Trainer(Team(), replace(run, output=tmp_path))
    before = {n: p.detach().clone() for n, p in trainer.learner.named_parameters()}
    # Adapters begin with B = 0, so that A moves from the second step on.
    for step in (0, 1):
        trainer._backward(trainer._data.batch(step), step, True)
        missing = [
            n for n, p in trainer.learner.named_parameters() if p.requires_grad and p.grad is None
        ]
        assert not missing
        trainer._step(step)
    after = dict(trainer.learner.named_parameters())
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name, p in after.items() if p.requires_grad}


@pytest.mark.slow
def test_torchrun_trains_what_one_process_trains(folder, tmp_path):
    pytest.importorskip('h5py', reason='LIBERO files need h5py')
    torchrun = (sys.executable, '-m', 'torch.distributed.run', '--standalone',
                '--nproc-per-node', '2', '-m', '--')  # fmt: skip
    for out, launcher, options in (
        ('one', (sys.executable, '-m'), ['--workers', 1]),
        ('two', torchrun, []),
    ):
        done = subprocess.run(
            verb(folder, tmp_path / out, *options, launcher=launcher),
            env=environment(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('trained checkpoint') == 1
    one, two = (
        torch.load(tmp_path / out / 'latest' / STATE, weights_only=True) for out in ('one', 'two')
    )
    assert_same(one, two)


@pytest.mark.parametrize('kind', ['oft', 'lightvla'])
def test_an_interrupted_run_goes_on_to_the_same_weights(alone, tmp_path, kind):
    run, weights = alone[kind]
    again = replace(run, output=tmp_path, save_every=100)
    asked = threading.Event()
    asked.set()
    for step in (1, 2):  # stopped after its first step, twice
        with pytest.raises(KeyboardInterrupt):
            Trainer(Team(), again).run(asked)
        assert list(Folder(tmp_path).checkpoints()) == [step]
    (tmp_path / 'step-000003.partial').mkdir()  # as one that was killed while it saved
    with (tmp_path / 'log.jsonl').open('a') as file:  # and had written further
        file.write('{"step": 3, "action": 9.9}\n{"step": 4, "act')
    assert_equal(weights, trained(again))
    assert log_of(again) == [1, 2, 3, 4] and log_of(again, 'action') == log_of(run, 'action')


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_its_log_anew(folder, tmp_path):
    run = replace(tiny_run(folder), output=tmp_path)
    (tmp_path / 'log.jsonl').write_text('{"step": 1, "action": 9.9}\n{"step": 2, "act')
    finetune(run, progress=False)
    assert log_of(run) == [1, 2, 3, 4]


def refuse(team, text):
    raise ValueError(text)


def break_down(team):
    raise AttributeError('of the program')


def test_what_a_worker_cannot_use_is_said_in_one_line():
    with pytest.raises(RuntimeError, match=r'^2 cameras: name them$'):
        run_workers(refuse, 1, '2 cameras: name them')
    with pytest.raises(Exception, match=r'(?s)Traceback.*break_down.*of the program'):
        run_workers(break_down, 1)


@pytest.mark.parametrize(
    'change',
    [
        {'learning_rate': -1e-3},
        {'learning_rate': float('nan')},
        {'ema': 1.5},
        {'ema': -0.5},
        {'clip': -1.0},
        {'weight_decay': float('inf')},
        {'warmup': -1},
        {'lora_rank': -1},
        {'steps': 0},
    ],
    ids=str,
)
def test_a_recipe_that_would_unlearn_is_refused(change):
    with pytest.raises(ValueError, match=f'^{next(iter(change))} '):
        tiny_recipe(**change)


def test_a_finished_run_stays_finished(alone):
    run, weights = alone['oft']
    assert_equal(weights, trained(run))
    assert log_of(run) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'seed': 5}, 'seed'),
        ({'lightvla': True}, 'lightvla'),
        ({'recipe': tiny_recipe(learning_rate=1e-5)}, 'learning_rate'),
        ({'held_out': 0.5}, 'held_out'),
        ({'unnorm_key': 'tabletop'}, 'unnorm_key'),
    ],
)
def test_another_run_in_the_same_folder_is_refused(folder, tmp_path, change, named):
    run = tiny_run(folder, recipe=tiny_recipe(), output='other')
    if not run.output.exists():
        finetune(run, progress=False)
    with pytest.raises(ValueError, match=f'another training run .*{named}'):
        finetune(replace(run, **change), progress=False)


def test_other_data_in_the_same_folder_is_refused(folder):
    run = tiny_run(folder, recipe=tiny_recipe(), output='data')
    finetune(run, progress=False)
    other = made_store(folder, 'different', seed=3)
    with pytest.raises(ValueError, match=r'another training run .*data'):
        finetune(replace(run, stores=(other,)), progress=False)


def test_the_newest_checkpoints_stay_and_drive_a_policy(folder, tmp_path):
    run = tiny_run(folder, recipe=tiny_recipe(fresh_heads=True))
    run = replace(run, output=tmp_path, save_every=1, keep=2)
    path = finetune(run, progress=False)
    assert path.name == 'step-000004' and (tmp_path / 'latest').resolve() == path
    assert list(Folder(tmp_path).checkpoints()) == [3, 4]
    policy = VLAPolicy.from_pretrained(path, unnorm_key='made')
    assert list(policy.config.norm_stats) == ['made'], 'fresh heads go by the data'
    assert (path / 'action_head--4_checkpoint.pt').exists()


def test_trained_heads_keep_their_statistics_and_warn_of_other_data(folder, tmp_path, capsys):
    path = finetune(replace(tiny_run(folder), output=tmp_path), progress=False)
    assert list(OpenVLAOFT.from_pretrained(path).config.norm_stats) == ['tabletop']
    assert 'action number 0 is in' in capsys.readouterr().err


def test_held_out_episodes_are_judged_with_every_checkpoint(folder, tmp_path):
    run = replace(tiny_run(folder), output=tmp_path, held_out=0.5, save_every=2)
    finetune(run, progress=False)
    judged = log_of(run, 'held_out')
    assert len(judged) == 2 and all(0 < value < 3 for value in judged)


def test_training_learns(folder, tmp_path):
    recipe = tiny_recipe(steps=60, batch_size=8, learning_rate=3e-3, crop='free', colour=False)
    run = replace(tiny_run(folder, recipe=recipe), output=tmp_path, save_every=60)
    finetune(run, progress=False)
    loss = log_of(run, 'action')
    assert sum(loss[-5:]) < 0.75 * sum(loss[:5])


def test_a_batch_that_cannot_be_shared_out_is_refused(folder, tmp_path):
    run = replace(tiny_run(folder), output=tmp_path, accumulate=3)
    with pytest.raises(ValueError, match=r'batch of 4 .* 3 part'):
        finetune(run, progress=False)


def test_a_loss_that_is_no_number_ends_the_run(folder, tmp_path):
    run = replace(tiny_run(folder, recipe=tiny_recipe(learning_rate=1e30)), output=tmp_path)
    with pytest.raises(RuntimeError, match='lower the rate'):
        finetune(run, progress=False)


def test_grounding_needs_data_that_knows_the_objects(folder, tmp_path):
    run = replace(tiny_run(folder), output=tmp_path, grounding=True)
    with pytest.raises(ValueError, match='block_pixels'):
        finetune(run, progress=False)


def test_a_disk_that_is_too_small_is_seen_before_the_start(folder, tmp_path, monkeypatch):
    from vla_prune_ros.training import folder as module

    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(OSError, match='--out'):
        finetune(replace(tiny_run(folder), output=tmp_path / 'small'), progress=False)


def test_a_dry_run_counts_and_writes_nothing(folder, tmp_path):
    pytest.importorskip('h5py', reason='LIBERO files need h5py')
    done = subprocess.run(
        verb(folder, tmp_path / 'dry', '--dry-run', '--checkpointing'),
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'trained weights' in done.stdout and '24 GB' in done.stdout
    assert not (tmp_path / 'dry').exists()
