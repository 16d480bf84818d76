# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A policy with every runtime, image pipeline and type of weights."""

import copy
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import INSTRUCTIONS, observation, tiny_checkpoint

from vla_prune_ros import weights
from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import MODES
from vla_prune_ros.runtime.engine import BACKENDS, RUNTIMES
from vla_prune_ros.runtime.quantization import SmallLinear, check_kind, quantised, quantize
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.processor import pixel_values

GOLDEN = Path(__file__).parent / 'data' / 'oft_tiny'
pytestmark = [
    pytest.mark.filterwarnings('ignore::UserWarning'),
    pytest.mark.usefixtures('stand_in'),
]


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('runtime'), seed=1)


def load(directory, mode='none', **settings):
    return VLAPolicy.from_pretrained(directory, mode, **settings)


def episode(policy, n=4):
    chunks = []
    for i in range(n):
        chunks.append(policy.step(observation(i % 2, float(i))))
        policy.record_executed(np.full((8, 7), 0.2 * i))
        policy.observe(observation(i % 2, float(i)).images)
    return chunks


def assert_same_chunks(ours, theirs, atol=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.actions, b.actions, rtol=0, atol=atol)
        np.testing.assert_array_equal(a.kept, b.kept)
        assert a.reset_reason == b.reset_reason
        own = {k: v for k, v in a.stats.items() if k not in ('runtime', 'graph_bytes')}
        assert own == {k: v for k, v in b.stats.items() if k not in ('runtime', 'graph_bytes')}


@pytest.mark.parametrize('mode', MODES)
def test_recorded_stages_and_images_of_the_device_change_no_chunk(directory, mode):
    plain = episode(load(directory, mode, runtime='plain'))
    assert_same_chunks(episode(load(directory, mode, runtime='graphs')), plain)
    device = load(directory, mode, runtime='graphs', image_pipeline='device')
    assert_same_chunks(episode(device), plain)


def test_chunks_say_how_they_were_computed(directory):
    policy = load(directory, 'fastv', runtime='graphs')
    said = [chunk.stats['runtime'] for chunk in episode(policy, 3)]
    assert said == ['capture', 'replay', 'replay']
    stats = policy.runtime_stats()
    assert stats['runtime'] == policy.info()['runtime'] == 'graphs'
    assert 0 < stats['graph_bytes'] <= stats['graph_limit_bytes']
    assert 'runtime' not in episode(load(directory), 1)[0].stats


def test_a_new_instruction_mode_or_budget_is_recorded_and_never_fails(directory):
    policy = load(directory, runtime='graphs')
    plain = load(directory, runtime='plain')
    for i, (instruction, mode, options) in enumerate(
        [
            (INSTRUCTIONS[0], 'none', {}),
            (INSTRUCTIONS[1], 'none', {}),
            (INSTRUCTIONS[1], 'random', {'keep': 3}),
            (INSTRUCTIONS[1], 'random', {'keep': 4}),
            ('push the block ' * 12, 'specprune', {}),
        ]
    ):
        for each in (policy, plain):
            each.set_pruning(mode, **options)
        o = observation(0, float(i), instruction)
        assert_same_chunks([policy.step(o)], [plain.step(o)])
    assert policy.runtime_stats()['fallbacks'] == 0


def test_caches_of_many_prompt_lengths_in_turn_are_recorded_and_given_back(directory):
    policy, plain = (load(directory, 'vla_cache', runtime=name) for name in ('graphs', 'plain'))
    held = []
    for words in (1, 2, 3, 4, 5, 6, 7, 1):
        o = [observation(0, float(i), 'pick ' * words) for i in range(3)]
        assert_same_chunks([policy.step(x) for x in o], [plain.step(x) for x in o])
        for each in (policy, plain):
            each.reset()
        held.append(policy._engine._slots.used_bytes())
    assert policy.runtime_stats()['fallbacks'] == 0
    assert held[-1] < 1.2 * held[3]  # of four lengths


@pytest.mark.parametrize('mode', ['specprune', 'lightvla', 'fastv'])
def test_after_warm_up_with_an_instruction_no_chunk_waits_for_a_recording(directory, mode):
    policy = load(directory, mode, runtime='graphs', readout_start=-57)
    policy.warm_up(instruction=INSTRUCTIONS[0])
    assert policy.history.queries == 0
    assert [chunk.stats['runtime'] for chunk in episode(policy, 6)] == ['replay'] * 6
    assert_same_chunks(
        episode(load(directory, mode, runtime='graphs', readout_start=-57), 3),
        episode(load(directory, mode, readout_start=-57), 3),
    )


