# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A training run that is interrupted or dies, and goes on to the same weights, bit for bit."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch
from demonstrations import assert_equal, environment, tiny_run, verb

from vla_prune_ros.training.folder import STATE, Folder

pytestmark = pytest.mark.slow
pytest.importorskip('h5py', reason='LIBERO files need h5py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('killed')
    tiny_run(folder)
    return folder


def log_lines(out):
    path = out / 'log.jsonl'
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('kill', [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_run_that_was_killed_ends_with_the_same_weights(folder, tmp_path, kill, workers):
    """The first process gets the signal; workers hear of it, or that it is gone."""
    options = ('--workers', workers, '--steps', 60, '--save-every', 5)
    straight = tmp_path / 'straight'
    done = subprocess.run(
        verb(folder, straight, *options), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    command, out = verb(folder, tmp_path / 'killed', *options), tmp_path / 'killed'
    running = subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    while running.poll() is None and len(log_lines(out)) < 12:
        time.sleep(0.01)
    running.send_signal(kill)
    text = running.communicate()[1].decode()  # ends when the last of its processes has ended
    reached = max(Folder(out).checkpoints())
    assert running.returncode == (130 if kill != signal.SIGKILL else -kill), text
    assert 5 <= reached < 60
    if kill != signal.SIGKILL or workers > 1:
        assert reached >= 12, 'the step was finished and saved'
    if kill != signal.SIGKILL:
        assert 'goes on' in text
    (out / f'step-{reached + 1:06d}.partial').mkdir()  # as one that was killed while it saved
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    states = (torch.load(d / 'latest' / STATE, weights_only=True) for d in (straight, out))
    assert_equal(*states)
    assert [json.loads(line)['step'] for line in log_lines(out)] == [*range(1, 61)]


@pytest.mark.parametrize('workers', [1, 2])
def test_a_power_cut_while_saving_changes_no_weights(folder, tmp_path, workers):
    """All processes of a run die at once, with a checkpoint half written, again and again."""
    options = ('--workers', workers, '--steps', 40, '--save-every', 1)
    straight, out = tmp_path / 'straight', tmp_path / 'cut'
    run = {'env': environment(), 'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE}
    done = subprocess.run(verb(folder, straight, *options), **run)
    assert done.returncode == 0, done.stderr
    cut = []
    for _ in range(4):
        reached = max(Folder(out).checkpoints(), default=0)
        running = subprocess.Popen(verb(folder, out, *options), start_new_session=True, **run)
        begun = [f'step-{reached + n:06d}.partial' for n in range(3, 40)]
        while running.poll() is None and not any((out / name).exists() for name in begun):
            time.sleep(0.0005)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        cut += [p.name for p in out.glob('step-*.partial')]
    assert cut, 'no run was cut while it saved'
    assert max(Folder(out).checkpoints()) < 40
    done = subprocess.run(verb(folder, out, *options), **run)
    assert done.returncode == 0, done.stderr
    assert_equal(*(torch.load(d / 'latest' / STATE, weights_only=True) for d in (straight, out)))
    assert [json.loads(line)['step'] for line in log_lines(out)] == [*range(1, 41)]
    assert not list(out.glob('*.partial')), 'what was cut is cleared away'


def test_a_worker_that_is_killed_ends_the_run_with_a_line(folder, tmp_path):
    out = tmp_path / 'out'
    running = subprocess.Popen(
        verb(folder, out, '--workers', 2, '--steps', 5000), env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    while running.poll() is None and len(log_lines(out)) < 2:
        time.sleep(0.01)
    children = subprocess.run(
        ['ps', '-o', 'pid=', '--ppid', str(running.pid)], capture_output=True, text=True
    ).stdout.split()
    try:
        os.kill(int(children[-1]), signal.SIGKILL)  # behind the tracker and the first one
        text = running.communicate(timeout=120)[1].decode()
    finally:
        running.kill()
    assert running.returncode == 1
    assert 'a worker died' in text and 'goes on from the last save' in text
    assert 'Traceback' not in text
