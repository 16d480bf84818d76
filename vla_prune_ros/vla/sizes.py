# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Models of named sizes with random weights, to measure speed where no checkpoint is at hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from vla_prune_ros.vla.config import DINO, SIGLIP, LlamaConfig, OpenVLAConfig, TowerConfig
from vla_prune_ros.vla.openvla_oft import OpenVLAOFT
from vla_prune_ros.vla.variant import applied


def _statistics(action_dim: int, proprio_dim: int) -> dict:
    """Of made-up data; the last number of an end-effector action, the gripper, is not scaled."""

    def block(size: int, **more: list) -> dict:
        low, high = [-1.0] * size, [1.0] * size
        return {'q01': low, 'q99': high, 'min': low, 'max': high, **more}

    mask = [True] * 6 + [False] if action_dim == 7 else [True] * action_dim
    return {'random': {'action': block(action_dim, mask=mask), 'proprio': block(proprio_dim)}}


SIZES: dict[str, OpenVLAConfig] = {
    # 2 x 16 patches: everything works, nothing takes time.
    'tiny': OpenVLAConfig(
        TowerConfig(48, 3, 2, 96, 14, 56, reg_tokens=4, class_token=True, layer_scale=True),
        TowerConfig(32, 3, 2, 64, 14, 56, attn_pool=True),
        LlamaConfig(64, 8, 4, 160, 512),
        pad_id=3,
        norm_stats=_statistics(7, 8),
    ),
    # About 100 M parameters, 2 x 256 patches, and the shares of the work that the published model
    # has: 9 % of the FLOPs in the towers, and 1 % more if logits were computed. For CPUs.
    'small': OpenVLAConfig(
        TowerConfig(224, 8, 4, 896, reg_tokens=4, class_token=True, layer_scale=True),
        TowerConfig(256, 8, 4, 1024, attn_pool=True),
        LlamaConfig(576, 20, 9, 1536, 2048),
        pad_id=3,
        norm_stats=_statistics(7, 8),
    ),
    '7b': OpenVLAConfig(DINO, SIGLIP, LlamaConfig(), norm_stats=_statistics(7, 8)),
}


def random_model(
    size: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = 'cpu',
    seed: int = 0,
    n_layers: int | None = None,
    variant: str = '',
) -> OpenVLAOFT:
    """Return a model of a named size with random weights, drawn where it will run.

    Args:
        size: a key of `SIZES`.
        dtype: floating-point type of the weights.
        device: where they are drawn and stay; a 7B model in bfloat16 needs 15 GB there.
        seed: of the draw; the generator of the device is left in another state.
        n_layers: decoder layers, where fewer than the size has must do.
        variant: of the model, see `variant.declared`; '' is the published one.

    Raises:
        ValueError: unknown size or variant; the message lists the known ones.
    """
    if size not in SIZES:
        raise ValueError(f'unknown size {size!r}; known: {", ".join(SIZES)}')
    config = SIZES[size]
    if n_layers is not None:
        config = replace(config, llama=replace(config.llama, n_layers=n_layers))
    if variant:
        config = OpenVLAConfig.from_dict(applied(config.to_dict(), variant))
        config = replace(config, norm_stats=_statistics(config.action_dim, config.proprio_dim))
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return OpenVLAOFT(config).eval()
    finally:
        torch.set_default_dtype(before)
