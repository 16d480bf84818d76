# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every variant is fine-tuned, saved, merged and driven; what cannot be trained says why."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from datasets_tools import write_aloha
from demonstrations import made_store, tiny_recipe, tiny_run
from tiny import VARIANTS, inputs, observation, tiny_checkpoint, tiny_config, variant

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.training.finetune import finetune
from vla_prune_ros.training.learner import action_losses
from vla_prune_ros.training.lora import adapters
from vla_prune_ros.training.memory import memory
from vla_prune_ros.training.processes import Team
from vla_prune_ros.training.recipe import RECIPES
from vla_prune_ros.training.train import main
from vla_prune_ros.training.trainer import Trainer
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.heads import TokenHead
from vla_prune_ros.vla.variant import KEYS

RANKS = [0, pytest.param(3, marks=pytest.mark.skipif(not find_spec('peft'), reason='needs peft'))]
LENGTHS = (30, 28)  # longer than ALOHA's chunks


def data_for(folder, config):
    """A store with the cameras and numbers of a config."""
    if not (folder / 'made.store').exists():
        made_store(
            folder, lengths=LENGTHS, cameras=config.cameras, numbers=config.action_dim,
            states=config.proprio_dim,
        )  # fmt: skip


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A run for each variant, on a checkpoint and a data set of its own."""
    folders = {}

    def make(name, output, **changes):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            tiny_checkpoint(folders[name] / 'start', **variant(name))
            data_for(folders[name], OpenVLAConfig.from_directory(folders[name] / 'start'))
        recipe = tiny_recipe(steps=2, ema=0.0, **changes)
        return tiny_run(folders[name], output, recipe, lightvla='lightvla' in output)

    return make


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('name', VARIANTS)
def test_all_that_is_trained_moves_and_the_loss_falls(runs, tmp_path, name, rank):
    changes = {'lora_rank': rank, 'lora_convolutions': True, 'decay_all': True}
    run = runs(name, 'falls', learning_rate=3e-3, **changes)
    trainer = Trainer(Team(), replace(run, output=tmp_path))
    before = {n: p.detach().clone() for n, p in trainer.learner.named_parameters()}
    batch, losses = trainer._data.batch(0), []
    for _ in range(8):
        losses.append(trainer._backward(batch, 0, True)['action'])
        missing = [
            n for n, p in trainer.learner.named_parameters() if p.requires_grad and p.grad is None
        ]
        assert not missing
        trainer._step(0)
    assert losses[-1] < 0.93 * losses[0], losses
    after = dict(trainer.learner.named_parameters())
    moved = {n for n in after if not torch.equal(after[n], before[n])}
    assert moved == {n for n, p in after.items() if p.requires_grad}
    words = [n for n in moved if 'lm_head' in n]
    assert bool(words) is (name == 'libero_tokens')
    assert all('lora' in n for n in words) or not rank, 'too large to be trained whole'


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('name', VARIANTS)
def test_what_was_trained_is_saved_merged_and_driven(runs, tmp_path, name, rank):
    run = replace(runs(name, 'saved', lora_rank=rank, learning_rate=1e-2), output=tmp_path / 'out')
    path = finetune(run, progress=False)
    trainer = Trainer(Team(), run)  # resumed behind the last step
    model = trainer.learner.model.eval()
    assert bool(adapters(model)) is bool(rank)
    data = inputs(model.config, views=model.config.n_views)
    with torch.no_grad():
        expected = model(*data).readout
        loaded = OpenVLAOFT.from_pretrained(path)
        torch.testing.assert_close(loaded(*data).readout, expected, rtol=0, atol=1e-4)
        start = OpenVLAOFT.from_pretrained(run.start)
        assert not torch.allclose(start(*data).readout, expected, atol=1e-3)
    assert {k: getattr(loaded.config, k) for k in KEYS} == {
        k: getattr(start.config, k) for k in KEYS
    }
    if rank:
        again = tmp_path / 'merged'
        assert main(['merge', str(run.start), str(path), str(again)]) == 0
        merged = OpenVLAOFT.from_pretrained(again)  # written in bfloat16
        torch.testing.assert_close(merged(*data).readout, expected, rtol=0.1, atol=0.1)
    policy = VLAPolicy.from_pretrained(path, unnorm_key='tabletop')
    chunk = policy.step(observation(config=policy.config))
    assert chunk.actions.shape == (model.config.chunk_len, model.config.action_dim)


@pytest.mark.parametrize('name', ['libero_tokens', 'film', 'aloha', 'one_view_no_state'])
def test_lightvla_trains_on_it(runs, tmp_path, name):
    run = replace(runs(name, 'lightvla', lora_rank=0), output=tmp_path)
    policy = VLAPolicy.from_pretrained(finetune(run, progress=False), 'lightvla')
    assert policy.config.pruning_trained == 'lightvla'
    policy.step(observation(config=policy.config))


# -- from the weights of OpenVLA itself ----------------------------------------------------------
@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    """As `openvla/openvla-7b`: no head, and nothing said of the variant."""
    directory = tiny_checkpoint(
        tmp_path_factory.mktemp('bare') / 'openvla', **variant('libero_tokens')
    )
    path = directory / 'config.json'
    said = {k: v for k, v in json.loads(path.read_text()).items() if k not in KEYS}
    path.write_text(json.dumps(said))
    return directory


GOALS = {
    '': {},
    'libero': {},
    'libero,film=true': {'film': True},
    'use_proprio=false': {'proprio_dim': 0},
    'libero,cameras=side': {'n_views': 1, 'camera_names': ('side',)},
    'libero,n_views=3': {'n_views': 3, 'camera_names': ('a', 'b', 'c')},
    'libero_tokens': VARIANTS['libero_tokens'],
    'aloha,film=true': {**VARIANTS['aloha'], 'film': True},
    'aloha,head=tokens': {**VARIANTS['aloha'], 'head': 'tokens'},
    'bridge': {**VARIANTS['bridge'], 'control_rate': 5.0},
}


@pytest.mark.parametrize('goal', GOALS)
def test_openvla_becomes_every_variant(bare, tmp_path, goal):
    expected = tiny_config(**GOALS[goal])
    data_for(tmp_path, replace(expected, proprio_dim=expected.proprio_dim or 8))
    recipe = tiny_recipe(name='released', lora_rank=2 if find_spec('peft') else 0)
    run = tiny_run(tmp_path, 'out', recipe, start=bare, variant=goal)
    path = finetune(run, progress=False)
    config = OpenVLAConfig.from_directory(path)
    for key in ('action_dim', 'chunk_len', 'head', 'film', 'normalisation', 'action_kind'):
        assert getattr(config, key) == getattr(expected, key), key
    assert (config.n_views, config.cameras) == (expected.n_views, expected.cameras)
    assert config.use_proprio is (expected.use_proprio and 'use_proprio=false' not in goal)
    assert config.control_rate == 10.0, 'that of the data'
    policy = VLAPolicy.from_pretrained(path, unnorm_key='made')
    chunk = policy.step(observation(config=policy.config))
    assert chunk.actions.shape == (config.chunk_len, config.action_dim)
    if recipe.lora_rank:  # as the authors leave it: adapters, heads, statistics
        for file in path.glob('*.safetensors'):
            file.unlink()
        command = ['merge', str(bare), str(path), str(tmp_path / 'merged'), '--variant']
        assert main([*command, f'libero,{goal}' if goal.startswith('use') else goal]) == 0
        merged = OpenVLAConfig.from_directory(tmp_path / 'merged')
        assert replace(merged, control_rate=10.0, camera_names=config.camera_names) == config


def test_a_dry_run_counts_what_is_to_be_trained(bare, tmp_path, capsys):
    pytest.importorskip('h5py', reason='ALOHA files need h5py')
    write_aloha(tmp_path / 'episode_0.hdf5')
    command = ['oft', '--recipe', 'released', '--start', str(bare), '--data', str(tmp_path)]
    said = []
    for goal in ('aloha', 'aloha,film=true'):
        assert main([*command, '--variant', goal, '--dry-run', '--batch-size', '4']) == 0
        said.append(capsys.readouterr().out)
    length = OpenVLAConfig.from_directory(bare, 'libero_tokens').patches_per_view * 3 + 35 + 352
    assert all(f'3 camera(s), {length} tokens' in text for text in said)
    numbers = [
        memory(replace(goal, n_views=3), RECIPES['oft']['released'], 3)
        for goal in (tiny_config(**VARIANTS['aloha']), tiny_config(**VARIANTS['aloha'], film=True))
    ]
    assert numbers[1].trained > numbers[0].trained, 'FiLM is trained whole'


@pytest.mark.parametrize(
    ('goal', 'data', 'message'),
    [
        ('', 'aloha', 'actions have 14 numbers, those of the start 7; declare .*normalisation, a'),
        ('libero', 'aloha', 'action_dim is 14, but 7 is declared'),
        ('aloha', 'libero', 'action_dim is 7, but 14 is declared'),
        ('libero', 'three_views', 'n_views is 3, but 2 is declared'),
        ('libero', 'one_view_no_state', 'n_views is 1, but 2 is declared'),
        ('use_proprio=true', 'one_view_no_state', 'has no robot state, but use_proprio'),
        ('head=diffusion', 'libero', 'diffusion head is not supported: it takes 50 passes'),
        ('aloha,chunk_len=50', 'aloha', 'as long as a chunk of 50'),
    ],
)
def test_what_cannot_be_trained_says_why(bare, tmp_path, goal, data, message):
    data_for(tmp_path, tiny_config(**VARIANTS[data]))
    run = tiny_run(tmp_path, 'out', tiny_recipe(fresh_heads=True), start=bare, variant=goal)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        finetune(run, progress=False)


def test_heads_that_are_there_cannot_become_others(runs, tmp_path):
    run = runs('libero', 'other')
    for goal, message in (
        ('film=true', 'no vision_backbone--'),
        ('head=tokens', 'head is tokens .told., but l1'),
        ('aloha', 'action_dim is 14 .told'),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            finetune(replace(run, output=tmp_path, variant=goal), progress=False)


# -- the loss of tokens --------------------------------------------------------------------------
def test_the_loss_of_tokens_is_the_cross_entropy_of_the_right_bins():
    config = tiny_config(**variant('libero_tokens'))
    head = TokenHead(config)
    wanted = torch.rand(2, config.chunk_len, config.action_dim) * 2.4 - 1.2
    readout = torch.randn(2, config.n_placeholders, config.llama.hidden_size)
    losses = action_losses(head, head(readout), readout, wanted)
    scores = head.lm_head(readout).log_softmax(-1)
    labels = head.tokens(wanted).view(2, -1, 1)
    torch.testing.assert_close(losses['action'], -scores.gather(-1, labels).mean())
    torch.testing.assert_close(losses['l1'], (head(readout) - wanted).abs().mean())
    # who says the right bins is as good as 255 bins allow
    sure = 50.0 * torch.nn.functional.one_hot(labels[..., 0], config.llama.vocab_size)
    head.lm_head.forward = lambda _: sure
    losses = action_losses(head, None, readout, wanted)
    beyond = (wanted.abs() - 1).clamp(min=0).mean()
    assert losses['action'] < 1e-6 and losses['l1'] < beyond + 1 / 255
