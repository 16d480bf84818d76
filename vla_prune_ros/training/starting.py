# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model that a training run starts from, and the statistics that go with its heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from vla_prune_ros.datasets import Store
from vla_prune_ros.pruning.lightvla import LightVLA
from vla_prune_ros.training.lora import add_adapters, load_adapters
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.config import OpenVLAConfig, read_json
from vla_prune_ros.vla.heads import ActionHead, ProprioProjector, TokenHead
from vla_prune_ros.vla.normalisation import BOUNDS, resolve_unnorm_key
from vla_prune_ros.vla.variant import NO_DIFFUSION, PRESETS, applied

if TYPE_CHECKING:
    from vla_prune_ros.training.finetune import Run

_BEYOND = 0.1  # share of the range by which data may lie outside of it without a warning


def start_model(run: Run, stores: Sequence[Store], device: str) -> OpenVLAOFT:
    """Load, with fresh heads and adapters as the recipe says, ready to be trained.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ModuleNotFoundError: LoRA is wanted and peft is not installed.
        ValueError: the checkpoint is malformed, or data and what is to be trained do not fit.
    """
    torch.manual_seed(run.seed)
    fresh = run.recipe.fresh_heads
    variant = start_variant(run.start, run.variant, fresh)
    config = OpenVLAConfig.from_directory(run.start, variant)
    rank = run.recipe.rank(count_weights(config))
    dtype = precision(run, device, rank)
    model = OpenVLAOFT.from_pretrained(run.start, dtype, device, variant).train()
    config = model.config
    if fresh:
        config = fitting_config(goal_of(config, run.variant, run.chunk), stores, run.variant)
        _make_fit(model, config)
    trained = LightVLA.name if run.lightvla else config.pruning_trained
    model.config = replace(config, pruning_trained=trained)
    if run.adapter is not None:
        load_adapters(model, run.adapter)
    elif rank:
        add_adapters(model, rank, run.recipe.lora_convolutions)
    return model


def start_variant(start: Path, variant: str, fresh: bool) -> str:
    """What is declared of the files of a start.

    Where heads are fresh and the files have none, the declaration is of what is to be trained, and
    the weights of OpenVLA itself are read as those of one camera, no state and words for actions.
    """
    if not fresh or any(start.glob('action_head--*.pt')):
        return variant
    path = start / 'config.json'
    stated = path.is_file() and read_json(path).get('head')
    return '' if stated else 'libero_tokens'


def goal_of(config: OpenVLAConfig, variant: str, chunk: int) -> OpenVLAConfig:
    """What is to be trained with fresh heads: an L1 head and no more, unless it is declared.

    Raises:
        ValueError: a diffusion head is declared.
    """
    told = applied({}, variant)
    if told.get('head') == 'diffusion':
        raise ValueError(NO_DIFFUSION)
    kept = {k: told[k] for k in ('normalisation', 'action_kind') if k in told}
    return replace(
        config,
        head=told.get('head', 'l1'),
        film=config.film or told.get('film', False),
        chunk_len=chunk or told.get('chunk_len', config.chunk_len),
        control_rate=told.get('control_rate', 0.0),
        **kept,
    )


def fitting_config(goal: OpenVLAConfig, stores: Sequence[Store], variant: str) -> OpenVLAConfig:
    """The goal with the data's numbers, cameras, rate and statistics.

    Raises:
        ValueError: they contradict what is declared, or something must be declared.
    """
    told, first = applied({}, variant), stores[0]
    width = first.actions.shape[1]
    state = 0 if first.proprio is None else first.proprio.shape[1]
    if told.get('use_proprio') is False:
        state = 0
    data = {'action_dim': width, 'proprio_dim': state, 'n_views': len(first.cameras)}
    for key, value in data.items():
        if told.get(key, value) != value and not (key == 'proprio_dim' and state == 0):
            raise ValueError(f'{first.path}: {key} is {value}, but {told[key]} is declared')
    if told.get('use_proprio') and not state:
        raise ValueError(f'{first.path} has no robot state, but use_proprio is declared')
    silent = [k for k in ('normalisation', 'action_kind', 'chunk_len') if k not in told]
    if width != goal.action_dim and silent:
        raise ValueError(
            f'{first.path}: actions have {width} numbers, those of the start {goal.action_dim}; '
            f'declare what is to be trained, with --variant: {", ".join(silent)}, or a preset '
            f'({", ".join(PRESETS)})'
        )
    return replace(
        goal,
        **data,
        camera_names=first.cameras,
        control_rate=first.rate or goal.control_rate,
        norm_stats=fresh_statistics(stores),
    )


