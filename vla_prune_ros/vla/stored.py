# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What lies in a checkpoint directory: the files of each kind, and names and shapes in them.

Nothing is written, and of large files only the headers are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_prune_ros.vla.config import read_json
from vla_prune_ros.vla.variant import Files

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
HEADS = ('action_head', 'proprio_projector')  # module name = file name = one .pt each
FILM_FILE = 'vision_backbone'
PROJECTOR = 'proprio_projector.'  # in the safetensors of RL trainers
_KINDS = (*HEADS, 'noisy_action_projector', FILM_FILE)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, not read: shape, type as in the file (`BF16`) and place."""

    shape: tuple[int, ...]
    dtype: str
    path: Path


def stored_tensors(directory: str | Path) -> dict[str, StoredTensor]:
    """Every tensor of the safetensors files of a checkpoint directory, from their headers.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is malformed, or two hold the same tensor.
    """
    found: dict[str, StoredTensor] = {}
    for path in shards(Path(directory)):
        with open_safetensors(path) as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                if key in found:
                    raise ValueError(f'tensor {key} is in {found[key].path.name} and {path.name}')
                part = file.get_slice(key)
                found[key] = StoredTensor(tuple(part.get_shape()), part.get_dtype(), path)
    return found


def shards(directory: Path) -> Iterator[Path]:
    """Yield the safetensors files, after checking that they are all there."""
    index, single = directory / INDEX, directory / SINGLE
    if not index.is_file():
        if not single.is_file():
            raise FileNotFoundError(f'neither {SINGLE} nor {INDEX} in {directory}')
        yield single
        return
    names = sorted(set(read_json(index).get('weight_map', {}).values()))
    if not names:
        raise ValueError(f'{index} has no weight_map')
    if single.is_file() and single.name not in names:
        raise ValueError(f'{directory} holds both {SINGLE} and {INDEX}; remove one')
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise FileNotFoundError(f'shard {name} named in {INDEX} is missing in {directory}')
    for name in names:
        yield directory / name


def open_safetensors(path: Path) -> safe_open:
    """Map a file; a malformed one is named in the ValueError."""
    try:
        return safe_open(path, framework='pt', device='cpu')
    except SafetensorError as error:
        raise ValueError(f'{path} is not a valid safetensors file: {error}') from error


def head_file(directory: Path, name: str) -> Path:
    """The one `.pt` file of a kind.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several.
    """
    files = sorted(directory.glob(f'{name}--*.pt'))
    if not files:
        raise FileNotFoundError(f'no {name}--*_checkpoint.pt in {directory}')
    if len(files) > 1:
        listed = ', '.join(f.name for f in files)
        raise ValueError(f'{directory} holds more than one {name} file: {listed}; keep one')
    return files[0]


def read_head(path: Path) -> dict[str, Tensor]:
    """Map a plain state dict, weights only, without the wrapper's `module.` prefix.

    Raises:
        ValueError: it is none.
    """
    try:
        try:
            state = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        except RuntimeError:  # written in the old format, which cannot be mapped
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever a broken file makes of the unpickler
        raise ValueError(f'{path} is not a plain state dict of tensors: {error}') from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f'{path} is not a plain state dict of tensors')
    return {key.removeprefix('module.'): tensor for key, tensor in state.items()}


def head_names(config: Any) -> tuple[str, ...]:
    """Modules of a model of this config that have a `.pt` file of their own."""
    there = {'action_head': config.head == 'l1', 'proprio_projector': config.use_proprio}
    return tuple(name for name in HEADS if there[name])


def look_at(directory: str | Path, hidden: int) -> Files:
    """What the weight files say of the variant.

    Args:
        directory: of a checkpoint.
        hidden: width of the language model.

    Raises:
        ValueError: files that contradict each other, or weights that are to be merged or exported
            first; the message names the file and the cure.
    """
    directory = Path(directory)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def note(origin: str, **found: Any) -> None:
        values.update(found)
        origins.update(dict.fromkeys(found, origin))

    tensors = _stored_or_nothing(directory)
    _refuse_unfinished(directory, tensors)
    paths = {k: head_file(directory, k) for k in _KINDS if [*directory.glob(f'{k}--*.pt')]}
    shapes = {
        kind: {key: tuple(t.shape) for key, t in read_head(path).items()}
        for kind, path in paths.items()
        if kind != FILM_FILE
    }
    is_noise = any(k.startswith('noise_predictor.') for k in shapes.get('action_head', {}))
    if is_noise != ('noisy_action_projector' in paths):
        here, missing = 'a diffusion head (noise_predictor.*)', 'noisy_action_projector--*.pt'
        if not is_noise:
            here, missing = paths['noisy_action_projector'].name, 'diffusion head for it'
        raise ValueError(f'{directory} has {here} but no {missing}; copy it from the training')
    if 'action_head' in paths:
        path = paths['action_head'].name
        note(path, head='diffusion' if is_noise else 'l1')
        if not is_noise:
            note(path, **_head_size(shapes['action_head'], path, hidden))
    inside = {k.removeprefix(PROJECTOR): t for k, t in tensors.items() if k.startswith(PROJECTOR)}
    if inside and 'proprio_projector' in paths:
        raise ValueError(
            f'{directory} has the projector of the state twice, in '
            f'{paths["proprio_projector"].name} and in the safetensors; remove the older one'
        )
    first: Any = shapes.get('proprio_projector', {}).get('fc1.weight')
    where = paths['proprio_projector'].name if 'proprio_projector' in paths else 'safetensors'
    if 'fc1.weight' in inside:
        first = inside['fc1.weight'].shape
    if 'proprio_projector' in paths or inside:
        note(where, use_proprio=True)
        if first is not None and len(first) == 2:
            note(where, proprio_dim=first[1])
    else:
        note('no proprio_projector file', use_proprio=False)
    film = FILM_FILE in paths
    note(paths[FILM_FILE].name if film else f'no {FILM_FILE} file', film=film)
    return Files(values, origins, str(directory))


def _head_size(shapes: Mapping[str, tuple[int, ...]], name: str, hidden: int) -> dict[str, int]:
    """Numbers of an action, from an L1 head."""
    last, first = shapes.get('model.fc2.weight', ()), shapes.get('model.fc1.weight', ())
    if len(last) != 2 or len(first) != 2:
        return {}  # the comparison of names and shapes says what is wrong
    if first[1] % hidden or first[1] // hidden != last[0]:
        raise ValueError(
            f'{name}: a head of {first[1]} inputs for {last[0]} numbers does not go with a '
            f'language model of width {hidden}; it belongs to another checkpoint'
        )
    return {'action_dim': last[0]}


def _stored_or_nothing(directory: Path) -> dict[str, StoredTensor]:
    """Headers of the safetensors; a directory without or with broken ones is refused later."""
    try:
        return stored_tensors(directory)
    except FileNotFoundError:
        adapters = [*directory.glob('lora_adapter*'), *directory.glob('adapter_model*')]
        if adapters and not [*directory.glob('model*.safetensors*')]:
            raise ValueError(
                f'{directory} holds only an adapter ({adapters[0].name}), not the weights of the '
                'model; it needs its base: train merge BASE ADAPTER OUT'
            ) from None
        return {}
    except ValueError:
        return {}


def _refuse_unfinished(directory: Path, tensors: Mapping[str, StoredTensor]) -> None:
    for key, tensor in tensors.items():
        if '.base_layer.' in key or '.lora_' in key:
            raise ValueError(
                f'{tensor.path.name} in {directory} is unmerged: it has {key}; run train merge '
                'first'
            )
        if key.startswith('value_head.'):
            raise ValueError(
                f'{tensor.path.name} in {directory} is of an RL trainer: it has {key}; export '
                'the policy without its value head'
            )
