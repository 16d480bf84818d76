# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA) by peft: added, saved, loaded and merged in the authors' layout.

`lora_adapter/` holds `adapter_config.json` and `adapter_model.safetensors`, whose tensors are
called `base_model.model.NAME.lora_A.weight`, NAME being that of the published checkpoint. So
peft reads ours on the authors' model, and theirs is read here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.film import is_modulation
from vla_prune_ros.vla.published import unused_shapes

FOLDER = 'lora_adapter'
HEADS = ('action_head', 'proprio_projector')  # trained whole
# But this, where actions are tokens: it is the language model's own layer.
_WORDS = 'action_head.lm_head'
_CONFIG, _WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_NAMES = (('decoder.', 'language_model.model.'), (_WORDS, 'language_model.lm_head'))
_TOWERS = 'vision_backbone.'
_ALPHA = 16  # as released at rank 32; a smaller rank has its own


def targets(model: nn.Module, convolutions: bool = False) -> list[str]:
    """Names of the layers that get adapters: all linear ones but the heads and FiLM."""
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and not trained_whole(f'{name}.weight')
    ]


def add_adapters(
    model: OpenVLAOFT, rank: int, convolutions: bool = False, alpha: int | None = None
) -> None:
    """Freeze a model but for new adapters, which change nothing yet, and for its heads.

    What is trained becomes float32: small steps are lost in bfloat16.

    Args:
        model: gets them in place.
        rank: of the adapters.
        convolutions: adapt the patch convolutions, too.
        alpha: scale, times the rank; default 16, at most the rank.

    Raises:
        ModuleNotFoundError: peft is not installed.
    """
    _inject(model, targets(model, convolutions), rank, alpha or min(rank, _ALPHA))


