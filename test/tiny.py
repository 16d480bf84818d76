# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints and observations for tests: random weights, the rest real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vla_prune_ros.policy import Observation
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import save_pretrained
from vla_prune_ros.vla.config import LlamaConfig, OpenVLAConfig, TowerConfig
from vla_prune_ros.vla.tokenizer import build_tokenizer

INSTRUCTIONS = ('pick up the red block', 'put the blue block on the plate')
UNNORM_KEY = 'tabletop'


def norm_stats(action_dim: int = 7, proprio_dim: int = 8) -> dict:
    """Statistics of a made-up data set: the last action number (gripper) is not scaled."""
    mask = [True] * (action_dim - 1) + [False]
    action = {'q01': [-0.5] * action_dim, 'q99': [0.75] * action_dim, 'mask': mask}
    proprio = {'q01': [-1.0] * proprio_dim, 'q99': [1.5] * proprio_dim}
    for block in (action, proprio):
        size = len(block['q01'])
        block |= {'min': [-2.0] * size, 'max': [2.0] * size}
    return {UNNORM_KEY: {'action': action, 'proprio': proprio}}


# The presets at the size of `tiny_config`; padded_vocabulary leaves room for the tokens.
VARIANTS = {
    'libero': {},
    'three_views': {'n_views': 3},
    'one_view_no_state': {'n_views': 1, 'proprio_dim': 0},
    'libero_tokens': {'n_views': 1, 'proprio_dim': 0, 'head': 'tokens'},
    'bridge': {'n_views': 1, 'proprio_dim': 7, 'chunk_len': 5, 'camera_names': ('image_0',)},
    'aloha': {
        'n_views': 3, 'action_dim': 14, 'proprio_dim': 14, 'chunk_len': 25,
        'normalisation': 'bounds', 'action_kind': 'joint_positions', 'control_rate': 25.0,
    },
    'film': {'film': True},
}  # fmt: skip


def variant(name: str) -> dict:
    """Changes of `tiny_config` that make it a variant, statistics included."""
    changes = VARIANTS[name]
    statistics = norm_stats(changes.get('action_dim', 7), changes.get('proprio_dim', 8))
    tokens = {'padded_vocabulary': 0} if changes.get('head') == 'tokens' else {}
    return {**changes, **tokens, 'norm_stats': statistics}


def tiny_config(**changes) -> OpenVLAConfig:
    """Sizes unlike the published ones: 16 patches per view, width 32, 4 layers."""
    config = OpenVLAConfig(
        featurizer=TowerConfig(
            24, 3, 2, 48, 14, 56, reg_tokens=2, class_token=True, layer_scale=True
        ),
        fused_featurizer=TowerConfig(16, 3, 2, 31, 14, 56, attn_pool=True),
        llama=LlamaConfig(32, 4, 4, 56, 256),
        pad_id=3,
        norm_stats=norm_stats(),
    )
    return replace(config, **changes)


def tiny_model(seed: int = 0, **changes) -> OpenVLAOFT:
    """Return a randomly initialised model in evaluation mode."""
    torch.manual_seed(seed)
    return OpenVLAOFT(tiny_config(**changes)).eval()


def tiny_checkpoint(directory: str | Path, seed: int = 0, dtype=torch.float32, **changes) -> Path:
    """Write a random checkpoint with tokenizer in the published layout; returns its directory."""
    directory = Path(directory)
    n_tokens = build_tokenizer(INSTRUCTIONS, directory)
    config = tiny_config(**changes)
    if config.head == 'tokens':  # the words come first, the bins of the actions last
        n_tokens = max(config.llama.vocab_size, n_tokens + 256)
    config = replace(config, llama=replace(config.llama, vocab_size=n_tokens))
    torch.manual_seed(seed)
    save_pretrained(shaken(OpenVLAOFT(config)), directory, dtype)
    return directory


def shaken(model: OpenVLAOFT) -> OpenVLAOFT:
    """Give modulations (FiLM) weights with which they do something; nothing without."""
    g = torch.Generator().manual_seed(5)
    for key, p in model.named_parameters():
        if '.scale.' in key or '.shift.' in key:
            torch.nn.init.normal_(p, std=0.3, generator=g)
    return model


def inputs(config: OpenVLAConfig, seed: int = 0, length: int = 12, batch: int = 1, views: int = 2):
    """Return random pixel_values, input_ids and proprio for a model of this config."""
    g = torch.Generator().manual_seed(seed)
    size = config.image_size
    pixels = torch.randn(batch, 6 * views, size, size, generator=g)
    ids = torch.randint(4, config.llama.vocab_size, (batch, length), generator=g)
    ids[:, 0] = config.bos_id
    proprio = torch.rand(batch, config.proprio_dim, generator=g) * 2 - 1
    return pixels, ids, proprio if config.use_proprio else None


def observation(
    seed: int = 0,
    stamp: float = 0.0,
    instruction: str = INSTRUCTIONS[0],
    size: int = 128,
    config: OpenVLAConfig | None = None,
) -> Observation:
    """Return a random observation of two cameras, or of those of a config."""
    rng = np.random.default_rng(seed)
    images = {
        name: np.repeat(
            np.repeat(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8), 8, 0), 8, 1
        )
        for name in (config.cameras if config else ('agentview', 'wrist'))
    }
    numbers = config.proprio_dim if config else 8
    state = rng.uniform(-1, 1, numbers) if numbers else None
    return Observation(images, state, instruction, stamp)
