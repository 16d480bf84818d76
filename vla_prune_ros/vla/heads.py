# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Proprioception projector and action heads. Parameter names are the published ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from vla_prune_ros.vla.config import OpenVLAConfig


class ProprioProjector(nn.Module):
    """Turns the normalised robot state into one token embedding."""

    def __init__(self, proprio_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, proprio: Tensor) -> Tensor:
        """Map [B, proprio_dim] to [B, hidden_size]."""
        return self.fc2(nn.functional.gelu(self.fc1(proprio)))


class _ResidualBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class _MlpResNet(nn.Module):
    def __init__(self, input_dim: int, hidden: int, output_dim: int, n_blocks: int = 2) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(_ResidualBlock(hidden) for _ in range(n_blocks))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class ActionHead(nn.Module):
    """Regresses one action step from the `action_dim` consecutive read-out states of that step."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.chunk_len, self.action_dim = config.chunk_len, config.action_dim
        hidden = config.llama.hidden_size
        self.model = _MlpResNet(hidden * config.action_dim, hidden, config.action_dim)

    def forward(self, readout: Tensor) -> Tensor:
        """Map [B, chunk_len*action_dim, D] to normalised actions [B, chunk_len, action_dim]."""
        return self.model(readout.reshape(len(readout), self.chunk_len, -1))


class TokenHead(nn.Module):
    """Discrete actions: the language model's own output layer, over the tokens of the bins only.

    Each read-out state is one number: the likeliest of 256 tokens, which stands for the centre of
    one of 255 bins of -1..1; larger numbers have smaller ids. Source: OpenVLA-OFT without a head.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.chunk_len, self.action_dim = config.chunk_len, config.action_dim
        self.ids = config.action_ids
        if self.ids.start < 0:
            raise ValueError(
                f'a vocabulary of {config.llama.vocab_size} has no room for action tokens'
            )
        self.lm_head = nn.Linear(config.llama.hidden_size, config.llama.vocab_size, bias=False)

    def logits(self, readout: Tensor) -> Tensor:
        """Scores of the bins' tokens in the order of their ids, [B, slots, 256]."""
        weight = self.lm_head.weight[self.ids.start : self.ids.stop]
        return nn.functional.linear(readout, weight)

    def forward(self, readout: Tensor) -> Tensor:
        """Map [B, chunk_len*action_dim, D] to normalised actions [B, chunk_len, action_dim].

        They are float32 whatever the weights are: bfloat16 would move the centres of the bins.
        """
        actions = self.values(self.ids.start + self.logits(readout).argmax(-1))
        return actions.view(-1, self.chunk_len, self.action_dim)

    def values(self, ids: Tensor) -> Tensor:
        """Numbers in -1..1 that token ids stand for, float32."""
        bins = (self.ids.stop - 1 - ids).clamp(0, len(self.ids) - 2)
        return (2 * bins.float() + 1) / (len(self.ids) - 1) - 1

    def tokens(self, actions: Tensor) -> Tensor:
        """Labels for training: ids of normalised actions, which are clipped to -1..1; int64."""
        # numpy's edges, which are not torch's to the last bit
        edges = torch.from_numpy(np.linspace(-1, 1, len(self.ids))).to(actions.device)
        at = torch.bucketize(actions.double().clamp(-1, 1), edges, right=True)
        return self.ids.stop - at


def make_head(config: OpenVLAConfig) -> ActionHead | TokenHead:
    """The head that a config names."""
    return TokenHead(config) if config.head == 'tokens' else ActionHead(config)
