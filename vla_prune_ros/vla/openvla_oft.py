# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy network together with its files: stands on both, which do not know it."""

from __future__ import annotations

from pathlib import Path

import torch

from vla_prune_ros.vla.checkpoint import Taker, load_weights
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.model import OFTNetwork


class OpenVLAOFT(OFTNetwork):
    """OpenVLA-OFT. `OpenVLAOFT(config)` is randomly initialised, ready to be trained."""

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = 'cpu',
        variant: str = '',
        take: Taker | None = None,
    ) -> OpenVLAOFT:
        """Load a checkpoint directory in the published layout, strictly and read-only.

        Args:
            directory: see `checkpoint`.
            dtype: of the weights.
            device: where they go.
            variant: what the files do not say, see `variant.declared`.
            take: see `load_weights`.

        Raises:
            FileNotFoundError: the directory or one of its files is missing.
            ValueError: a tensor is missing, unexpected or misshapen, or a choice is ambiguous.
        """
        config = OpenVLAConfig.from_directory(directory, variant)
        with torch.device('meta'):
            model = cls(config)
        load_weights(model, directory, dtype, device, take)
        return model.eval()
