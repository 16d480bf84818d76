# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""VLAPolicy: one observation in, one chunk out, and a history that resets when it must."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import INSTRUCTIONS, observation, tiny_checkpoint

from vla_prune_ros import weights
from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.vla.processor import pixel_values

STAGES = {'preprocess', 'vision', 'select', 'decoder', 'head', 'postprocess', 'total'}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('policy'))


@pytest.fixture
def policy(directory):
    return VLAPolicy.from_pretrained(directory)


def test_chunk_carries_robot_units_the_stamp_and_what_was_kept(policy):
    chunk = policy.step(observation(stamp=12.5))
    assert chunk.actions.shape == (8, 7) and chunk.actions.dtype == np.float64
    assert chunk.stamp == 12.5
    assert chunk.kept.dtype == np.int64 and chunk.kept.tolist() == list(range(1, 33))
    assert (chunk.mode, chunk.sequence, chunk.n_visual) == ('none', 0, 32)
    assert chunk.reset_reason == 'start'


def test_step_equals_the_parts_put_together_by_hand(policy):
    o = observation(3)
    processor, model = policy.processor, policy.model
    frames = processor.frames([o.images['agentview'], o.images['wrist']])
    state = torch.from_numpy(processor.normaliser.normalise_proprio(o.proprio)).float()[None]
    with torch.inference_mode():
        out = model(pixel_values(frames), processor.prompt(o.instruction)[0], state)
    expected = processor.normaliser.unnormalise_actions(out.actions[0].numpy())
    np.testing.assert_array_equal(policy.step(o).actions, expected)


def test_every_stage_is_timed_and_nothing_is_left_out(policy):
    policy.step(observation())
    timing = policy.step(observation(1, stamp=0.4)).timing
    assert timing.keys() == STAGES
    assert min(timing.values()) >= 0
    assert sum(timing[s] for s in STAGES - {'total'}) == pytest.approx(timing['total'], abs=0.2)


def test_same_observations_give_the_same_bits(directory):
    runs = []
    for _ in range(2):
        policy = VLAPolicy.from_pretrained(directory, pruning='random', keep=4, seed=5)
        runs.append([policy.step(observation(i, stamp=i)) for i in range(3)])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.kept, b.kept)


def test_every_input_matters(policy):
    base = policy.step(observation()).actions
    other = observation(1)
    o = observation()
    changes = {
        'agentview': replace(o, images={**o.images, 'agentview': other.images['agentview']}),
        'wrist': replace(o, images={**o.images, 'wrist': other.images['wrist']}),
        'proprio': replace(o, proprio=other.proprio),
        'instruction': replace(o, instruction=INSTRUCTIONS[1]),
    }
    for name, changed in changes.items():
        assert np.abs(policy.step(changed).actions - base).max() > 1e-6, name


def test_observation_is_not_modified(policy):
    o = observation()
    images, proprio = {k: v.copy() for k, v in o.images.items()}, o.proprio.copy()
    policy.step(o)
    np.testing.assert_array_equal(o.proprio, proprio)
    for name, image in images.items():
        np.testing.assert_array_equal(o.images[name], image)


def test_pruning_is_switched_between_steps(policy):
    policy.step(observation())
    policy.set_pruning('random', keep=5)
    chunk = policy.step(observation(stamp=1))
    assert (chunk.mode, len(chunk.kept), chunk.reset_reason) == ('random', 10, 'mode')
    assert chunk.stats['keep_per_view'] == 5
    policy.set_pruning('random', keep=6)
    assert policy.step(observation(stamp=2)).reset_reason == 'mode'
    policy.set_pruning('random', keep=6)
    assert policy.step(observation(stamp=3)).reset_reason is None


def test_refused_mode_leaves_the_old_one_in_force(policy):
    policy.set_pruning('random', keep=5)
    settings = policy.settings
    for mode, options in (('nonsense', {}), ('random', {'keep': 999}), ('none', {'keep': 1})):
        with pytest.raises(ValueError):
            policy.set_pruning(mode, **options)
    assert policy.settings is settings
    assert len(policy.step(observation()).kept) == 10


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({}, None),
        ({'stamp': 10.0}, None),  # the same observation again
        ({'stamp': 15.1}, 'gap'),
        ({'stamp': 9.9}, 'clock'),
        ({'instruction': INSTRUCTIONS[1]}, 'instruction'),
    ],
)
def test_history_resets_when_an_observation_does_not_continue_the_last(policy, change, reason):
    policy.step(observation(stamp=10.0))
    policy.record_executed(np.zeros((8, 7)))
    chunk = policy.step(replace(observation(1, stamp=10.4), **change))
    assert chunk.reset_reason == reason
    assert policy.history.queries == (2 if reason is None else 1)
    assert policy.history.step == (8 if reason is None else 0)


def test_reset_forgets_and_the_next_chunk_says_so(policy):
    policy.step(observation(stamp=10.0))
    policy.reset()
    assert len(policy.history.frames) == 0
    chunk = policy.step(observation(stamp=3.0))  # an episode may start with an earlier clock
    assert (chunk.reset_reason, chunk.sequence) == ('reset', 1)


