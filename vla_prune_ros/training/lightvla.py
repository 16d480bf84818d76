# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LightVLA fine-tuning: the selector in the training pass.

Source: LightVLA (arXiv 2509.12594) and its released code: L1 on the action chunk alone, no budget
and no sparsity term; noise on the scores that fades out over the run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla_prune_ros.pruning.lightvla import draw_noise, select_for_training
from vla_prune_ros.vla import OpenVLAOFT


def training_pass(
    model: OpenVLAOFT,
    pixel_values: Tensor,
    input_ids: Tensor,
    proprio: Tensor | None,
    attention_mask: Tensor,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the policy with straight-through selection on a padded batch.

    Args:
        model: the policy.
        pixel_values: see `OpenVLAOFT.forward`.
        input_ids: see `OpenVLAOFT.forward`.
        proprio: see `OpenVLAOFT.forward`.
        attention_mask: see `OpenVLAOFT.forward`.
        noise: on the scores, [B, N, N] for N visual tokens.

    Returns:
        Normalised actions [B, chunk_len, action_dim], the states that they were read from, and how
        many different patches a sample chose on average, scalar.
    """
    visual = model.encode_images(pixel_values, model.modulation(input_ids, attention_mask))
    sequence = model.assemble(visual, input_ids, proprio, attention_mask)
    embeddings, positions = select_for_training(
        sequence.embeddings, sequence.layout, sequence.key_mask, noise
    )
    hidden = model.decoder(embeddings, position_ids=positions, key_mask=sequence.key_mask).hidden
    readout = model.read_out(hidden, key_mask=sequence.key_mask)
    chosen = positions[:, 1 : 1 + visual.shape[1]].sort().values
    return model.action_head(readout), readout, 1.0 + (chosen.diff() > 0).sum(1).float().mean()


def sample_noise(seeds: Tensor, n_visual: int, kind: str, amplitude: float) -> Tensor:
    """Noise float32 [B, N, N] of samples, each from its own seed, int64 [B] on their device."""
    noise = []
    for seed in seeds.tolist():
        generator = torch.Generator(seeds.device).manual_seed(seed)
        shape = torch.Size((n_visual, n_visual))
        noise.append(draw_noise(shape, kind, generator, device=seeds.device))
    return torch.stack(noise) * amplitude
