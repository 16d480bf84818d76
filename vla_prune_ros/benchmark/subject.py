# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured: a checkpoint, or a random model of a named size with its own tokenizer."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vla_prune_ros.evaluation.rollouts import checkpoint_directory
from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.processor import Processor
from vla_prune_ros.vla.sizes import random_model
from vla_prune_ros.vla.tokenizer import build_tokenizer

# Of LIBERO's length: with the small tokenizer the sequence has 602 tokens at published sizes.
INSTRUCTION = 'pick up the black bowl between the plate and the ramekin and place it on the plate'
_SEED = 0


@dataclass(frozen=True)
class Subject:
    """A model with its processor.

    Attributes:
        name: of the checkpoint or of the size.
        model: the network.
        processor: for the same checkpoint.
        instruction: what the policy is told.
        checkpoint: directory, or None for random weights.
    """

    name: str
    model: OpenVLAOFT
    processor: Processor
    instruction: str
    checkpoint: Path | None = None

    @property
    def parameters(self) -> int:
        """Numbers in the model, without those that it never uses."""
        return sum(p.numel() for p in self.model.parameters())

    def policy(self, mode: str = 'none', **settings: Any) -> VLAPolicy:
        """A policy on this model; settings as for `VLAPolicy`."""
        return VLAPolicy(self.model, self.processor, mode, checkpoint=self.checkpoint, **settings)


def random_subject(
    size: str,
    dtype: torch.dtype,
    device: str,
    instruction: str | None = None,
    n_layers: int | None = None,
    variant: str = '',
) -> Subject:
    """A random model of a named size; the same numbers at every call on the same device.

    Args:
        size: a name in `vla.sizes`.
        dtype: of the weights.
        device: where it runs.
        instruction: what the policy is told.
        n_layers: decoder layers, None for those of the size.
        variant: of the model, see `vla.variant.declared`.

    Raises:
        ValueError: unknown size or variant.
    """
    instruction = instruction or INSTRUCTION
    model = random_model(size, dtype, device, _SEED, n_layers, variant)
    with tempfile.TemporaryDirectory() as directory:
        build_tokenizer([instruction], directory)
        processor = Processor.from_directory(directory, model.config)
    name = size if n_layers is None else f'{size} with {n_layers} layers'
    return Subject(f'{name} {variant}'.strip(), model, processor, instruction)


def checkpoint_subject(
    checkpoint: str,
    dtype: torch.dtype,
    device: str,
    instruction: str | None = None,
    unnorm_key: str | None = None,
    variant: str = '',
) -> Subject:
    """A checkpoint directory, or an embedded policy by name.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it must be.
    """
    directory = checkpoint_directory(checkpoint)
    model = OpenVLAOFT.from_pretrained(directory, dtype, device, variant)
    processor = Processor.from_directory(directory, model.config, unnorm_key)
    return Subject(directory.name, model, processor, instruction or INSTRUCTION, directory)
