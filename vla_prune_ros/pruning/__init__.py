# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Visual-token pruning: one mode, one file, one line in `MODES`."""

from __future__ import annotations

from typing import Any

from vla_prune_ros.pruning.base import Option, PruningMethod, Tick
from vla_prune_ros.pruning.budget import CLASSES
from vla_prune_ros.pruning.efficient_vla import EfficientVLA
from vla_prune_ros.pruning.fastv import FastV
from vla_prune_ros.pruning.grid import GridDrop
from vla_prune_ros.pruning.history import History
from vla_prune_ros.pruning.lightvla import LightVLA
from vla_prune_ros.pruning.none import NoPruning
from vla_prune_ros.pruning.random import RandomDrop
from vla_prune_ros.pruning.scout import Scout
from vla_prune_ros.pruning.specprune import SpecPrune
from vla_prune_ros.pruning.vla_cache import VLACache
from vla_prune_ros.pruning.vla_pruner import VLAPruner
from vla_prune_ros.vla.config import OpenVLAConfig

MODES: dict[str, type[PruningMethod]] = {
    method.name: method
    for method in (
        NoPruning,
        SpecPrune,
        LightVLA,
        VLACache,
        EfficientVLA,
        VLAPruner,
        Scout,
        FastV,
        RandomDrop,
        GridDrop,
    )
}

__all__ = ['CLASSES', 'MODES', 'History', 'Option', 'PruningMethod', 'Tick', 'make_selector']


def make_selector(name: str, config: OpenVLAConfig, **options: Any) -> PruningMethod:
    """Build the selector of a pruning mode.

    Args:
        name: a key of `MODES`.
        config: sizes of the model it will serve.
        options: values for the mode's options; the others keep their defaults.

    Raises:
        ValueError: the mode, an option or a value is unknown; the message lists the valid ones.
    """
    if name not in MODES:
        raise ValueError(f'unknown pruning mode {name!r}; valid modes: {", ".join(MODES)}')
    return MODES[name](config, **options)
