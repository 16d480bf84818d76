# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training: clean labels, crop, grounding targets, and a resumed run that is the same."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_prune_ros import weights
from vla_prune_ros.datasets import ReadOptions, Store, make_store, open_dataset
from vla_prune_ros.sim.tabletop import TabletopRobot
from vla_prune_ros.sim.tabletop.tasks import TASKS
from vla_prune_ros.training.augment import SIDE, random_crop
from vla_prune_ros.training.batches import Batches
from vla_prune_ros.training.demonstrations import (
    CHUNK,
    CollectionConfig,
    clean_chunk,
    collect,
    record_episode,
)
from vla_prune_ros.training.embedded import CLONING, UNNORM_KEY, fresh_checkpoint
from vla_prune_ros.training.finetune import Run, finetune
from vla_prune_ros.training.folder import STATE
from vla_prune_ros.training.grounding import N_OBJECTS, Grounding
from vla_prune_ros.training.processes import Team
from vla_prune_ros.training.train import build_parser, main
from vla_prune_ros.training.trainer import Trainer
from vla_prune_ros.training.validation import closed_loop_success
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.tokenizer import PromptTokenizer


@pytest.fixture(scope='module')
def episodes(tmp_path_factory):
    config = CollectionConfig(tmp_path_factory.mktemp('demonstrations'), episodes=2, stride=6)
    return config, collect(config, progress=False)


@pytest.fixture(scope='module')
def stored(episodes, tmp_path_factory):
    path = tmp_path_factory.mktemp('stored') / 'store'
    options = ReadOptions(name=UNNORM_KEY)
    data = open_dataset(episodes[0].directory, options)
    return make_store(data, path, options, progress=False)


@pytest.fixture(scope='module')
def fresh(stored, tmp_path_factory):
    folder = tmp_path_factory.mktemp('fresh')
    fresh_checkpoint(folder, [Store(stored)], seed=0)
    return folder


def test_an_episode_file_holds_what_its_docstring_says(episodes):
    with np.load(episodes[1][1]) as data:
        n = len(data['proprio'])
        assert n > 3
        assert data['images'].shape == (n, 2, 112, 112, 3) and data['images'].dtype == np.uint8
        assert data['actions'].shape == (n, 1, CHUNK, 7) and data['actions'].dtype == np.float32
        assert set(np.unique(data['actions'][..., 6])) <= {0.0, 1.0}
        assert data['block_pixels'].shape == (n, 2, 4, 2)
        assert (data['task'] == 1).all()


def test_collecting_again_keeps_finished_episodes_and_makes_missing_ones(episodes):
    config, files = episodes
    before = {f: f.stat().st_mtime_ns for f in files}
    with np.load(files[1]) as data:
        first = {name: data[name] for name in data.files}
    files[1].unlink()
    assert collect(config, progress=False) == files
    assert files[0].stat().st_mtime_ns == before[files[0]]
    with np.load(files[1]) as data:  # the same seed records the same episode
        for name, value in first.items():
            np.testing.assert_array_equal(data[name], value, err_msg=name)


def test_labels_are_what_the_expert_does_from_there_without_noise():
    robot = TabletopRobot(split='train', render=False)
    robot.reset(5, 0)
    for _ in range(9):
        robot.advance(np.array([0.4, -0.3, -0.2, 0, 0, 0, -1.0]))
    state = robot.save()
    chunk = clean_chunk(robot, TASKS[5])
    np.testing.assert_array_equal(robot.save()[0], state[0], 'labelling must not move the robot')
    for action in chunk:
        again = clean_chunk(robot, TASKS[5])[0]
        np.testing.assert_allclose(again, action, atol=1e-5)
        robot.advance(np.append(action[:6], 1.0 - 2.0 * action[6]))


def test_a_learner_that_drives_is_labelled_by_the_expert(tmp_path):
    robot = TabletopRobot(split='train')
    config = CollectionConfig(tmp_path, 1, stride=8, expert_share=0.0)
    still = record_episode(robot, 0, config, lambda *_: np.tile([0, 0, 0, 0, 0, 0, -1.0], (8, 1)))
    robot.close()
    assert np.ptp(still['proprio'][:, :3], axis=0).max() < 0.01, 'the learner holds still'
    assert np.abs(still['actions'][:, 0, 0, :3]).max() > 0.3, 'the expert would not'