def _make_fit(model: OpenVLAOFT, config: OpenVLAConfig) -> None:
    """Give a model the heads of a config, and FiLM layers that do nothing yet."""
    to, width = {'dtype': model.dtype, 'device': model.device}, config.llama.hidden_size
    head = model.action_head
    if config.head == 'tokens':  # words are trained already
        head.chunk_len, head.action_dim = config.chunk_len, config.action_dim
    else:
        if isinstance(head, TokenHead):  # they stay in the files
            model.unused['language_model.lm_head.weight'] = head.lm_head.weight.detach().cpu()
        model.action_head = ActionHead(config).to(**to)
    if config.use_proprio:
        model.proprio_projector = ProprioProjector(config.proprio_dim, width).to(**to)
    elif hasattr(model, 'proprio_projector'):
        del model.proprio_projector
    if config.film and not model.config.film:
        model.vision_backbone.film = True
        for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
            for block in tower.blocks:
                for name in ('scale', 'shift'):
                    layer = nn.Linear(width, tower.config.dim)
                    nn.init.zeros_(layer.weight)
                    nn.init.zeros_(layer.bias)
                    setattr(block, name, layer.to(**to))


def precision(run: Run, device: str, rank: int) -> torch.dtype:
    """Type of frozen weights and of products; what is trained is float32."""
    if run.precision == 'auto':
        half = rank and torch.device(device).type == 'cuda'
        return torch.bfloat16 if half else torch.float32
    return getattr(torch, run.precision)


def count_weights(config: OpenVLAConfig) -> int:
    """Numbers in a model without its unused tensors."""
    with torch.device('meta'):
        return sum(p.numel() for p in OpenVLAOFT(config).parameters())


def fresh_statistics(stores: Sequence[Store]) -> dict[str, Any]:
    """Those of the data, one entry for each data set.

    Raises:
        ValueError: two data sets have the same name.
    """
    names = [store.name for store in stores]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'two data sets are called {twice[0]!r}; name one of them otherwise')
    return {store.name: dict(store.statistics) for store in stores}


def statistics_of(
    run: Run, config: OpenVLAConfig, stores: Sequence[Store]
) -> list[Mapping[str, Any]]:
    """What each store is normalised by: its own for fresh heads, else what the heads know."""
    if run.recipe.fresh_heads:
        return [config.norm_stats[store.name] for store in stores]
    key = resolve_unnorm_key(config.norm_stats, run.unnorm_key)
    return [config.norm_stats[key]] * len(stores)


def warnings_of(
    name: str,
    statistics: Mapping[str, Any],
    known: Mapping[str, Any],
    kind_of_bounds: str = 'bounds_q99',
) -> list[str]:
    """Where data of a name lies far outside of the range that trained heads know."""
    found = []
    for kind in ('action', 'proprio'):
        if kind not in statistics or kind not in known:
            continue
        low, high = (np.asarray(known[kind][edge]) for edge in BOUNDS[kind_of_bounds])
        ours = [np.asarray(statistics[kind][edge]) for edge in BOUNDS[kind_of_bounds]]
        if ours[0].shape != low.shape:
            continue  # a state that nobody takes, else it would have been refused
        room = _BEYOND * (high - low)
        outside = (ours[0] < low - room) | (ours[1] > high + room)
        mask = known[kind].get('mask', [True] * len(low))
        for i in np.flatnonzero(outside & np.asarray(mask)):
            found.append(
                f'{name}: {kind} number {i} is in {ours[0][i]:.3g}..{ours[1][i]:.3g}, the'
                f' heads were trained for {low[i]:.3g}..{high[i]:.3g}; --fresh-heads takes the'
                " data's"
            )
    return found


def rate_warnings(name: str, rate: float | None, trained: float) -> list[str]:
    """That the actions of a data set are not as far apart in time as those of the policy.

    Args:
        name: of the data set.
        rate: of its actions, Hz; None if unknown.
        trained: of the policy's, Hz; 0 if unknown.
    """
    if not rate or not trained or abs(rate - trained) <= 1e-3 * trained:
        return []
    return [
        f'{name}: actions at {rate:g} Hz, those of the policy are at {trained:g} Hz: they mean'
        ' another speed; if the files are wrong, --rate corrects them'
    ]
