# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The embedded tabletop policy: its sizes and the recipe that trains it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vla_prune_ros.datasets import ReadOptions, Store, make_store, open_dataset
from vla_prune_ros.datasets.statistics import statistics
from vla_prune_ros.sim.tabletop.tasks import TASKS
from vla_prune_ros.training.demonstrations import CHUNK, CollectionConfig, collect
from vla_prune_ros.training.finetune import Run, finetune
from vla_prune_ros.training.recipe import RECIPES, Recipe
from vla_prune_ros.vla import LlamaConfig, OpenVLAConfig, OpenVLAOFT, TowerConfig
from vla_prune_ros.vla.checkpoint import save_pretrained
from vla_prune_ros.vla.tokenizer import build_tokenizer

UNNORM_KEY = 'tabletop'
_TOWER = TowerConfig(dim=64, depth=3, heads=4, mlp_hidden=256, image_size=112)
SIZES = OpenVLAConfig(
    featurizer=replace(_TOWER, reg_tokens=4, class_token=True, layer_scale=True),
    fused_featurizer=replace(_TOWER, attn_pool=True),
    llama=LlamaConfig(hidden_size=128, n_layers=4, n_heads=4, mlp_hidden=256),  # and a vocabulary
    pad_id=3,
)

# From nothing, so at a higher rate; the tasks are told apart by colours, so those stay.
CLONING = replace(
    RECIPES['oft']['house'], learning_rate=1e-3, lora_rank=0, colour=False, clip_labels=False
)
BATCH = CLONING.batch_size


@dataclass(frozen=True)
class Stages:
    """Stages of the embedded policy's training.

    Behaviour cloning on `episodes` noisy expert episodes and `detours` more that begin with a
    detour and are labelled for three instructions, for `steps` optimiser steps; then, for each
    entry of `rounds`, (DAgger episodes driven by the learner, further steps on everything).
    Every checkpoint is tried in `validation` closed-loop episodes.
    """

    out: Path
    episodes: int = 840
    detours: int = 560
    steps: int = 3500
    rounds: tuple[tuple[int, int], ...] = ((400, 2200),)
    validation: int = 40
    workers: int = 4
    device: str = 'cpu'
    seed: int = 0

    @property
    def demonstrations(self) -> Path:
        """Folder of the expert's episodes."""
        return self.out / 'demonstrations'


def train_embedded(stages: Stages, progress: bool = True) -> Path:
    """Run every stage that is not finished yet; returns the last checkpoint directory."""
    collection = CollectionConfig(
        stages.demonstrations, stages.episodes, stride=4, seed=stages.seed
    )
    detours = replace(
        collection,
        directory=stages.out / 'detours',
        first=stages.episodes,
        episodes=stages.detours,
        detour=36,
        alternatives=2,
    )
    stores = [_stored(one, stages, progress) for one in (collection, detours) if one.episodes]
    start = stages.out / 'fresh'
    if not (start / 'dataset_statistics.json').exists():
        fresh_checkpoint(start, [Store(path) for path in stores], stages.seed)
    base = Run(
        start=start,
        output=stages.out / 'stage_0',
        stores=tuple(stores),
        recipe=_cloning(stages.steps),
        grounding=True,
        validation=stages.validation,
        workers=stages.workers,
        device=stages.device,
        seed=stages.seed,
    )
    trained = finetune(base, progress)
    for number, (episodes, steps) in enumerate(stages.rounds, start=1):
        collection = CollectionConfig(
            stages.out / f'dagger_{number}',
            episodes,
            first=stages.episodes + 10_000 * number,
            stride=6,
            policy=trained,
            alternatives=1,
            seed=stages.seed,
        )
        stores.append(_stored(collection, stages, progress))
        trained = finetune(
            replace(
                base,
                start=trained,
                output=stages.out / f'stage_{number}',
                stores=tuple(stores),
                recipe=_cloning(steps),
                seed=stages.seed + number,
            ),
            progress,
        )
    return trained


def _cloning(steps: int) -> Recipe:
    return replace(CLONING, steps=steps)


def _stored(collection: CollectionConfig, stages: Stages, progress: bool) -> Path:
    """Collect the episodes that are missing, and make their store."""
    collect(collection, stages.workers, progress)
    folder = collection.directory
    options = ReadOptions(format='tabletop', name=UNNORM_KEY)
    path = stages.out / 'stores' / folder.name
    return make_store(open_dataset(folder, options), path, options, progress=progress)


def fresh_checkpoint(directory: Path, stores: Sequence[Store], seed: int) -> None:
    """Write randomly initialised weights with the data's statistics and a tokenizer."""
    vocab = build_tokenizer([task.instruction for task in TASKS], directory)
    samples = [(store, store.samples(CHUNK)) for store in stores]
    actions = [s.actions(np.arange(len(s))).reshape(-1, 7) for _, s in samples]
    states = [store.proprio[s.frame] for store, s in samples if store.proprio is not None]
    entry = statistics(
        np.concatenate(actions),
        np.concatenate(states),
        [True] * 6 + [False],
        sum(len(store.episodes) for store in stores),
    )
    torch.manual_seed(seed)
    known = {UNNORM_KEY: entry}
    config = replace(SIZES, llama=replace(SIZES.llama, vocab_size=vocab), norm_stats=known)
    model = OpenVLAOFT(config)
    towers = model.vision_backbone
    with torch.no_grad():
        for tower in (towers.featurizer, towers.fused_featurizer):
            grid = config.featurizer.grid
            tower.pos_embed.copy_(grid_embedding(grid, tower.pos_embed.shape[-1])[None])
    save_pretrained(model, directory)


def grid_embedding(grid: int, dim: int) -> torch.Tensor:
    """Sines and cosines of row and column, [grid * grid, dim], patches row-major.

    A start for position embeddings that have no pretraining behind them: from random ones the
    policy learnt rows (which the decoder's rotary positions show, too) but no columns.
    """
    frequency = math.pi / grid * torch.arange(1, dim // 4 + 1)
    angle = torch.arange(grid)[:, None] * frequency / 2  # [grid, dim/4]
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, dim/2]
    rows, columns = wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
