# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The embedded tabletop policy: its sizes and the recipe that trains it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vla_prune_ros.sim.tabletop.tasks import TASKS
from vla_prune_ros.training.behaviour_cloning import CloningConfig, clone
from vla_prune_ros.training.dataset import DemonstrationSet
from vla_prune_ros.training.demonstrations import (
    CollectionConfig,
    action_statistics,
    collect,
)
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


@dataclass(frozen=True)
class Recipe:
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


def train_embedded(recipe: Recipe, progress: bool = True) -> Path:
    """Run every stage that is not finished yet; returns the last checkpoint directory."""
    collection = CollectionConfig(
        recipe.demonstrations, recipe.episodes, stride=4, seed=recipe.seed
    )
    files = collect(collection, recipe.workers, progress)
    detours = replace(
        collection,
        directory=recipe.out / 'detours',
        first=recipe.episodes,
        episodes=recipe.detours,
        detour=36,
        alternatives=2,
    )
    files += collect(detours, recipe.workers, progress)
    start = recipe.out / 'fresh'
    if not (start / 'dataset_statistics.json').exists():
        fresh_checkpoint(start, DemonstrationSet(files, recipe.out / 'frames.npy'), recipe.seed)
    stage = recipe.out / 'stage_0'
    base = CloningConfig(
        start=start,
        output=stage,
        files=tuple(files),
        cache=recipe.out / 'frames.npy',
        steps=recipe.steps,
        validation=recipe.validation,
        workers=recipe.workers,
        device=recipe.device,
        seed=recipe.seed,
    )
    clone(base, progress)
    for number, (episodes, steps) in enumerate(recipe.rounds, start=1):
        collection = CollectionConfig(
            recipe.out / f'dagger_{number}',
            episodes,
            first=recipe.episodes + 10_000 * number,
            stride=6,
            policy=stage,
            alternatives=1,
            seed=recipe.seed,
        )
        files = [*files, *collect(collection, recipe.workers, progress)]
        start, stage = stage, recipe.out / f'stage_{number}'
        clone(
            replace(
                base,
                start=start,
                output=stage,
                files=tuple(files),
                cache=recipe.out / f'frames_{number}.npy',
                steps=steps,
                seed=recipe.seed + number,
            ),
            progress,
        )
    return stage


def fresh_checkpoint(directory: Path, data: DemonstrationSet, seed: int) -> None:
    """Write randomly initialised weights with the data's statistics and a tokenizer."""
    vocab = build_tokenizer([task.instruction for task in TASKS], directory)
    statistics = {UNNORM_KEY: action_statistics(data.actions, data.proprio)}
    torch.manual_seed(seed)
    config = replace(SIZES, llama=replace(SIZES.llama, vocab_size=vocab), norm_stats=statistics)
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
