# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a policy says about itself: what is running, and what its numbers mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_prune_ros.vla.config import OpenVLAConfig

if TYPE_CHECKING:
    from vla_prune_ros.policy.policy import VLAPolicy

_DIMENSIONS = ('delta_x', 'delta_y', 'delta_z', 'delta_rx', 'delta_ry', 'delta_rz', 'gripper')
_UNITS = (*['controller input, 1 = full step'] * 6, '1 = open, 0 = close')
_MODES = {'delta_pose': 'end-effector delta', 'joint_positions': 'joint positions'}


def cameras_of(directory: str | Path) -> tuple[str, ...]:
    """Names of the cameras of a checkpoint.

    Raises:
        FileNotFoundError, ValueError: see `OpenVLAConfig.from_directory`.
    """
    return OpenVLAConfig.from_directory(directory).cameras


def describe(policy: VLAPolicy, note: str) -> dict[str, Any]:
    """Return `VLAPolicy.info`.

    Args:
        policy: the policy.
        note: what must be known about its mode on these weights.
    """
    config, settings = policy.config, policy.settings
    names: tuple[str, ...] = _DIMENSIONS
    units: tuple[str, ...] = _UNITS
    if config.action_kind == 'joint_positions':
        names = tuple(f'joint_{i}' for i in range(config.action_dim))
        units = ('as in the training data',) * config.action_dim
    elif config.action_dim != len(_DIMENSIONS):
        names = tuple(f'action_{i}' for i in range(config.action_dim))
        units = ('',) * config.action_dim
    start = settings.readout_start
    return {
        'checkpoint': str(policy.checkpoint or ''),
        'sha256': policy.sha256,
        'pruning_trained': config.pruning_trained,
        'mode': settings.mode,
        'options': dict(settings.options),
        'note': note,
        'readout_start': -(config.n_placeholders + 2) if start is None else start,
        'dimension_names': names,
        'units': units,
        'control_mode': _MODES[config.action_kind],
        'chunk_len': config.chunk_len,
        'proprio_dim': config.proprio_dim,
        'cameras': settings.cameras,
        'head': config.head,
        'film': config.film,
        'normalisation': config.normalisation,
        'action_kind': config.action_kind,
        'trained_rate': config.control_rate,
        'image_size': config.image_size,
        'patches_per_view': config.patches_per_view,
        'unnorm_key': settings.unnorm_key,
        'dtype': str(policy.model.dtype).removeprefix('torch.'),
        'device': str(policy.model.device),
        'runtime': policy.runtime_stats()['runtime'],
        'quantization': policy.quantization,
        'image_pipeline': policy.image_pipeline,
        'jpeg': policy.jpeg,
    }
