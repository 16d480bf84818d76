# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Broken pictures, bags and checkpoints: a clean result or the documented error, nothing else.

Each part runs in a process of its own, so that a crash, a hang and memory without bound are seen.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HERE
from tiny import tiny_checkpoint


def broken(part: str, folder: Path, seed: int, count: int) -> None:
    """Feed `count` broken files to a part."""
    command = [sys.executable, str(HERE / 'corpus.py'), part, str(folder), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    last = (folder / 'last').read_text() if (folder / 'last').exists() else 'none'
    assert done.returncode == 0, f'ended in case {last}:\n{done.stderr[-2000:]}'
    outcome = json.loads(done.stdout)
    assert outcome['wrong'] == []
    assert outcome['clean'] and outcome['refused'], 'both must be among them'


@pytest.mark.slow
@pytest.mark.parametrize('seed', [1, 2])
def test_broken_pictures_are_decoded_or_refused(tmp_path, seed):
    pytest.importorskip('cv2')
    broken('images', tmp_path, seed, 2000)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [1, 2])
def test_broken_bags_are_read_or_refused(tmp_path, seed):
    pytest.importorskip('rosbags')
    shutil.copytree(
        HERE / 'data' / 'bags' / 'put_on_plate', tmp_path / 'valid',
        ignore=shutil.ignore_patterns('golden'),
    )  # fmt: skip
    broken('bags', tmp_path, seed, 100)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [1, 2])
def test_broken_checkpoints_are_loaded_or_refused_and_always_checked(tmp_path, seed):
    tiny_checkpoint(tmp_path / 'valid')
    broken('checkpoints', tmp_path, seed, 400)


def test_the_corpus_is_the_same_every_time_and_finds_a_part_that_is_wrong(tmp_path):
    """It has to fail where a decoder lets another error through."""
    import random

    import corpus

    data = bytes(range(256)) * 8
    both = [[corpus.broken_bytes(data, random.Random(seed)) for seed in range(50)] for _ in '12']
    assert both[0] == both[1] and sum(out != data for _, out in both[0]) > 40

    def wrong() -> None:
        raise KeyError(7)

    def silent() -> None:
        raise ValueError

    ended = {'clean': 0, 'refused': 0}
    assert corpus._outcome(wrong, ValueError, ended).startswith('KeyError')
    assert 'without a reason' in corpus._outcome(silent, ValueError, ended)
    assert corpus._outcome(print, ValueError, ended) == '' and ended['clean'] == 1
