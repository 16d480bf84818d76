# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What lies beside the weights of a published checkpoint, for those who load it elsewhere.

The authors' scripts (openvla-oft, `experiments/robot/openvla_utils.py: get_vla, get_processor`)
read `config.json` and `dataset_statistics.json`, build their processor from
`preprocessor_config.json` and the tokenizer files, and copy their own modelling code beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vla_prune_ros.vla.config import (
    DINO_MEAN,
    DINO_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    OpenVLAConfig,
    TowerConfig,
)

Shapes = Mapping[str, tuple[int, ...]]
TOKENIZER_FILES = (
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
)
_BICUBIC = 3  # Pillow's number
_DINO_PRINTED = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # before the rounding to bfloat16


def companion_files(config: OpenVLAConfig) -> dict[str, dict[str, Any]]:
    """The JSON files beside the weights: name -> content."""
    files = {
        'config.json': config.to_dict(),
        'preprocessor_config.json': preprocessor_config(config.image_size),
    }
    if config.norm_stats:
        files['dataset_statistics.json'] = dict(config.norm_stats)
    return files


def preprocessor_config(size: int) -> dict[str, Any]:
    """Content of `preprocessor_config.json`: the authors' `PrismaticImageProcessor`.

    It names the class without `auto_map`: then the class that their scripts register is taken, and
    no code is looked for in the directory. Its `tvf_*` entries win over `means` and `stds`.

    Args:
        size: side of the policy image.
    """
    printed, normalised = [_DINO_PRINTED, (SIGLIP_MEAN, SIGLIP_STD)], []
    for mean, std in ((DINO_MEAN, DINO_STD), (SIGLIP_MEAN, SIGLIP_STD)):
        normalised.append({'inplace': False, 'mean': [*mean], 'std': [*std]})
    resized = {'antialias': True, 'interpolation': _BICUBIC, 'max_size': None, 'size': [size] * 2}
    return {
        'image_processor_type': 'PrismaticImageProcessor',
        'processor_class': 'PrismaticProcessor',
        'image_resize_strategy': 'resize-naive',
        'use_fused_vision_backbone': True,
        'input_sizes': [[3, size, size]] * 2,
        'interpolations': ['bicubic'] * 2,
        'means': [[*mean] for mean, _ in printed],
        'stds': [[*std] for _, std in printed],
        'tvf_crop_params': [{'output_size': [size] * 2}] * 2,
        'tvf_do_letterbox': False,
        'tvf_letterbox_fill': None,
        'tvf_normalize_params': normalised,
        'tvf_resize_params': [resized] * 2,
    }


def unused_shapes(config: OpenVLAConfig) -> dict[str, tuple[int, ...]]:
    """Published tensors that no output of the policy depends on: name -> shape."""
    llama = config.llama
    shapes: dict[str, tuple[int, ...]] = {}
    if config.head != 'tokens':
        shapes['language_model.lm_head.weight'] = (llama.vocab_size, llama.hidden_size)
    for name in ('featurizer', 'fused_featurizer'):
        tower: TowerConfig = getattr(config, name)
        prefix, dim, hidden = f'vision_backbone.{name}.', tower.dim, tower.mlp_hidden
        layers: dict[str, tuple[int, ...]] = {'norm': (dim,)}
        block = f'blocks.{tower.depth - 1}.'
        layers |= {block + 'norm1': (dim,), block + 'norm2': (dim,)}
        layers |= {block + 'attn.qkv': (3 * dim, dim), block + 'attn.proj': (dim, dim)}
        layers |= {block + 'mlp.fc1': (hidden, dim), block + 'mlp.fc2': (dim, hidden)}
        if tower.attn_pool:
            layers |= {'attn_pool.q': (dim, dim), 'attn_pool.kv': (2 * dim, dim)}
            layers |= {'attn_pool.proj': (dim, dim), 'attn_pool.norm': (dim,)}
            layers |= {'attn_pool.mlp.fc1': (hidden, dim), 'attn_pool.mlp.fc2': (dim, hidden)}
            shapes[prefix + 'attn_pool.latent'] = (1, 1, dim)
        if config.film:
            width = (dim, llama.hidden_size)
            layers |= {block + 'scale': width, block + 'shift': width}
        if tower.layer_scale:
            shapes |= {f'{prefix}{block}ls{i}.scale_factor': (dim,) for i in (1, 2)}
        for layer, shape in layers.items():
            shapes |= {f'{prefix}{layer}.weight': shape, f'{prefix}{layer}.bias': shape[:1]}
    return shapes


def differences(found: Shapes, expected: Shapes, shown: int = 5) -> Iterator[str]:
    """What is wrong with tensors by their names and shapes; at most `shown` names each."""
    lists = {
        'missing': [k for k in expected if k not in found],
        'unexpected': [k for k in found if k not in expected],
        'of another shape': [
            f'{k} {[*found[k]]} instead of {[*shape]}'
            for k, shape in expected.items()
            if k in found and found[k] != shape
        ],
    }
    for what, names in lists.items():
        if names:
            more = f' and {len(names) - shown} more' if len(names) > shown else ''
            yield f'{len(names)} tensor(s) {what}: {", ".join(names[:shown])}{more}'
