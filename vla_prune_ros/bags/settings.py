# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of the policy node that count for a replay: singly, or from a file of the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vla_prune_ros.bags.plan import UsageError
from vla_prune_ros.nodes.policy.parameters import POLICY, PolicyConfig
from vla_prune_ros.ros.parameters import ParameterError, Spec

MODEL = (
    *('device', 'dtype', 'unnorm_key', 'readout_start', 'torch_threads', 'runtime'),
    *('quantization', 'image_pipeline', 'jpeg', 'cameras', 'finger_joints', 'control_rate'),
    'max_gap',
)
VARIANT = (
    *('variant', 'state.kind', 'state.joints', 'action.kind', 'action.joints', 'action.units'),
    *('gripper.joints', 'gripper.state_closed', 'gripper.state_open', 'gripper.action_closed'),
    'gripper.action_open',
)
INPUT = ('sync.slop', 'sync.state_slop', 'trigger')
NAMES = tuple(dict.fromkeys(('checkpoint', *MODEL, *VARIANT, *INPUT)))
SAID = (
    'control_rate',
    'quantization',
    'image_pipeline',
    'jpeg',
    'cameras',
    *VARIANT,
)  # what a recording says of itself


def chosen_parameters(file: Path | None, texts: Sequence[str]) -> dict[str, Any]:
    """Values of a parameter file of the node, and of NAME:=VALUE, which come on top.

    Raises:
        UsageError: an unknown name, a value that the node would refuse, or an unreadable file.
    """
    values: dict[str, Any] = {}
    try:
        if file is not None:
            given = _flat(_of_policy(yaml.safe_load(file.read_text(encoding='utf-8')), file))
            values |= {name: given[name] for name in NAMES if name in given}
        for text in texts:
            name, sign, value = text.partition(':=')
            if not sign or name not in NAMES:
                raise UsageError(f'-p {text!r} is not NAME:=VALUE with one of {", ".join(NAMES)}')
            values[name] = yaml.safe_load(value) if value else ''
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(str(error)) from error
    specs = {spec.name: spec for spec in POLICY}
    return {name: _checked(specs[name], value) for name, value in values.items()}


def said_by(info: Mapping[str, str]) -> dict[str, Any]:
    """Values that a recorded description of the policy gives."""
    specs = {spec.name: spec for spec in POLICY}
    found = {name: specs[name] for name in SAID if info.get(name)}
    return {
        name: tuple(info[name].split(','))
        if isinstance(spec.default, tuple)
        else _checked(spec, yaml.safe_load(info[name]))
        for name, spec in found.items()
    }


def policy_config(values: Mapping[str, Any]) -> PolicyConfig:
    """The node's configuration with these values, and the defaults for the rest.

    Raises:
        UsageError: values that do not go together.
    """
    defaults = {spec.name: spec.default for spec in POLICY} | {'pruning.mode': 'none'}
    try:
        return PolicyConfig.from_values(defaults | dict(values))
    except ParameterError as error:
        raise UsageError(str(error)) from error


def device_of(info: Mapping[str, str]) -> dict[str, str]:
    """Device and dtype of a reference; nothing if this machine has no such device."""
    import torch

    device = info.get('device', '')
    if not device or not (device.startswith('cpu') or torch.cuda.is_available()):
        return {}
    return {key: info[key] for key in ('device', 'dtype') if key in info}


def _of_policy(content: Any, file: Path) -> dict[str, Any]:
    """What a parameter file has for the policy node."""
    found: dict[str, Any] = {}
    sections = content if isinstance(content, dict) else {}
    for name, section in sections.items():
        if str(name).split('/')[-1] in ('vla_policy', '*', '**') and isinstance(section, dict):
            found |= section.get('ros__parameters') or {}
    if not found:
        raise UsageError(f'{file} has no section vla_policy with ros__parameters')
    return found


def _flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f'{prefix}{name}.')
        else:
            flat[f'{prefix}{name}'] = value
    return flat


def _checked(spec: Spec, value: Any) -> Any:
    """A value of the parameter's type, within its limits."""
    kind = type(spec.default)
    if kind is tuple and isinstance(value, list):
        value = tuple(map(str, value))
    if kind is float and type(value) is int:
        value = float(value)
    low = spec.minimum is not None and type(value) is kind and value < spec.minimum
    high = spec.maximum is not None and type(value) is kind and value > spec.maximum
    if type(value) is not kind or low or high:
        raise UsageError(f'parameter {spec.name}: {value!r}; {spec.description}')
    try:
        spec.check(value)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return value