def broken(name):
    o = observation(stamp=1)
    return {
        'missing camera': replace(o, images={'agentview': o.images['agentview']}),
        'image type': replace(o, images={**o.images, 'wrist': np.zeros((8, 8, 3))}),
        'nan state': replace(o, proprio=np.full(8, np.nan)),
        'short state': replace(o, proprio=np.zeros(7)),
        'empty instruction': replace(o, instruction=''),
    }[name]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('missing camera', 'wrist'),
        ('image type', 'uint8'),
        ('nan state', 'proprio'),
        ('short state', 'proprio'),
        ('empty instruction', 'instruction'),
    ],
)
def test_malformed_observation_is_refused_and_empties_the_history(policy, name, message):
    policy.step(observation())
    with pytest.raises(ValueError, match=message):
        policy.step(broken(name))
    assert policy.history.queries == 0
    assert policy.step(observation(stamp=2)).reset_reason == 'exception'


def test_non_finite_actions_are_never_returned(policy):
    policy.step(observation())
    with torch.no_grad():
        policy.model.action_head.model.fc2.bias[0] = torch.nan
    with pytest.raises(RuntimeError, match='finite'):
        policy.step(observation(stamp=1))
    assert policy.history.reset_reason == 'exception'


def test_executed_actions_reach_the_history_once(policy):
    chunk = policy.step(observation())
    policy.record_executed(chunk.actions[:3])
    policy.record_executed(chunk.actions[3])
    np.testing.assert_array_equal(np.stack(policy.history.executed), chunk.actions[:4])
    policy.step(observation(stamp=0.2))
    assert len(policy.history.executed) == 0


@pytest.mark.parametrize(
    'actions', [np.zeros((2, 6)), np.full((1, 7), np.inf), np.zeros((1, 1, 7))]
)
def test_impossible_executed_actions_are_refused(policy, actions):
    with pytest.raises(ValueError, match='executed actions'):
        policy.record_executed(actions)


def test_selector_sees_the_current_frames_before_they_enter_the_history(policy, monkeypatch):
    seen = []
    monkeypatch.setattr(
        policy._selector,
        'observe',
        lambda tick: seen.append((tick.frames, [f.images for f in tick.history.frames])),
    )
    for i in range(2):
        policy.step(observation(i, stamp=i))
    (first, before_first), (second, before_second) = seen
    assert before_first == []
    assert len(before_second) == 1 and before_second[0] is first
    assert policy.history.frames[-1].images is second
    assert first.shape == (2, 56, 56, 3) and first.dtype == np.uint8


def test_boilerplate_tokens_are_reported(policy, monkeypatch):
    ticks = []
    monkeypatch.setattr(policy._selector, 'observe', ticks.append)
    policy.step(observation())
    assert ticks[0].template_tokens == 9


def test_warm_up_leaves_no_trace(directory):
    cold, warm = (VLAPolicy.from_pretrained(directory, pruning='random') for _ in range(2))
    warm.warm_up()
    a, b = cold.step(observation()), warm.step(observation())
    np.testing.assert_array_equal(a.kept, b.kept)
    assert (b.reset_reason, b.sequence) == ('start', 0)


def test_info_identifies_checkpoint_mode_and_units(policy, directory):
    info = policy.info()
    names = sorted(p.name for p in directory.iterdir() if p.suffix in ('.pt', '.safetensors'))
    digest = hashlib.sha256(b''.join((directory / n).read_bytes() for n in names))
    assert info['sha256'] == digest.hexdigest()
    assert info['checkpoint'] == str(directory)
    assert (info['mode'], info['options']) == ('none', {})
    assert info['dimension_names'][0] == 'delta_x' and len(info['dimension_names']) == 7
    assert len(info['units']) == 7


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'dtype': 'int8'}, 'int8'),
        ({'dtype': 'nonsense'}, 'nonsense'),
        ({'unnorm_key': 'libero'}, 'libero'),
        ({'pruning': 'nonsense'}, 'nonsense'),
        ({'no_such': 1}, 'no_such'),
    ],
)
def test_wrong_settings_are_named(directory, settings, message):
    with pytest.raises(ValueError, match=message):
        VLAPolicy.from_pretrained(directory, **settings)


def test_half_precision_runs_and_stays_near(directory):
    full = VLAPolicy.from_pretrained(directory).step(observation()).actions
    half = VLAPolicy.from_pretrained(directory, dtype='bfloat16').step(observation()).actions
    assert 0 < np.abs(full - half).max() < 0.2


def test_other_readout_is_a_setting(directory, policy):
    late = VLAPolicy.from_pretrained(directory, readout_start=-56).step(observation()).actions
    assert not np.array_equal(late, policy.step(observation()).actions)


def test_unknown_embedded_policy_is_named():
    with pytest.raises(ValueError, match='nonsense'):
        weights.directory('nonsense')


def test_embedded_policies_are_complete_directories():
    for name in weights.available():
        assert (weights.directory(name) / 'config.json').is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_gpu_agrees_with_cpu_and_times_every_stage(directory, policy):
    chunk = VLAPolicy.from_pretrained(directory, device='cuda').step(observation())
    np.testing.assert_allclose(chunk.actions, policy.step(observation()).actions, atol=1e-3)
    assert chunk.timing.keys() == STAGES
