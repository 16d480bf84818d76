# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Variants through policy, modes, recorded stages, FLOPs, benchmark, check and evaluation."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from recorded_operations import RecordedOperations
from tiny import VARIANTS, norm_stats, observation, tiny_checkpoint, tiny_config, variant

from vla_prune_ros.benchmark import bench
from vla_prune_ros.benchmark.reference import ReferencePolicy
from vla_prune_ros.benchmark.scene import synthetic_queries
from vla_prune_ros.evaluation import check, evaluate
from vla_prune_ros.evaluation.flops import WorkMeter, query_flops, query_products
from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import MODES, make_selector
from vla_prune_ros.runtime import engine
from vla_prune_ros.vla.sizes import random_model

pytestmark = pytest.mark.filterwarnings('ignore:mode (lightvla|efficient_vla|specprune)')


@pytest.fixture(scope='module')
def directories(tmp_path_factory):
    made = {}

    def directory(name):
        if name not in made:
            made[name] = tiny_checkpoint(tmp_path_factory.mktemp(name), **variant(name))
        return made[name]

    return directory


def episode(policy, ticks=4):
    """Chunks of a short episode with executed actions and frames between."""
    config, chunks = policy.config, []
    for k in range(ticks):
        chunks.append(policy.step(observation(k, 0.4 * k, config=config)))
        policy.record_executed(chunks[-1].actions[:3])
        policy.observe(observation(100 + k, config=config).images)
    return chunks


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', VARIANTS)
def test_every_mode_runs_on_every_variant(directories, name, mode):
    policy = VLAPolicy.from_pretrained(directories(name), mode)
    config = policy.config
    for chunk in episode(policy):
        assert chunk.actions.shape == (config.chunk_len, config.action_dim)
        assert np.isfinite(chunk.actions).all()
        assert chunk.n_visual == 16 * config.n_views
        assert 0 < len(chunk.kept) <= chunk.n_visual
        assert chunk.kept[0] >= 1 and chunk.kept[-1] <= chunk.n_visual


@pytest.mark.parametrize('name', VARIANTS)
def test_recorded_stages_change_no_chunk(directories, name, monkeypatch):
    monkeypatch.setitem(engine.BACKENDS, 'cpu', RecordedOperations)
    for mode in ('none', 'specprune', 'vla_cache'):
        plain, graphs = (
            episode(VLAPolicy.from_pretrained(directories(name), mode, runtime=runtime))
            for runtime in ('plain', 'graphs')
        )
        for one, other in zip(plain, graphs, strict=True):
            np.testing.assert_allclose(one.actions, other.actions, rtol=0, atol=1e-5)
            assert one.kept.tolist() == other.kept.tolist()


def test_another_instruction_modulates_recorded_towers_anew(directories, monkeypatch):
    monkeypatch.setitem(engine.BACKENDS, 'cpu', RecordedOperations)
    plain, graphs = (
        VLAPolicy.from_pretrained(directories('film'), runtime=r) for r in ('plain', 'graphs')
    )
    seen = observation(0)
    chunks = []
    for text in ('pick up the red block', 'put the blue block on the plate') * 2:
        chunks.append(graphs.step(replace(seen, instruction=text)).actions)
        expected = plain.step(replace(seen, instruction=text)).actions
        np.testing.assert_allclose(chunks[-1], expected, rtol=0, atol=1e-5)
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-3


@pytest.mark.parametrize('name', ['libero_tokens', 'aloha', 'film'])
def test_an_audit_of_a_variant(directories, name):
    policy = VLAPolicy.from_pretrained(directories(name), 'grid')
    policy.step(observation(config=policy.config))
    found = policy.audit()
    assert found is not None and found.overall > 0


@pytest.mark.parametrize(('name', 'cameras'), [('libero', ('agentview',)), ('aloha', ('a', 'b'))])
def test_another_number_of_cameras_is_refused(directories, name, cameras):
    with pytest.raises(ValueError, match=r'the checkpoint is for \d camera'):
        VLAPolicy.from_pretrained(directories(name), cameras=cameras)


def test_a_state_that_is_not_taken_changes_nothing(directories):
    policy = VLAPolicy.from_pretrained(directories('one_view_no_state'))
    seen = observation(config=policy.config)
    assert seen.proprio is None
    given = replace(seen, proprio=np.full(8, np.nan))
    np.testing.assert_array_equal(policy.step(seen).actions, policy.step(given).actions)


