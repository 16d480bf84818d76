# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of everything, read from the `config.json` of a checkpoint directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vla_prune_ros.vla.parts import DINO, SIGLIP, LlamaConfig, TowerConfig, check_values
from vla_prune_ros.vla.selection import TokenLayout
from vla_prune_ros.vla.variant import (
    ACTION_KINDS,
    HEADS,
    KEYS,
    NORMALISATIONS,
    default_cameras,
    resolve,
)

# Rounded to bfloat16 as in the released processor, which wins over the printed 0.485 and friends.
DINO_MEAN, DINO_STD = (0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
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
_SPECIAL = {
    'bos_id': 'bos_token_id',
    'eos_id': 'eos_token_id',
    'pad_id': 'pad_token_id',
    'padded_vocabulary': 'pad_to_multiple_of',
}
N_BINS = 256  # that a discrete action number is one of


@dataclass(frozen=True)
class OpenVLAConfig:
    """All sizes of one OpenVLA-OFT checkpoint. The defaults are the published LIBERO model."""

    featurizer: TowerConfig = DINO
    fused_featurizer: TowerConfig = SIGLIP
    llama: LlamaConfig = field(default_factory=LlamaConfig)
    chunk_len: int = 8
    action_dim: int = 7
    # Numbers of the robot state; 0: the model takes none.
    proprio_dim: int = 8
    n_views: int = 2
    # Names of the cameras in the order of the pictures; empty: see `default_cameras`.
    camera_names: tuple[str, ...] = ()
    head: str = 'l1'
    film: bool = False
    normalisation: str = 'bounds_q99'
    action_kind: str = 'delta_pose'
    # Rate at which the chunks are to be played, Hz; 0: not stated.
    control_rate: float = 0.0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 32000
    # Rows at the end of the vocabulary that are no words; in front of them lie the action tokens.
    padded_vocabulary: int = 64
    norm_stats: Mapping[str, Any] = field(default_factory=dict, repr=False)
    # Pruning mode that the weights were fine-tuned for; empty: trained with every token.
    pruning_trained: str = ''
    # Directory it was read from, for files that lie beside a checkpoint.
    source: Path | None = field(default=None, repr=False, compare=False)
    # Where each property of the variant comes from, for people.
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_values(self)
        for name, valid in (
            ('head', HEADS), ('normalisation', NORMALISATIONS), ('action_kind', ACTION_KINDS)
        ):  # fmt: skip
            if getattr(self, name) not in valid:
                raise ValueError(
                    f'{name} {getattr(self, name)!r:.60} is not one of {", ".join(valid)}'
                )
        names = self.camera_names
        different = {name for name in names if isinstance(name, str) and name}
        if names and not len(different) == len(names) == self.n_views:
            raise ValueError(
                f'cameras {[*names]!r:.120} are not {self.n_views} different names (n_views)'
            )
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
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras in the order of the pictures."""
        return self.camera_names or default_cameras(self.n_views)

    @property
    def use_proprio(self) -> bool:
        """Whether the model takes the state of the robot."""
        return self.proprio_dim > 0

    @property
    def action_ids(self) -> range:
        """Token ids of the bins of an action number; the largest number has the smallest id."""
        end = self.llama.vocab_size - self.padded_vocabulary
        return range(end - N_BINS, end)

    @property
    def n_placeholders(self) -> int:
        """Empty action slots in the sequence, one per action number."""
        return self.chunk_len * self.action_dim

    def layout(self, n_views: int, prompt_length: int) -> TokenLayout:
        """Layout of a sequence with so many cameras and a prompt of this length."""
        return TokenLayout(
            n_views,
            self.patches_per_view,
            prompt_length,
            self.n_placeholders,
            int(self.use_proprio),
        )

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
        if data.get('n_action_bins', N_BINS) != N_BINS:
            raise ValueError(f'config.json: n_action_bins is not {N_BINS}')
        said = {key: data[key] for key in (*KEYS, 'pruning_trained') if data.get(key) is not None}
        if said.pop('use_proprio', True) is False:
            said['proprio_dim'] = 0
        if isinstance(names := said.pop('cameras', None), list):
            said.setdefault('n_views', len(names))
            if tuple(names) != default_cameras(said['n_views']):
                said['camera_names'] = tuple(names)
        return cls(
            featurizer=_tower(_block(vision, 'featurizer'), DINO),
            fused_featurizer=_tower(_block(vision, 'fused_featurizer'), SIGLIP),
            llama=LlamaConfig(**llama),
            norm_stats=_block(data, 'norm_stats'),
            **said,
            **{ours: data[k] for ours, k in _SPECIAL.items() if data.get(k) is not None},
        )

    @classmethod
    def from_directory(cls, directory: str | Path, variant: str = '') -> OpenVLAConfig:
        """Read `config.json`, with `dataset_statistics.json` overriding its `norm_stats`.

        What `config.json` does not say of the variant comes from the other files, see `variant`.

        Args:
            directory: of a checkpoint.
            variant: what the user declares, see `variant.declared`.

        Raises:
            FileNotFoundError: there is no `config.json`, or no head.
            ValueError: a file is malformed, describes another kind of model, contradicts what is
                declared, or something must be declared.
        """
        from vla_prune_ros.vla.stored import look_at

        directory = Path(directory)
        path = directory / 'config.json'
        if not path.is_file():
            raise FileNotFoundError(f'no config.json in checkpoint directory {directory}')
        data = read_json(path)
        statistics = directory / 'dataset_statistics.json'
        if statistics.is_file():
            data['norm_stats'] = read_json(statistics)
        hidden = cls.from_dict({**data, **dict.fromkeys(KEYS)}).llama.hidden_size
        values, origins = resolve(data, look_at(directory, hidden), variant)
        return replace(cls.from_dict(data | values), source=directory, origins=origins)

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
            'n_action_bins': N_BINS,
            **{key: getattr(self, ours) for ours, key in _SPECIAL.items()},
            **{key: getattr(self, key) for key in KEYS},
            'cameras': [*self.cameras],
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