def test_alternative_instructions_get_labels_of_their_own(tmp_path):
    config = CollectionConfig(tmp_path, 1, stride=12, detour=10, alternatives=2)
    files = collect(config, progress=False)
    with np.load(files[0]) as data:
        tasks, relative = data['task'], data['relative']
        n = len(data['proprio'])
    assert tasks.shape == (n, 3) and (tasks[:, 0] == 0).all()
    assert all(len(set(row)) == 3 for row in tasks)
    fresh = tmp_path / 'fresh'
    store = Store(make_store(open_dataset(tmp_path), tmp_path / 'store', progress=False))
    fresh_checkpoint(fresh, [store], seed=0)
    config = OpenVLAConfig.from_directory(fresh)
    tokenizer = PromptTokenizer.from_directory(fresh, config.bos_id, config.llama.vocab_size)
    known, recipe = [store.statistics], replace(CLONING, batch_size=3 * n)
    data = Batches([store], config, known, tokenizer, recipe)
    assert len(data) == 3 * n
    batch = data.batch(0)
    tasks = batch.extras['task'].tolist()
    colours = [TASKS[t].colour for t in tasks]
    for i in range(3 * n):
        ids = tokenizer.prompt_ids(TASKS[tasks[i]].instruction)
        assert batch.ids[i][batch.mask[i]].tolist() == ids
    # the same frame under two instructions: same state, same plate, another target
    relatives = batch.extras['relative']
    for i in range(3 * n):
        for j in range(3 * n):
            if torch.equal(batch.proprio[i], batch.proprio[j]) and colours[i] != colours[j]:
                assert torch.equal(relatives[i, 3:], relatives[j, 3:])
                assert (relatives[i, :3] - relatives[j, :3]).abs().max() > 0.03
    assert np.isfinite(relative).all()


def test_object_pixels_follow_the_crop():
    images = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    images[0, 70, 40] = 255
    offset = torch.tensor([[0.03, 0.01]])
    found = random_crop(images, offset)[0, ..., 0].flatten().argmax()
    moved = (torch.tensor([40.0, 70.0]) - offset[0] * 111) / SIDE  # as the learner does
    assert abs(moved[0] - found % 112) <= 1 and abs(moved[1] - found // 112) <= 1


def test_grounding_is_smallest_where_the_right_patch_stands_out():
    torch.manual_seed(0)
    grounding = Grounding(hidden_size=16, grid=4, image_size=56)
    pixels = torch.full((1, 2, N_OBJECTS, 2), float('nan'))
    pixels[0, 0, 2] = torch.tensor([30.0, 16.0])  # column 2, row 1 of view 0
    state, relative = torch.zeros(1, 16), torch.zeros(1, 6)
    losses = {}
    for patch in (6, 9):
        visual = torch.zeros(1, 32, 16)
        visual[0, patch] = 4.0 * grounding.objects[2].detach()
        losses[patch] = grounding(visual, state, pixels, torch.tensor([2]), relative)
    assert losses[6]['where'] < 0.1 < losses[9]['where']
    assert all(torch.isfinite(v) for v in losses[6].values())


def _run(stored, fresh, output, **changes):
    recipe = replace(CLONING, steps=6, batch_size=4, warmup=2)
    return replace(Run(fresh, output, (stored,), recipe, grounding=True, log_every=1), **changes)


def test_the_auxiliary_heads_go_on_in_the_next_stage(stored, fresh, tmp_path):
    first = _run(stored, fresh, tmp_path / 'first')
    path = finetune(first, progress=False)
    heads = {
        name: value
        for name, value in torch.load(path / STATE, weights_only=True)['learner'].items()
        if name.startswith('grounding.')
    }
    trainer = Trainer(Team(), _run(stored, path, tmp_path / 'second'))
    own = trainer.learner.state_dict()
    assert heads and all(torch.equal(own[name], value) for name, value in heads.items())


def test_cloning_writes_a_checkpoint_that_loads(stored, fresh, tmp_path):
    output = finetune(_run(stored, fresh, tmp_path), progress=False)
    model = OpenVLAOFT.from_pretrained(output)
    assert list(model.config.norm_stats) == [UNNORM_KEY]
    assert (output / 'tokenizer.json').exists()


def test_every_checkpoint_is_tried_in_closed_loop(stored, fresh, tmp_path):
    run = _run(stored, fresh, tmp_path, save_every=3, validation=1)
    finetune(run, progress=False)
    log = [json.loads(line) for line in (tmp_path / 'log.jsonl').open()]
    tried = [record for record in log if 'success' in record]
    assert [record['step'] for record in tried] == [3, 6]
    assert all(record['episodes'] == 1 for record in tried)
    assert tried[0]['success'] == 0.0, 'weights without training do not solve a task'
    assert tried[0]['low'] == 0.0 < tried[0]['high']


def test_success_in_closed_loop_is_that_of_the_policy():
    tried = closed_loop_success(weights.directory('tabletop'), 4, workers=2)
    assert tried['success'] >= 0.5 and tried['episodes'] == 4


def test_an_exported_checkpoint_is_half_as_large_and_needs_nothing_else(fresh, tmp_path):
    out = tmp_path / 'export'
    assert main(['export', str(fresh), str(out)]) == 0
    assert OpenVLAOFT.from_pretrained(out).config.norm_stats
    files = [folder / 'model.safetensors' for folder in (out, fresh)]
    assert files[0].stat().st_size < 0.6 * files[1].stat().st_size
    assert main(['export', str(fresh), str(out)]) == 1, 'nothing is overwritten'


def test_a_bad_list_of_rounds_is_explained(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(['tabletop', '--rounds', '480'])
    assert 'EPISODES:STEPS' in capsys.readouterr().err
