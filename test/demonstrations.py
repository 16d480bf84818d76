# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Made-up demonstrations, a tiny policy to train in seconds, and the command line of its run."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from conftest import REPOSITORY
from tiny import INSTRUCTIONS, tiny_checkpoint

from vla_prune_ros.datasets import DataSet, Episode, make_store
from vla_prune_ros.training.finetune import Run
from vla_prune_ros.training.recipe import RECIPES, Recipe
from vla_prune_ros.vla.pictures import encode_jpeg


class Made(DataSet):
    """Random episodes of given lengths; the actions depend on what is seen."""

    format, rate = 'made', 10.0

    def __init__(
        self,
        path: Path,
        name: str = 'made',
        lengths=(12, 10, 9),
        seed: int = 0,
        cameras=('agentview', 'wrist'),
        numbers: int = 7,
        states: int = 8,
    ) -> None:
        self.path, self.name, self.notes, self.cameras = path, name, [], tuple(cameras)
        self.lengths, self.seed, self.numbers, self.states = lengths, seed, numbers, states
        path.mkdir(parents=True, exist_ok=True)
        (path / 'data').write_text(f'{name} {lengths} {seed} {cameras} {numbers} {states}')

    def __len__(self):
        return len(self.lengths)

    def files(self):
        return [self.path / 'data']

    def read(self, index):
        n, rng = self.lengths[index], np.random.default_rng([self.seed, index])
        actions = rng.uniform(-1, 1, (n, self.numbers)).astype(np.float32)
        actions[:, 3] = 0.25  # a number that never changes
        actions[:, -1] = actions[:, 0] > 0

        def pictures(view):
            frames = rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)
            frames[:, :, :, view] = (127 * (actions[:, 0] + 1)).astype(np.uint8)[:, None, None]
            return [encode_jpeg(frame) for frame in frames]

        return Episode(
            id=str(index),
            file=self.path,
            instructions=(INSTRUCTIONS[index % 2],),
            actions=actions,
            proprio=rng.uniform(-1, 1, (n, self.states)).astype(np.float32)
            if self.states
            else None,
            pictures={name: pictures(view) for view, name in enumerate(self.cameras)},
        )


def made_store(folder: Path, name: str = 'made', **changes) -> Path:
    """The store of such a data set."""
    return make_store(
        Made(folder / name, name, **changes), folder / f'{name}.store', progress=False
    )


def tiny_run(folder: Path, output: str = 'out', recipe: Recipe | None = None, **changes) -> Run:
    """A run of a few steps on made-up data; both are made in `folder` at the first call."""
    start = folder / 'start'
    if 'start' not in changes and not start.exists():
        tiny_checkpoint(start)
        made_store(folder)
    run = Run(
        start=start,
        output=folder / output,
        stores=(folder / 'made.store',),
        recipe=recipe or tiny_recipe(),
        save_every=2,
        log_every=1,
    )
    return replace(run, **changes)


def tiny_recipe(kind: str = 'oft', name: str = 'house', **changes) -> Recipe:
    """A recipe of four steps of four samples."""
    recipe = replace(RECIPES[kind][name], steps=4, batch_size=4, warmup=0, lora_rank=0)
    return replace(recipe, **changes)


COMMAND = ('oft', '--steps', '4', '--batch-size', '4', '--warmup', '0', '--lora-rank', '0')


def verb(folder, out, *options, launcher=(sys.executable, '-m')):
    """The command line of a tiny run on the golden HDF5 file."""
    data = next((REPOSITORY / 'test/data/training').glob('*_demo.hdf5'))
    command = [*launcher, 'vla_prune_ros', 'train', *COMMAND, '--start', str(folder / 'start')]
    command += ['--data', str(data), '--out', str(out), '--stores', str(folder / 'stores')]
    return [*command, '--log-every', '1', *map(str, options)]


def environment():
    """One thread, no GPU."""
    return os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


def assert_equal(a, b):
    """Two training states have the same weights, bit for bit."""
    assert a['step'] == b['step']
    assert all(torch.equal(a['learner'][name], b['learner'][name]) for name in a['learner'])
    assert all(torch.equal(x, y) for x, y in zip(a['average'], b['average'], strict=True))
