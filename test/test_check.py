# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `check`: good and broken checkpoints; what loading one costs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import norm_stats, tiny_checkpoint

from vla_prune_ros import weights
from vla_prune_ros.evaluation.check import check_checkpoint, main, text
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import published_shapes
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.sizes import SIZES


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint that may be broken."""
    return shutil.copytree(checkpoint, tmp_path / 'copy')


def rewrite(directory, change):
    """Change the tensors of the one safetensors file."""
    path = directory / 'model.safetensors'
    with safe_open(path, 'pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path)


def problems(directory):
    return '\n'.join(check_checkpoint(directory).problems)


@pytest.mark.parametrize('name', weights.available())
def test_embedded_policies_are_in_order_and_fit_the_tabletop(name, capsys):
    assert main([name]) == 0
    out = capsys.readouterr().out
    assert 'tabletop: tabletop' in out
    assert 'can be used' in out
    assert 'bfloat16:' in out


def test_a_tiny_checkpoint_is_in_order_and_the_report_can_be_read_by_programs(
    checkpoint, tmp_path
):
    assert main([str(checkpoint), '--json', str(tmp_path / 'report.json')]) == 0
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['problems'] == []
    assert report['facts']['tensors']['found'] == report['facts']['tensors']['expected']


def test_a_directory_that_is_not_there_has_an_exit_code_of_its_own(capsys):
    assert main(['/nowhere/at/all']) == 2
    said = capsys.readouterr().err
    assert 'no directory /nowhere/at/all, and no embedded policy (tabletop, ' in said


def test_a_report_that_cannot_be_written_is_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert main([str(checkpoint), '--json', str(tmp_path / 'file/report.json')]) == 2
    captured = capsys.readouterr()
    assert captured.out.endswith('can be used\n')
    assert captured.err.startswith('check: ') and captured.err.count('\n') == 1


def test_suites_follow_from_the_statistics(tmp_path):
    statistics = norm_stats()['tabletop']
    both = {'libero_goal_no_noops': statistics, 'libero_10': statistics}
    tiny_checkpoint(tmp_path, norm_stats=both)
    assert check_checkpoint(tmp_path).facts['suites'] == {
        'libero_goal': 'libero_goal_no_noops',
        'libero_10': 'libero_10',
    }


def test_both_readouts_are_offered_for_weights_without_a_mark(checkpoint, tmp_path):
    assert list(check_checkpoint(checkpoint).facts['read-out']) == ['-58', '-56']
    marked = tiny_checkpoint(tmp_path, pruning_trained='lightvla')
    report = check_checkpoint(marked)
    assert list(report.facts['read-out']) == ['-58']
    assert report.facts['modes']['lightvla'] == 'fits'
    assert 'not trained' in check_checkpoint(checkpoint).facts['modes']['lightvla']


def test_missing_unexpected_and_misshapen_tensors_are_all_named(copy):
    def change(tensors):
        del tensors['projector.fc1.weight']
        tensors['projector.fc9.weight'] = torch.zeros(2)
        tensors['projector.fc3.bias'] = torch.zeros(3)

    rewrite(copy, change)
    found = problems(copy)
    assert '1 tensor(s) missing: projector.fc1.weight' in found
    assert '1 tensor(s) unexpected: projector.fc9.weight' in found
    assert 'projector.fc3.bias [3] instead of [32]' in found
    assert main([str(copy)]) == 1


def test_tensors_that_are_no_floats_are_a_problem(copy):
    def change(tensors):
        key = 'projector.fc1.weight'
        tensors[key] = tensors[key].to(torch.int8)

    rewrite(copy, change)
    assert 'type I8' in problems(copy)


def test_a_missing_and_a_second_head_are_problems(copy):
    (head,) = copy.glob('action_head--*.pt')
    shutil.copy(head, copy / 'action_head--9_checkpoint.pt')
    assert 'more than one action_head' in problems(copy)
    for path in copy.glob('action_head--*.pt'):
        path.unlink()
    assert 'no action_head--*_checkpoint.pt' in problems(copy)


def test_statistics_of_another_width_or_order_are_problems(copy):
    path = copy / 'dataset_statistics.json'
    statistics = json.loads(path.read_text())
    statistics['tabletop']['action']['q99'][2] = -7.0
    path.write_text(json.dumps(statistics))
    assert 'a q99 below its q01' in problems(copy)
    statistics['tabletop']['proprio']['q01'] = [0.0] * 3
    path.write_text(json.dumps(statistics))
    assert 'do not have 8 numbers each' in problems(copy)


def test_a_missing_and_a_foreign_tokenizer_are_problems(copy):
    (copy / 'tokenizer.json').write_text('{}')
    assert 'tokenizer: ' in problems(copy)
    (copy / 'tokenizer.json').unlink()
    assert 'neither tokenizer.json nor tokenizer.model' in problems(copy)


def test_a_truncated_file_and_a_broken_config_are_problems_and_no_tracebacks(copy):
    path = copy / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:1000])
    assert 'not a valid safetensors file' in problems(copy)
    (copy / 'config.json').write_text('{')
    report = check_checkpoint(copy)
    assert 'not valid JSON' in report.problems[0]
    assert 'PROBLEM' in text(report)


# -- memory ------------------------------------------------------------------------------------
LOAD = """
import sys, torch
from vla_prune_ros.vla import OpenVLAOFT
def kilobytes(key):
    lines = open('/proc/self/status').read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key)))