def adapters(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by their names in the published layout; {} if there are none."""
    return {
        _PREFIX + _published(name).replace('.default.', '.'): parameter.detach()
        for name, parameter in model.named_parameters()
        if '.lora_' in name
    }


def save_adapters(model: OpenVLAOFT, directory: Path) -> None:
    """Write `lora_adapter/` into a directory."""
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    layers = [(name, m) for name, m in model.named_modules() if hasattr(m, 'lora_A')]
    _, first = layers[0]
    content = {
        'peft_type': 'LORA',
        'base_model_name_or_path': None,
        'r': first.r['default'],
        'lora_alpha': first.lora_alpha['default'],
        'lora_dropout': 0.0,
        'bias': 'none',
        'fan_in_fan_out': False,
        'init_lora_weights': 'gaussian',
        'inference_mode': True,
        'target_modules': sorted(_published(name) for name, _ in layers),
        'task_type': None,
    }
    (folder / _CONFIG).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    tensors = {name: t.cpu().contiguous().clone() for name, t in adapters(model).items()}
    save_file(tensors, folder / _WEIGHTS, metadata={'format': 'pt'})


def load_adapters(model: OpenVLAOFT, directory: Path, towers: bool = True) -> None:
    """Add the adapters of a directory, ours or the authors', to a model.

    Adapters of tensors that no output depends on (the last block of each tower; the output layer
    of the language model, unless actions are tokens) change nothing and are left out.

    Args:
        model: without adapters; gets them in place, as `add_adapters`.
        directory: `lora_adapter/` or the folder that it is in.
        towers: load those of the vision towers, too; a file of FiLM layers has them already.

    Raises:
        FileNotFoundError: there are none.
        ModuleNotFoundError: peft is not installed.
        ValueError: they are not for this model, or of a kind that this code does not implement.
    """
    folder = directory if (directory / _CONFIG).is_file() else directory / FOLDER
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f'{folder / name} is not there: no adapters in {directory}')
    content = json.loads((folder / _CONFIG).read_text(encoding='utf-8'))
    _check(content, folder)
    given = load_file(folder / _WEIGHTS)
    without = {name.rpartition('.')[0] for name in unused_shapes(model.config)}
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in given.items():
        name, _, leaf = key.removeprefix(_PREFIX).partition('.lora_')
        if name not in without and (towers or not name.startswith(_TOWERS)):
            layers.setdefault(_internal(name), {})[f'lora_{leaf}'] = tensor
    known = set(targets(model, convolutions=True))
    if strange := sorted(set(layers) - known):
        raise ValueError(f'{folder}: adapters of {strange[0]}, which this model does not have')
    rank, alpha = content['r'], content['lora_alpha']
    _inject(model, sorted(layers), rank, alpha)
    own = dict(model.named_parameters())
    for name, tensors in layers.items():
        for leaf in ('lora_A.weight', 'lora_B.weight'):
            parameter = own[f'{name}.{leaf.replace(".", ".default.")}']
            if leaf not in tensors or tensors[leaf].shape != parameter.shape:
                shape = [*tensors[leaf].shape] if leaf in tensors else 'missing'
                raise ValueError(
                    f'{folder}: {name}.{leaf} is {shape}, the model needs {[*parameter.shape]}'
                )
            with torch.no_grad():
                parameter.copy_(tensors[leaf])


def with_base(base: Path, directory: Path, out: Path) -> Path:
    """Put a base and what lies beside adapters together: a checkpoint of links.

    Heads, FiLM layers and statistics of the adapters' folder go before those of the base, as the
    authors' scripts leave them when they do not merge.

    Args:
        base: checkpoint directory; it need not have heads.
        directory: `lora_adapter/` or the folder that it is in.
        out: empty folder.

    Returns:
        `out`.
    """
    folder = directory.parent if directory.name == FOLDER else directory
    own = {p.name: p for p in [*folder.glob('*--*.pt'), *folder.glob('dataset_statistics.json')]}
    kinds = {name.partition('--')[0] for name in own}
    theirs = {p.name: p for p in base.iterdir() if p.name.partition('--')[0] not in kinds}
    for name, path in (theirs | own).items():
        (out / name).symlink_to(path.resolve())
    return out


def merged(model: OpenVLAOFT) -> OpenVLAOFT:
    """The model for saving: with adapters a plain copy on the CPU, else the model itself."""
    if not adapters(model):
        return model
    state = {
        name.replace('.base_layer.', '.'): parameter.detach().cpu()
        for name, parameter in model.named_parameters()
        if '.lora_' not in name
    }
    for name, layer in model.named_modules():
        if hasattr(layer, 'lora_A'):
            weight = layer.get_base_layer().weight.detach()
            delta = layer.get_delta_weight('default').detach().float()
            state[f'{name}.weight'] = (weight.float() + delta).to(weight.dtype).cpu()
    with torch.device('meta'):
        plain = OpenVLAOFT(model.config)
    plain.load_state_dict(state, assign=True)
    plain.unused = model.unused
    return plain


def trained_whole(name: str) -> bool:
    """Whether a parameter is trained as it is, without adapters."""
    return is_modulation(name) or (name.startswith(HEADS) and not name.startswith(_WORDS))


def _published(name: str) -> str:
    for ours, theirs in _NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _internal(name: str) -> str:
    for ours, theirs in _NAMES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _check(content: dict[str, Any], folder: Path) -> None:
    if content.get('peft_type') != 'LORA':
        raise ValueError(f'{folder}: adapters of kind {content.get("peft_type")!r}, not LORA')
    for key, plain in (
        ('use_dora', (False, None)),
        ('use_rslora', (False, None)),
        ('bias', ('none',)),
        ('lora_bias', (False, None)),
        ('fan_in_fan_out', (False, None)),
        ('init_lora_weights', (True, False, 'gaussian', None)),  # others change the base, too
        ('rank_pattern', ({}, None)),
        ('alpha_pattern', ({}, None)),
        ('modules_to_save', (None, [])),
    ):
        if key in content and content[key] not in plain:
            raise ValueError(f'{folder}: {key} {content[key]!r} is not supported')


def _inject(model: nn.Module, names: list[str], rank: int, alpha: int) -> None:
    """Add adapters, freeze the rest but for the heads, and train what is left in float32."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'LoRA fine-tuning needs the package peft (pip install peft); '
            'without it, train all weights (LoRA rank 0)'
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=names,
        init_lora_weights='gaussian',
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        trained = '.lora_' in name or trained_whole(name)
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()
