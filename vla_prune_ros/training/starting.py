# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model that a training run starts from, and the statistics that go with its heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vla_prune_ros.datasets import Store
from vla_prune_ros.pruning.lightvla import LightVLA
from vla_prune_ros.training.lora import add_adapters, load_adapters
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.heads import ActionHead, ProprioProjector, TokenHead
from vla_prune_ros.vla.normalisation import BOUNDS, resolve_unnorm_key

if TYPE_CHECKING:
    from vla_prune_ros.training.finetune import Run

_BEYOND = 0.1  # share of the range by which data may lie outside of it without a warning


def start_model(run: Run, stores: Sequence[Store], device: str) -> OpenVLAOFT:
    """Load, with fresh heads and adapters as the recipe says, ready to be trained.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ModuleNotFoundError: LoRA is wanted and peft is not installed.
        ValueError: the checkpoint is malformed.
    """
    torch.manual_seed(run.seed)
    variant = variant_of(run)
    config = OpenVLAConfig.from_directory(run.start, variant)
    rank = run.recipe.rank(count_weights(config))
    dtype = precision(run, device, rank)
    model = OpenVLAOFT.from_pretrained(run.start, dtype, device, variant).train()
    config = model.config
    if run.recipe.fresh_heads:
        config = fitting_config(config, stores, run.chunk)
        _fresh_heads(model, config)
    elif config.head != 'l1':
        raise ValueError(f'{run.start} has actions as tokens; train an L1 head: --fresh-heads')
    trained = LightVLA.name if run.lightvla else config.pruning_trained
    model.config = replace(config, pruning_trained=trained)
    if run.adapter is not None:
        load_adapters(model, run.adapter)
    elif rank:
        add_adapters(model, rank, run.recipe.lora_convolutions)
    return model


def variant_of(run: Run) -> str:
    """What is declared of the start; the weights of OpenVLA itself have no head and no state."""
    bare = run.recipe.fresh_heads and not any(run.start.glob('action_head--*.pt'))
    return run.variant or ('libero_tokens' if bare else '')


def fitting_config(config: OpenVLAConfig, stores: Sequence[Store], chunk: int) -> OpenVLAConfig:
    """The model with an L1 head for the data: its numbers, cameras and statistics."""
    first = stores[0]
    return replace(
        config,
        head='l1',
        action_dim=first.actions.shape[1],
        proprio_dim=0 if first.proprio is None else first.proprio.shape[1],
        n_views=len(first.cameras),
        camera_names=first.cameras,
        chunk_len=chunk or config.chunk_len,
        control_rate=first.rate or config.control_rate,
        norm_stats=fresh_statistics(stores),
    )


def _fresh_heads(model: OpenVLAOFT, config: OpenVLAConfig) -> None:
    to, width = {'dtype': model.dtype, 'device': model.device}, config.llama.hidden_size
    if isinstance(model.action_head, TokenHead):  # stays in the files
        weight = model.action_head.lm_head.weight.detach()
        model.unused['language_model.lm_head.weight'] = weight.cpu()
    model.action_head = ActionHead(config).to(**to)
    if config.use_proprio:
        model.proprio_projector = ProprioProjector(config.proprio_dim, width).to(**to)
    elif hasattr(model, 'proprio_projector'):
        del model.proprio_projector


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