torch.set_num_threads(1)
torch.ones(8, 8).to(torch.bfloat16) @ torch.ones(8, 8).to(torch.bfloat16)
before = kilobytes('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')  # the peak counts from here
model = OpenVLAOFT.from_pretrained(sys.argv[1], torch.bfloat16)
print(before * 1024, kilobytes('VmHWM') * 1024, sum(p.numel() for p in model.parameters()))
"""


def random_checkpoint(directory: Path, config: OpenVLAConfig, shard: int) -> int:
    """Write random weights shard by shard, never holding more than one; returns their bytes."""
    with torch.device('meta'):
        model = OpenVLAOFT(config)
    noise = torch.randn(1 << 20).to(torch.bfloat16)

    def tensor(shape):
        n = torch.Size(shape).numel()
        return noise.repeat(-(-n // len(noise)))[:n].view(shape)

    shards, size = [{}], 0
    for key, shape in published_shapes(model).items():
        n_bytes = 2 * torch.Size(shape).numel()
        if shards[-1] and size + n_bytes > shard:
            shards.append({})
            size = 0
        shards[-1][key] = shape
        size += n_bytes
    where = {}
    for k, shapes in enumerate(shards):
        name = f'model-{k + 1:05}-of-{len(shards):05}.safetensors'
        save_file({key: tensor(shape) for key, shape in shapes.items()}, directory / name)
        where |= dict.fromkeys(shapes, name)
    index = {'metadata': {}, 'weight_map': where}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index))
    for name in ('action_head', 'proprio_projector'):
        state = {k: tensor(p.shape) for k, p in getattr(model, name).named_parameters()}
        torch.save(state, directory / f'{name}--1_checkpoint.pt')
    (directory / 'config.json').write_text(json.dumps(config.to_dict()))
    files = [*directory.glob('*.safetensors'), *directory.glob('*.pt')]
    return sum(file.stat().st_size for file in files)


def load_in_a_process(directory: Path, timeout: float) -> tuple[int, int, int]:
    """Memory before loading, the peak while loading (bytes), and the number of parameters."""
    done = subprocess.run(
        [sys.executable, '-c', LOAD, str(directory)],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, peak, parameters = map(int, done.stdout.split())
    return before, peak, parameters


def test_loading_costs_the_size_of_the_checkpoint_and_a_tenth(tmp_path):
    size = random_checkpoint(tmp_path, SIZES['small'], shard=80_000_000)
    assert size > 200e6
    before, peak, _ = load_in_a_process(tmp_path, timeout=120)
    assert peak - before < 1.1 * size


def available_memory() -> int:
    lines = Path('/proc/meminfo').read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith('MemAvailable')))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_7b_checkpoint_loads_within_its_size_and_a_tenth(tmp_path):
    size = 15_400_000_000
    if available_memory() < 1.15 * size:
        pytest.skip(f'{available_memory() / 1e9:.0f} GB of memory are free; 18 GB are needed')
    if shutil.disk_usage(tmp_path).free < 1.1 * size:
        pytest.skip('17 GB of disk are needed')
    size = random_checkpoint(tmp_path, SIZES['7b'], shard=2_000_000_000)
    os.sync()
    try:
        report = check_checkpoint(tmp_path)
        assert report.facts['tensors']['found'] == 982
        assert report.facts['parameters']['loaded but not used'] > 0
        assert report.problems == [
            f'tokenizer: neither tokenizer.json nor tokenizer.model in {tmp_path}'
        ]
        before, peak, parameters = load_in_a_process(tmp_path, timeout=900)
        print(f'size {size}, before {before}, peak {peak}, parameters {parameters}')
        assert parameters > 7e9
        assert peak < 1.1 * size
    finally:
        shutil.rmtree(tmp_path)
