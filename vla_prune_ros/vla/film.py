# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The file of a vision backbone with FiLM: unmerged adapters, which are merged when it is read.

The authors save the whole backbone with its adapters (peft names), because their merge leaves it
out; what is in the safetensors are the towers before the training. Source: openvla-oft,
`prismatic/models/film_vit_wrapper.py` and `vla-scripts/finetune.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

_MODULATION = re.compile(r'\.blocks\.\d+\.(scale|shift)\.(weight|bias)$')
_ADAPTED = ('patch_embed.proj', 'attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')
_POOL = ('attn_pool.q', 'attn_pool.kv', 'attn_pool.proj')
_BASE, _A, _B = '.base_layer.', '.lora_A.default.weight', '.lora_B.default.weight'
RANK = 32  # of the adapters that we write, the default of the authors' scripts
ALPHA = 16  # at most


def is_modulation(name: str) -> bool:
    """Whether a tensor is a FiLM layer."""
    return _MODULATION.search(name) is not None


def merged(tensors: Mapping[str, Tensor], path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a backbone under its published name, adapters added.

    Args:
        tensors: of the file, mapped.
        path: of the file, for messages.

    Raises:
        ValueError: adapters are missing or do not fit.
    """
    shapes = merged_shapes(tensors, path)
    for name in shapes:
        key = _name_in_file(name, tensors)
        if _BASE not in key or not key.endswith('weight'):
            yield name, tensors[key]
            continue
        stem = key.partition(_BASE)[0]
        a, b = tensors[stem + _A].float(), tensors[stem + _B].float()
        change = (b.flatten(1) @ a.flatten(1)).view(shapes[name])
        base = tensors[key]
        factor = min(len(a), ALPHA) / len(a)
        yield name, (base.float() + factor * change).to(base.dtype)


def merged_shapes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of what `merged` yields.

    Raises:
        ValueError: see `merged`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for key, tensor in tensors.items():
        if key.endswith((_A, _B)):
            continue
        shapes[_published(key)] = tuple(tensor.shape)
        if _BASE not in key or not key.endswith('weight'):
            continue
        stem = key.partition(_BASE)[0]
        a, b = tensors.get(stem + _A), tensors.get(stem + _B)
        if a is None or b is None:
            raise ValueError(f'{path}: {stem} has no adapter (lora_A, lora_B): not a FiLM file')
        out, width = len(tensor), tensor[0].numel()
        if not (a.shape[0] == b.shape[1] and a[0].numel() == width and len(b) == out):
            raise ValueError(
                f'{path}: adapters of {stem}, {[*a.shape]} and {[*b.shape]}, do not fit '
                f'its weight {[*tensor.shape]}; the file belongs to another model or rank'
            )
    if not any(map(is_modulation, shapes)):
        raise ValueError(f'{path} has no FiLM layers (blocks.*.scale, blocks.*.shift)')
    return shapes


def _published(key: str) -> str:
    return re.sub(r'(\.blocks\.\d+)\.block\.', r'\1.', key).replace(_BASE, '.')


def _name_in_file(name: str, tensors: Mapping[str, Tensor]) -> str:
    wrapped = name
    if not is_modulation(name):
        wrapped = re.sub(r'(\.blocks\.\d+)\.', r'\1.block.', name)
    stem, _, leaf = wrapped.rpartition('.')
    based = f'{stem}{_BASE}{leaf}'
    return based if based in tensors else wrapped


def unmerged(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The file of a backbone: the same function with adapters that add nothing.

    Args:
        tensors: of both towers, under their published names.
        dtype: of the towers; the modulation is float32, as the authors save it.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().to('cpu', torch.float32 if is_modulation(name) else dtype)
        own = own.contiguous().clone()
        key = _name_in_file(name, {})
        stem, _, leaf = key.rpartition('.')
        if not stem.endswith((*_ADAPTED, *_POOL)):
            state[key] = own
            continue
        state[f'{stem}{_BASE}{leaf}'] = own
        if leaf == 'weight':
            rest = own.shape[2:]
            state[stem + _A] = own.new_zeros(RANK, *own.shape[1:])
            state[stem + _B] = own.new_zeros(len(own), RANK, *(1 for _ in rest))
    return state
