# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Proprioception projector and L1 action head. Parameter names are the published ones."""

from __future__ import annotations

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