def test_joints_are_scaled_by_the_largest_and_least(directories):
    policy = VLAPolicy.from_pretrained(directories('aloha'))
    info = policy.info()
    assert info['control_mode'] == 'joint positions'
    assert (info['normalisation'], info['trained_rate']) == ('bounds', 25.0)
    assert len(info['dimension_names']) == len(info['units']) == 14
    back = policy.processor.normaliser.unnormalise_actions(np.full(14, 1.5))
    assert back[:-1].tolist() == pytest.approx([3.0] * 13) and back[-1] == 1.5


def test_specprune_on_joints_is_without_its_controller(tmp_path):
    config = tiny_config(**variant('aloha'))
    with pytest.warns(UserWarning, match='joint positions: budgets are always the coarse ones'):
        selector = make_selector('specprune', config)
    policy = VLAPolicy.from_pretrained(
        tiny_checkpoint(tmp_path, **variant('aloha')), 'specprune', requery_on_enter=True
    )
    still = np.zeros((3, 14))
    policy.step(observation(config=config))
    for k in range(1, 12):  # deltas this small would mean fine motion
        policy.record_executed(still)
        assert policy.step(observation(k, 0.1 * k, config=config)).stats['motion'] == 'coarse'
        assert policy.requery_after(still) == 0 and not policy.wants_query
    assert selector.note in policy.info()['note']


def test_scout_on_joints_takes_no_number_for_a_gripper(directories):
    with pytest.warns(UserWarning, match='joint positions: dense_on_grip is off'):
        policy = VLAPolicy.from_pretrained(directories('aloha'), 'scout', dense_on_grip=True)
    for k, last in enumerate((0.0, 1.0, 0.0)):
        chunk = policy.step(observation(k, 0.1 * k, config=policy.config))
        policy.record_executed(np.full((2, 14), last))
    assert not chunk.stats['dense'] and 'dense_on_grip is off' in policy.info()['note']


