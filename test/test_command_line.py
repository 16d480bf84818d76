# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the verbs' command lines share: arguments, endings, one line for every error."""

import argparse
import os
import subprocess
import sys

import pytest
import torch

from vla_prune_ros import __main__
from vla_prune_ros.benchmark import bench
from vla_prune_ros.command_line import (
    at_least,
    exit_code_of,
    listed,
    require_device,
    write_json,
)
from vla_prune_ros.evaluation import calibrate, evaluate
from vla_prune_ros.training import train


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'many', '', '--2'])
def test_a_number_below_the_least_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match='from 1 on'):
        at_least(1)(text)
    assert at_least(-3)('-2') == -2


def test_a_list_of_numbers_is_read_or_refused_with_an_example():
    assert listed(int, '0,150')('0,50') == [0, 50]
    with pytest.raises(argparse.ArgumentTypeError, match=r"'a,b' is no list .* such as 0,150"):
        listed(int, '0,150')('a,b')


def test_a_verb_that_is_interrupted_where_it_does_not_expect_it_says_so(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__.importlib, 'import_module', interrupted)
    assert __main__.main(['check', 'tabletop']) == 130
    assert capsys.readouterr().err == '\ncheck: interrupted\n'


@pytest.mark.parametrize(
    ('error', 'code', 'text'),
    [
        (ValueError('a bad value'), 2, 'verb: a bad value\n'),
        (OSError('no such file'), 2, 'verb: no such file\n'),
        (ImportError('no package'), 2, 'verb: no package\n'),
        (KeyboardInterrupt(), 130, '\nverb: interrupted; it goes on\n'),
    ],
)
def test_what_ends_a_verb_is_one_line_and_an_exit_code(error, code, text, capsys):
    def run():
        raise error

    assert exit_code_of('verb', run, 2, 'it goes on') == code
    assert capsys.readouterr().err == text
    assert exit_code_of('verb', lambda: 7) == 7


def test_a_defect_is_not_taken_for_bad_input():
    with pytest.raises(KeyError):
        exit_code_of('verb', lambda: {}['x'])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize(
    ('main', 'arguments', 'code'),
    [
        (bench.main, ['--size', 'tiny'], 2),
        (evaluate.main, ['--modes', 'none', '--quiet'], 1),
        (calibrate.main, ['--quiet'], 1),
        (train.main, ['lightvla', '--start', 'nowhere', '--data', 'nowhere'], 1),
    ],
)
def test_a_gpu_that_is_not_there_is_one_line_in_every_verb(
    main, arguments, code, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, '--device', 'cuda']) == code
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith('--device cuda: torch finds no GPU here')
    )


def test_an_unknown_device_is_named():
    with pytest.raises(RuntimeError, match='toaster'):
        require_device('toaster')
    require_device('cpu')


def test_results_are_written_into_new_folders(tmp_path):
    write_json(tmp_path / 'a' / 'b.json', {'x': 1})
    assert (tmp_path / 'a' / 'b.json').read_text() == '{\n "x": 1\n}\n'


def test_the_module_needs_no_torch():
    code = 'import sys, vla_prune_ros.command_line; print("torch" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'False\n'


def test_a_crash_in_native_code_says_where_it_was():
    code = 'import ctypes; from vla_prune_ros.__main__ import main; main(["--help"])\n'
    code += 'def where():\n    ctypes.string_at(0)\nwhere()'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode < 0
    assert 'Segmentation fault' in done.stderr and 'in where' in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, '-m', 'vla_prune_ros', 'shifts', 'list']
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, '')
