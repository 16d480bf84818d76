# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From the policy node's configuration to a policy that is ready to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vla_prune_ros.command_line import processor_name
from vla_prune_ros.nodes.policy.parameters import PolicyConfig

KINDS = {'delta_pose': 'ee_delta', 'joint_positions': 'joint_absolute'}  # of config.json, of ours


def load_policy(config: PolicyConfig) -> Any:
    """The `VLAPolicy` of a configuration, warmed up.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: the checkpoint, the device or an option is
            not what it must be.
    """
    import torch

    from vla_prune_ros.policy import VLAPolicy

    if threads := config.torch_threads or default_threads():
        torch.set_num_threads(threads)
    device, dtype = config.device, config.dtype
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if dtype == 'auto':
        dtype = 'float32' if device == 'cpu' else 'bfloat16'
    directory: str | Path = config.checkpoint
    if not directory:
        from vla_prune_ros import weights

        directory = weights.directory('tabletop')
    mode, options = config.pruning
    policy = VLAPolicy.from_pretrained(
        directory,
        pruning=mode,
        device=device,
        dtype=dtype,
        unnorm_key=config.unnorm_key or None,
        variant=config.variant,
        readout_start=config.readout_start or None,
        cameras=config.cameras,
        max_gap=config.max_gap,
        quantization=config.quantization,
        runtime=config.runtime,
        image_pipeline=config.image_pipeline,
        jpeg=config.jpeg,
        **options,
    )
    check_fit(policy.config, config)
    policy.warm_up(instruction=config.default_instruction.strip() or None)
    policy.info()  # reads all weight files for their digest, which may take long
    return policy


def check_fit(checkpoint: Any, config: PolicyConfig) -> None:
    """Whether what the node takes and gives is what the checkpoint takes and gives.

    Raises:
        ValueError: it is not; the text names the parameter.
    """
    action, state = config.action, config.state
    if KINDS[checkpoint.action_kind] != action.kind:
        raise ValueError(
            f'action.kind is {action.kind}, but the checkpoint commands {checkpoint.action_kind}: '
            f'set action.kind:={KINDS[checkpoint.action_kind]}'
        )
    if len(action.names) != checkpoint.action_dim:
        raise ValueError(
            f'the checkpoint has {checkpoint.action_dim} numbers per action, the node '
            f'{len(action.names)} ({"action.joints" if action.joints else "deltas and gripper"})'
        )
    if checkpoint.use_proprio and state.size != checkpoint.proprio_dim:
        raise ValueError(
            f'the checkpoint takes a state of {checkpoint.proprio_dim} numbers, state.kind '
            f'{state.kind} gives {state.size}: see state.kind and state.joints'
        )


def another_rate(checkpoint: Any, config: PolicyConfig) -> str:
    """That chunks are played at another rate than that of the training; '' if they are not."""
    trained, rate = checkpoint.control_rate, config.control_rate
    if not trained or abs(trained - rate) <= 1e-3 * trained:
        return ''
    return (
        f'the checkpoint was trained at {trained:g} Hz and control_rate is {rate:g} Hz: '
        'its chunks are played at another speed'
    )


def default_threads() -> int:
    """Half of the cores that this process may use; 0 if the environment says another number.

    Whoever runs a policy has cameras, a robot or a simulation on the same computer. One thread per
    core then waits at every layer for the one that another process has pushed aside.
    """
    return 0 if 'OMP_NUM_THREADS' in os.environ else max(1, len(os.sched_getaffinity(0)) // 2)


def hardware(policy: Any) -> str:
    """What the policy runs on, for people: the GPU's name, or the processor's."""
    import torch

    device = policy.model.device
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return processor_name() or str(device)
