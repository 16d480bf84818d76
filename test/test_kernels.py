# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels: the same numbers as torch, and machine code for GPUs that are not here.

In processes of their own: the interpreter must be on before Triton is imported, and Triton's
compiler does not go together with that of Mesa, which other tests load.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch

from vla_prune_ros.runtime import fast
from vla_prune_ros.vla.operations import TORCH

HERE = Path(__file__).parent
with_triton = pytest.mark.skipif(
    find_spec('triton') is None, reason='no Triton: pip install -r requirements/kernels.txt'
)
FOLDER = Path(fast.__file__).parent / 'kernels'
KERNELS = {
    name
    for path in FOLDER.glob('*.py')
    for name in re.findall(r'def (\w+_kernel)', path.read_text())
}
# Bytes of shared memory that one program may have, by capability.
SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command], cwd=HERE.parent, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def agree(device, **environment):
    done = run(
        '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(HERE / 'kernels_agree.py'),
        KERNEL_DEVICE=device, **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@with_triton
@pytest.mark.timeout(600)  # half a minute of work, of which a busy machine makes minutes
def test_kernels_agree_with_torch_in_the_interpreter():
    agree('cpu', TRITON_INTERPRET='1')


@pytest.mark.gpu
@with_triton
def test_kernels_agree_with_torch_on_a_gpu():
    agree('cuda')


@with_triton
@pytest.mark.parametrize(
    'capabilities',
    [['90'], pytest.param(['80', '86', '87', '89', '100', '120'], marks=pytest.mark.slow)],
    ids=['sm_90', 'others'],
)
def test_kernels_compile_without_spilling(capabilities, tmp_path):
    done = run(
        str(HERE / 'kernels_compile.py'), *capabilities, TRITON_CACHE_DIR=str(tmp_path),
        TRITON_INTERPRET='0',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {(one, name) for one, name, *_ in lines} == {*product(capabilities, KERNELS)}
    for capability, name, shared, *spilled in lines:
        assert int(shared) <= 1024 * SHARED[int(capability)], (capability, name)
        assert spilled == ['0', '0'], (capability, name)


def test_without_a_gpu_torch_computes():
    assert fast.operations_for(torch.device('cpu')) is TORCH


def test_another_choice_is_refused(monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, 'fast')
    with pytest.raises(ValueError, match='auto, torch, triton'):
        fast.operations_for(torch.device('cpu'))


def test_kernels_that_do_not_work_are_an_error_only_where_they_are_forced(monkeypatch):
    monkeypatch.setattr(fast, '_kernels', lambda device: (None, 'no compiler'))
    assert fast.operations_for(torch.device('cuda')) is TORCH
    monkeypatch.setenv(fast.VARIABLE, 'triton')
    with pytest.raises(ValueError, match='no compiler'):
        fast.operations_for(torch.device('cuda'))


def test_nothing_imports_triton_before_a_gpu_asks():
    code = 'import sys, vla_prune_ros.policy; sys.exit("triton" in sys.modules)'
    assert run('-c', code).returncode == 0