def test_lightvla_scores_three_views_together(directories):
    policy = VLAPolicy.from_pretrained(directories('three_views'), 'lightvla')
    chunk = policy.step(observation(3, config=policy.config))
    views = {int(i - 1) // 16 for i in chunk.kept}
    assert views <= {0, 1, 2} and len(chunk.kept) == chunk.stats['kept'] < 48


@pytest.mark.parametrize('name', VARIANTS)
def test_flops_are_those_of_the_products_that_run(directories, name):
    policy = VLAPolicy.from_pretrained(directories(name))
    meter = WorkMeter(policy.model.decoder)
    policy.step(observation(config=policy.config))
    config, counted = policy.config, 0

    def hook(module, args, output):
        nonlocal counted
        weight = module.weight
        counted += 2 * output.numel() * weight[0].numel()

    hooks = []
    for name_, module in policy.model.named_modules():
        film = name_.rpartition('.')[2] in ('scale', 'shift')
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not film:
            hooks.append(module.register_forward_hook(hook))
    policy.step(observation(1, 0.1, config=config))
    weights = sum(p.flops for p in query_products(config, meter.last) if p.weights)
    if config.head == 'tokens':  # its rows are taken out of lm_head
        counted += 2 * config.n_placeholders * config.llama.hidden_size * 256
    assert weights == counted
    assert sum(query_flops(config, meter.last).values()) > weights
    for handle in hooks:
        handle.remove()


@pytest.mark.parametrize('name', ['one_view_no_state', 'three_views', 'bridge', 'aloha'])
def test_the_plain_reference_agrees(directories, name):
    policy = VLAPolicy.from_pretrained(directories(name))
    for attention in ('maps', 'fused'):
        reference = ReferencePolicy(policy.model, policy.processor, attention)
        seen = observation(2, config=policy.config)
        expected = policy.step(seen)
        found = reference.step(seen)
        np.testing.assert_allclose(found.actions, expected.actions, rtol=0, atol=2e-5)
        assert found.n_visual == expected.n_visual


def test_the_plain_reference_is_not_for_tokens(directories):
    policy = VLAPolicy.from_pretrained(directories('libero_tokens'))
    with pytest.raises(ValueError, match='L1 head without FiLM'):
        ReferencePolicy(policy.model, policy.processor)


@pytest.mark.parametrize('text', ['aloha', 'libero_tokens', 'libero,film=true', 'bridge'])
def test_random_models_of_a_variant(text):
    config = random_model('tiny', variant=text).config
    for query in [q.fitted(config) for q in synthetic_queries(2, config.chunk_len)]:
        assert tuple(query.images) == config.cameras
        assert query.executed.shape[1] == config.action_dim
        assert config.proprio_dim in (0, len(query.proprio))


def test_bench_of_a_variant(tmp_path, capsys):
    arguments = ['--size', 'tiny', '--model-variant', 'aloha', '--modes', 'none,specprune']
    arguments += ['--frames', 'synthetic', '--ticks', '3', '--warm-up', '1', '--threads', '1']
    assert bench.main([*arguments, '--out', str(tmp_path)]) == 0
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['run']['visual_tokens'] == 48
    assert {'eager', 'released'} <= {row['name'] for row in results['arms']}


def test_check_says_where_each_property_comes_from(directories, tmp_path, capsys):
    assert check.main([str(directories('aloha'))]) == 0
    out = capsys.readouterr().out
    assert 'chunk_len: 25 (config.json)' in out
    assert 'cameras: cam_high, cam_left_wrist, cam_right_wrist (config.json)' in out
    assert 'bfloat16:' in out
    directory = tiny_checkpoint(tmp_path, **variant('film'))
    path = directory / 'config.json'
    silent = {k: v for k, v in json.loads(path.read_text()).items() if k != 'chunk_len'}
    path.write_text(json.dumps({k: v for k, v in silent.items() if k != 'proprio_dim'}))
    assert check.main([str(directory), '--variant', 'n_views=2']) == 0
    out = capsys.readouterr().out
    assert 'n_views: 2 (told)' in out and 'film: yes (config.json)' in out
    assert 'chunk_len: 8 (preset libero, by an L1 head' in out
    assert 'proprio_dim: 8 (derived from proprio_projector--1_checkpoint.pt)' in out
    assert 'vision_backbone: vision_backbone--1_checkpoint.pt' in out


def test_check_says_what_is_to_be_declared(tmp_path, capsys):
    directory = tiny_checkpoint(tmp_path, **variant('libero_tokens'))
    path = directory / 'config.json'
    known = tiny_config().to_dict().keys() - {'n_views', 'cameras', 'head', 'chunk_len'}
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k in known})
    )
    assert check.main([str(directory)]) == 1
    assert 'are these discrete tokens of OpenVLA-OFT' in capsys.readouterr().out
    assert check.main([str(directory), '--variant', 'head=tokens']) == 1
    assert 'does not say n_views, chunk_len: declare' in capsys.readouterr().out
    assert check.main([str(directory), '--variant', 'libero_tokens']) == 0
    assert 'RLinf' in capsys.readouterr().out


def test_check_reports_bounds_that_are_missing_and_numbers_that_never_change(tmp_path):
    statistics = norm_stats(14, 14)
    block = statistics['tabletop']['proprio']
    block['max'][3] = block['min'][3]
    directory = tiny_checkpoint(tmp_path, **variant('aloha') | {'norm_stats': statistics})
    report = check.check_checkpoint(directory)
    assert not report.problems
    assert 'statistics tabletop: proprio numbers [3] never change in the data' in report.remarks
    del block['max']
    (directory / 'dataset_statistics.json').write_text(json.dumps(statistics))
    assert any('no max' in problem for problem in check.check_checkpoint(directory).problems)


@pytest.mark.parametrize('name', ['one_view_no_state', 'libero_tokens'])
def test_evaluation_of_one_camera_without_a_state(directories, name, tmp_path):
    arguments = ['--checkpoint', str(directories(name)), '--modes', 'none,specprune']
    arguments += ['--tasks', '0', '--episodes', '1', '--max-steps', '16', '--workers', '1']
    assert evaluate.main([*arguments, '--out', str(tmp_path), '--quiet']) == 0
    results = json.loads((tmp_path / 'results.json').read_text())
    assert [row['episodes'] for row in results['entries']] == [1, 1]


def test_joints_cannot_be_evaluated_on_an_arm_that_takes_deltas(directories, tmp_path, capsys):
    arguments = ['--checkpoint', str(directories('aloha')), '--modes', 'none', '--tasks', '0']
    arguments += ['--episodes', '1', '--workers', '1', '--out', str(tmp_path), '--quiet']
    assert evaluate.main(arguments) != 0
    assert 'commands joint_positions' in capsys.readouterr().err