def test_unknown_settings_are_refused_with_the_valid_ones(directory):
    for setting, valid in (
        ('runtime', 'graphs'),
        ('image_pipeline', 'device'),
        ('quantization', 'int8'),
    ):
        with pytest.raises(ValueError, match=rf'nonsense.*{valid}'):
            load(directory, **{setting: 'nonsense'})
    assert RUNTIMES[0] == 'auto'
    assert load(directory).info()['runtime'] == 'plain'


def test_graphs_without_a_gpu_are_refused(directory, monkeypatch):
    monkeypatch.delitem(BACKENDS, 'cpu')
    with pytest.raises(ValueError, match='graphs needs a CUDA device, not cpu; use auto or plain'):
        load(directory, runtime='graphs')


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['none', 'specprune'])
def test_compiled_layers_change_no_chunk(directory, mode):
    compiled = episode(load(directory, mode, runtime='compile'))
    assert_same_chunks(compiled, episode(load(directory, mode)), atol=1e-4)


@pytest.mark.parametrize(
    ('capability', 'dtype', 'said'),
    [((8, 6), torch.bfloat16, r'capability 8\.9'), ((9, 0), torch.float32, 'bfloat16')],
)
def test_fp8_says_what_it_needs(capability, dtype, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    with pytest.raises(ValueError, match=said):
        check_kind('fp8', torch.device('cuda'), dtype)


def golden_error(model):
    """Largest difference from the authors' normalised actions, which are within about -1..1."""
    errors = []
    for path in sorted(GOLDEN.glob('case_*.npz')):
        with np.load(path) as case, torch.inference_mode():
            ids = torch.from_numpy(np.append(case['prompt_ids'], 29871))[None]
            state = torch.from_numpy(case['state_norm']).float()[None]
            pixels, ids, state = (
                t.to(model.device) for t in (pixel_values(case['frames']), ids, state)
            )
            ours = model(pixels, ids, state).actions[0].float().cpu().numpy()
            errors.append(np.abs(ours - case['actions_norm']).max())
    return max(errors)


@pytest.fixture(scope='module')
def golden_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp('golden')
    with zipfile.ZipFile(GOLDEN / 'checkpoint.zip') as archive:
        archive.extractall(directory)
    return OpenVLAOFT.from_pretrained(directory)


@pytest.mark.parametrize(
    ('kind', 'dtype', 'bound'),
    [
        ('int8', torch.float32, 0.05),
        ('int8', torch.bfloat16, 0.06),
        ('fp8', torch.float32, 0.3),
        ('int4', torch.float32, 0.5),  # random weights: errors of layers do not average out
        ('int4', torch.bfloat16, 0.5),
    ],
)
def test_small_numbers_stay_near_the_golden_actions(golden_model, kind, dtype, bound):
    model = copy.deepcopy(golden_model).to(dtype)
    quantize(model, kind)
    assert 1e-4 < golden_error(model) < bound


def test_a_product_of_8_bit_numbers_is_that_of_what_they_stand_for():
    torch.manual_seed(0)
    linear = torch.nn.Linear(40, 24, bias=False)
    small, x = SmallLinear(linear, 'int8'), torch.randn(2, 5, 40)
    rows = quantised(x, 'int8')
    assert rows.values.dtype == small.weight.dtype == torch.int8
    assert rows.values.abs().amax(1).tolist() == [127] * 10
    meant = (rows.values * rows.scales).view(2, 5, 40) @ (small.weight * small.scales).t()
    torch.testing.assert_close(small(x), meant)
    assert torch.equal(small(rows), small(x))
    assert not quantised(torch.zeros(1, 4), 'int8').values.any()
    error = (small(x) - linear(x)).norm() / linear(x).norm()
    assert 1e-4 < error < 0.02


def test_every_product_of_the_decoder_is_in_8_bits(golden_model):
    model = copy.deepcopy(golden_model)
    quantize(model, 'int8')
    linears = [m for m in model.decoder.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert not linears
    wide = sum(p.numel() for p in golden_model.decoder.layers.parameters())
    small = [m for m in model.decoder.layers.modules() if isinstance(m, SmallLinear)]
    assert len(small) == 4 * len(model.decoder.layers)
    held = sum(m.weight.numel() * m.weight.element_size() for m in small)
    assert 0.95 * wide < held <= wide


@pytest.mark.gpu
def test_fp8_stays_near_the_golden_actions(golden_model):
    model = copy.deepcopy(golden_model).to('cuda', torch.bfloat16)
    quantize(model, 'fp8')
    assert 1e-4 < golden_error(model) < 0.3


@pytest.mark.parametrize(
    ('mode', 'kind', 'bound'),
    [
        *[(mode, 'int8', 0.3) for mode in ('none', 'specprune', 'lightvla', 'vla_cache')],
        *[(mode, 'int4', 2.0) for mode in ('none', 'lightvla')],
    ],
)
def test_quantised_weights_prune_and_record_like_others(directory, mode, kind, bound):
    plain = episode(load(directory, mode, quantization=kind, runtime='plain'))
    recorded = episode(load(directory, mode, quantization=kind, runtime='graphs'))
    exact = episode(load(directory, mode))
    for a, b, c in zip(plain, recorded, exact, strict=True):
        np.testing.assert_allclose(a.actions, b.actions, rtol=0, atol=0.02)
        np.testing.assert_allclose(a.actions, c.actions, rtol=0, atol=bound)
        assert len(a.kept) <= a.n_visual


def test_the_package_and_its_verbs_are_imported_at_once_and_without_torch():
    code = (
        'import time, sys; started = time.perf_counter()\n'
        'import vla_prune_ros, vla_prune_ros.__main__ as main\n'
        'main.usage()\n'
        'print(time.perf_counter() - started, "torch" in sys.modules)'
    )
    runs = [
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, torch_there = zip(*(run.stdout.split() for run in runs), strict=True)
    assert min(map(float, seconds)) < 0.3
    assert {*torch_there} == {'False'}


def test_the_embedded_policy_is_ready_in_less_than_five_seconds_of_work():
    code = (
        'import sys\n'
        'from vla_prune_ros.policy import VLAPolicy\n'
        'VLAPolicy.from_pretrained(sys.argv[1]).warm_up()'
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, '-c', code, str(weights.directory('tabletop'))],
        check=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    work = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert work < 5.0  # of one processor; other programs do not count


@pytest.mark.gpu
@pytest.mark.parametrize('settings', [{}, {'image_pipeline': 'device'}, {'runtime': 'compile'}])
@pytest.mark.parametrize('mode', MODES)
def test_a_gpu_answers_like_its_plain_network(directory, mode, settings):
    compiled = 'runtime' in settings
    # Recorded rows are more, and a compiler rounds elsewhere: in bfloat16 near ties may flip.
    place = {'device': 'cuda', 'dtype': 'bfloat16' if compiled else 'float32'}
    plain = episode(load(directory, mode, runtime='plain', **place))
    policy = load(directory, mode, **place, **settings)
    assert policy.info()['runtime'] == settings.get('runtime', 'graphs')
    for a, b in zip(plain, episode(policy), strict=True):
        np.testing.assert_allclose(a.actions, b.actions, rtol=0, atol=0.05 if compiled else 2e-3)
        if not compiled:
            np.testing.assert_array_equal(a.kept, b.kept)
    stats = policy.runtime_stats()
    assert stats['backend'] == 'cuda'
    assert stats['fallbacks'] == 0, stats['last_fallback']
    assert 0 < stats['graph_bytes'] <= stats['graph_limit_bytes']


@pytest.mark.gpu
@pytest.mark.parametrize('mode', ['none', 'specprune'])
def test_quantised_weights_are_recorded_on_a_gpu(directory, mode):
    place = {'device': 'cuda', 'dtype': 'bfloat16', 'quantization': 'int8'}
    policy = load(directory, mode, **place)
    for a, b in zip(
        episode(load(directory, mode, runtime='plain', **place)), episode(policy), strict=True
    ):
        np.testing.assert_allclose(a.actions, b.actions, rtol=0, atol=0.1)
    assert policy.runtime_stats()['fallbacks'] == 0
