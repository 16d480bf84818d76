# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of everything, read from the `config.json` of a checkpoint directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

# Rounded to bfloat16 as in the released processor, which wins over the printed 0.485 and friends.
DINO_MEAN, DINO_STD = (0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# A corrupt file must not fill the memory: no model has more of anything, or of these.
_LARGEST = 2**20
_FEW = ('depth', 'n_layers', 'chunk_len', 'action_dim')
_NO_LESS = {'vocab_size': 0, 'reg_tokens': 0, 'bos_id': 0, 'eos_id': 0, 'pad_id': 0}


def _check_values(config: Any) -> None:
    """ValueError if a number is not one, or no size that a model can have."""
    for f in fields(config):
        value, low = getattr(config, f.name), _NO_LESS.get(f.name, 1)
        high = 1000 if f.name in _FEW else _LARGEST
        if f.type == 'int' and not (type(value) is int and low <= value <= high):
            raise ValueError(f'{f.name} {value!r:.60} is not a whole number in {low}..{high}')
        if f.type == 'float' and not (type(value) in (int, float) and 0 < value < math.inf):
            raise ValueError(f'{f.name} {value!r:.60} is not a positive number')
        if f.type in ('bool', 'str') and type(value).__name__ != f.type:
            raise ValueError(f'{f.name} {value!r:.60} is not of type {f.type}')


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer. Its output is read after the last block but one."""

    dim: int
    depth: int
    heads: int
    mlp_hidden: int
    patch_size: int = 14
    image_size: int = 224
    reg_tokens: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attn_pool: bool = False

    def __post_init__(self) -> None:
        _check_values(self)
        if self.depth < 2:
            raise ValueError(f'a vision tower needs at least 2 blocks, not {self.depth}')
        if self.dim % self.heads:
            raise ValueError(f'tower width {self.dim} is not a multiple of {self.heads} heads')
        if self.image_size % self.patch_size:
            raise ValueError(
                f'image size {self.image_size} is not a multiple of patch {self.patch_size}'
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        """Patches of one image."""
        return self.grid**2

    @property
    def n_prefix(self) -> int:
        """Tokens in front of the patches: class token and registers."""
        return int(self.class_token) + self.reg_tokens


@dataclass(frozen=True)
class LlamaConfig:
    """The language model; the defaults are Llama-2-7B as OpenVLA uses it."""

    hidden_size: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    mlp_hidden: int = 11008
    vocab_size: int = 32064
    # The published config.json does not say it; the library default 1e-6 is what was trained.
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        _check_values(self)
        if self.hidden_size % (2 * self.n_heads):
            raise ValueError(
                f'hidden size {self.hidden_size} does not give {self.n_heads} heads of even width'
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.n_heads


DINO = TowerConfig(1024, 24, 16, 4096, reg_tokens=4, class_token=True, layer_scale=True)
SIGLIP = TowerConfig(1152, 27, 16, 4304, attn_pool=True)

_TOWER_KEYS = {  # ours -> config.json (timm's names)
    'dim': 'embed_dim',
    'depth': 'depth',
    'heads': 'num_heads',
    'patch_size': 'patch_size',
    'image_size': 'img_size',
    'reg_tokens': 'reg_tokens',
    'class_token': 'class_token',
    'layer_scale': 'layer_scale',
    'attn_pool': 'attn_pool',
}
_LLAMA_KEYS = {
    'hidden_size': 'hidden_size',
    'n_layers': 'num_hidden_layers',
    'n_heads': 'num_attention_heads',
    'mlp_hidden': 'intermediate_size',
    'vocab_size': 'vocab_size',
    'norm_eps': 'rms_norm_eps',
    'rope_theta': 'rope_theta',
}


@dataclass(frozen=True)
class OpenVLAConfig:
    """All sizes of one OpenVLA-OFT checkpoint. The defaults are the published LIBERO model."""

    featurizer: TowerConfig = DINO
    fused_featurizer: TowerConfig = SIGLIP
    llama: LlamaConfig = field(default_factory=LlamaConfig)
    chunk_len: int = 8
    action_dim: int = 7
    proprio_dim: int = 8
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 32000
    norm_stats: Mapping[str, Any] = field(default_factory=dict, repr=False)
    # Pruning mode that the weights were fine-tuned for; empty: trained with every token.
    pruning_trained: str = ''
    # Directory it was read from, for files that lie beside a checkpoint.
    source: Path | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_values(self)
        a, b = self.featurizer, self.fused_featurizer
        if (a.image_size, a.grid) != (b.image_size, b.grid):
            raise ValueError(
                'the two vision towers must share image size and patch grid, but have '
                f'{a.image_size} px / {a.grid} and {b.image_size} px / {b.grid}'
            )

    @property
    def image_size(self) -> int:
        """Side of the square policy image in pixels."""
        return self.featurizer.image_size

    @property
    def patches_per_view(self) -> int:
        """Visual tokens of one camera."""
        return self.featurizer.n_patches

    @property
    def vision_dim(self) -> int:
        """Width of a fused patch feature."""
        return self.featurizer.dim + self.fused_featurizer.dim

    @property
    def n_placeholders(self) -> int:
        """Empty action slots in the sequence, one per action number."""
        return self.chunk_len * self.action_dim

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OpenVLAConfig:
        """Build from the contents of `config.json`; absent sizes mean the published ones.

        Raises:
            ValueError: the file describes a model that this code does not implement.
        """
        if not data.get('use_fused_vision_backbone', True):
            raise ValueError('config.json: only fused DINOv2+SigLIP checkpoints are supported')
        vision, text = _block(data, 'vision_config'), _block(data, 'text_config')
        kv_heads = text.get('num_key_value_heads')
        if kv_heads not in (None, text.get('num_attention_heads', LlamaConfig.n_heads)):
            raise ValueError('config.json: grouped key/value heads are not supported')
        for key, good in (('rope_scaling', None), ('hidden_act', 'silu')):
            if text.get(key, good) != good:
                raise ValueError(f'config.json: text_config.{key}={text[key]!r} is not supported')
        llama = {ours: text[k] for ours, k in _LLAMA_KEYS.items() if text.get(k) is not None}
        plain = {'chunk_len', 'action_dim', 'proprio_dim', 'pruning_trained'} & data.keys()
        special = {'bos_id': 'bos_token_id', 'eos_id': 'eos_token_id', 'pad_id': 'pad_token_id'}
        return cls(
            featurizer=_tower(_block(vision, 'featurizer'), DINO),
            fused_featurizer=_tower(_block(vision, 'fused_featurizer'), SIGLIP),
            llama=LlamaConfig(**llama),
            norm_stats=_block(data, 'norm_stats'),
            **{key: data[key] for key in plain},
            **{ours: data[k] for ours, k in special.items() if data.get(k) is not None},
        )

    @classmethod
    def from_directory(cls, directory: str | Path) -> OpenVLAConfig:
        """Read `config.json`, with `dataset_statistics.json` overriding its `norm_stats`.

        Raises:
            FileNotFoundError: there is no `config.json`.
            ValueError: a file is malformed or describes another kind of model.
        """
        directory = Path(directory)
        path = directory / 'config.json'
        if not path.is_file():
            raise FileNotFoundError(f'no config.json in checkpoint directory {directory}')
        data = read_json(path)
        statistics = directory / 'dataset_statistics.json'
        if statistics.is_file():
            data['norm_stats'] = read_json(statistics)
        return replace(cls.from_dict(data), source=directory)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of a `config.json` in the published field names."""
        llama = {k: getattr(self.llama, ours) for ours, k in _LLAMA_KEYS.items()}
        return {
            'architectures': ['OpenVLAForActionPrediction'],
            'auto_map': {  # of the code that the authors' scripts copy into the directory
                'AutoConfig': 'configuration_prismatic.OpenVLAConfig',
                'AutoModelForVision2Seq': 'modeling_prismatic.OpenVLAForActionPrediction',
            },
            'model_type': 'openvla',
            'torch_dtype': 'bfloat16',
            'vision_backbone_id': 'dinosiglip-vit-so-224px',
            'llm_backbone_id': 'llama2-7b-pure',
            'arch_specifier': 'no-align+fused-gelu-mlp',
            'use_fused_vision_backbone': True,
            'image_sizes': [self.image_size, self.image_size],
            'image_resize_strategy': 'resize-naive',
            'n_action_bins': 256,
            'pad_to_multiple_of': 64,
            'bos_token_id': self.bos_id,
            'eos_token_id': self.eos_id,
            'pad_token_id': self.pad_id,
            'chunk_len': self.chunk_len,
            'action_dim': self.action_dim,
            'proprio_dim': self.proprio_dim,
            'pruning_trained': self.pruning_trained,
            'text_config': {
                'model_type': 'llama',
                'pad_token_id': self.pad_id,
                'num_key_value_heads': self.llama.n_heads,
                **llama,
            },
            'vision_config': {
                'featurizer': _tower_dict(self.featurizer),
                'fused_featurizer': _tower_dict(self.fused_featurizer),
            },
            'norm_stats': dict(self.norm_stats),
        }


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a malformed file is named in the ValueError."""
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is not valid JSON: {error}') from error
    if not isinstance(data, dict):
        raise ValueError(f'{path} does not hold a JSON object')
    return data


def _block(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of `config.json`; {} if it is not there."""
    block = data.get(key) or {}
    if not isinstance(block, Mapping):
        raise ValueError(f'config.json: {key} {block!r:.60} is no JSON object')
    return block


def _tower(block: Mapping[str, Any], published: TowerConfig) -> TowerConfig:
    values = {f.name: getattr(published, f.name) for f in fields(TowerConfig)}
    values |= {ours: block[key] for ours, key in _TOWER_KEYS.items() if key in block}
    if block.get('mlp_hidden') is not None:
        values['mlp_hidden'] = block['mlp_hidden']
    elif (ratio := block.get('mlp_ratio')) is not None:
        try:
            values['mlp_hidden'] = int(values['dim'] * ratio)  # timm truncates
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f'config.json: mlp_ratio {ratio!r:.60} is no number') from None
    elif 'embed_dim' in block:
        raise ValueError('config.json: a tower with embed_dim needs mlp_hidden or mlp_ratio')
    return TowerConfig(**values)


def _tower_dict(tower: TowerConfig) -> dict[str, Any]:
    block = {key: getattr(tower, ours) for ours, key in _TOWER_KEYS.items()}
    return {**block, 'mlp_hidden': tower.mlp_hidden}
