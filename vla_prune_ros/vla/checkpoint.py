# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The published checkpoint layout: strict, read-only loading, and saving.

A directory holds `config.json`, `model.safetensors` (or shards with an index), one
`action_head--*_checkpoint.pt`, one `proprio_projector--*_checkpoint.pt`, optionally
`dataset_statistics.json`, and tokenizer files; see `published` for the small files. Nothing here
touches the network.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_prune_ros.vla.config import read_json
from vla_prune_ros.vla.model import OFTNetwork
from vla_prune_ros.vla.published import (
    TOKENIZER_FILES,
    Shapes,
    companion_files,
    differences,
    unused_shapes,
)

_INDEX = 'model.safetensors.index.json'
_SINGLE = 'model.safetensors'
_HEADS = ('action_head', 'proprio_projector')  # module name = file name = one .pt each


def published_shapes(model: OFTNetwork) -> dict[str, tuple[int, ...]]:
    """Every tensor of the safetensors files for this model: name -> shape."""
    shapes = {
        _published(name): tuple(p.shape)
        for name, p in model.named_parameters()
        if not name.startswith(_HEADS)
    }
    return shapes | unused_shapes(model.config)


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
    for path in _shards(Path(directory)):
        with _open(path) as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                if key in found:
                    raise ValueError(f'tensor {key} is in {found[key].path.name} and {path.name}')
                part = file.get_slice(key)
                found[key] = StoredTensor(tuple(part.get_shape()), part.get_dtype(), path)
    return found


def stored_head(directory: str | Path, name: str) -> tuple[Path, dict[str, Tensor]]:
    """The `.pt` file of a head, `action_head` or `proprio_projector`, and what it holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, or it is no plain state dict.
    """
    path = _head_file(Path(directory), name)
    return path, _read_head(path)


def load_weights(
    model: OFTNetwork, directory: str | Path, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Fill a model that was built on the meta device, one tensor at a time.

    The names and shapes of a file are checked before any of its weights is taken over.

    Args:
        model: its parameters are replaced by those of the files.
        directory: checkpoint directory; never written to.
        dtype: floating-point type of the loaded parameters.
        device: where they go. Unused tensors stay on the CPU in the dtype of the file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a tensor or file is not what it must be; the message names it.
    """
    directory = Path(directory)
    paths = {name: _head_file(directory, name) for name in _HEADS}
    expected = published_shapes(model)
    stored = stored_tensors(directory)
    found = {key: tensor.shape for key, tensor in stored.items()}
    where = {key: tensor.path for key, tensor in stored.items()}
    _compare(found, expected, str(directory))
    for name, path in paths.items():
        module = getattr(model, name)
        tensors = _read_head(path)
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        _compare(shapes, {key: tuple(p.shape) for key, p in module.named_parameters()}, str(path))
        for key, tensor in tensors.items():
            _assign(module, key, tensor, dtype, device)
        del tensors
    unused = unused_shapes(model.config)
    shards = [*dict.fromkeys(where.values())]
    for path, following in itertools.zip_longest(shards, shards[1:]):
        for shard in (path, following):
            if shard is not None:
                _read_ahead(shard)
        for key in (key for key, place in where.items() if place == path):
            # A mapped file stays resident until it is closed, so each tensor gets its own mapping:
            # never more than one tensor is held twice.
            with _open(path) as file:
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point():
                    raise ValueError(f'tensor {key} in {path.name} has type {tensor.dtype}')
                if key in unused:
                    model.unused[key] = tensor.clone()
                else:
                    _assign(model, _internal(key), tensor, dtype, device)
                del tensor


def weights_digest(directory: str | Path) -> str:
    """SHA-256 over all weight files of a checkpoint directory in the order of their names."""
    directory = Path(directory)
    files = [*directory.glob('*.safetensors'), *directory.glob('*.pt')]
    seen = ((p, p.stat()) for p in sorted(files, key=lambda p: p.name))
    return _digest(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in seen))


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open('rb') as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def save_pretrained(
    model: OFTNetwork,
    directory: str | Path,
    dtype: torch.dtype | None = None,
    step: int = 1,
    max_shard_bytes: int = 5_000_000_000,
    tokenizer: str | Path | None = None,
) -> None:
    """Write a checkpoint directory in the published layout.

    Tensors that the model never had (a freshly trained one has no lm_head) are written as zeros.

    Args:
        model: the model, on any device.
        directory: created if needed; files of the same name are replaced.
        dtype: type on disk, default the model's; the proprio projector is float32 as published.
        step: number in the names of the `.pt` files.
        max_shard_bytes: a larger model is split into shards with an index.
        tokenizer: directory whose tokenizer files are copied.

    Raises:
        FileExistsError: the directory holds weights that would become ambiguous.
        ValueError: the weights are no longer those of the published layout.
    """
    if model.decoder.packed:
        raise ValueError('a model with packed or quantised weights cannot be saved')
    directory = Path(directory)
    dtype = dtype or model.dtype
    directory.mkdir(parents=True, exist_ok=True)
    mine = {f'{name}--{step}_checkpoint.pt' for name in _HEADS}
    for name in _HEADS:
        for path in directory.glob(f'{name}--*.pt'):
            if path.name not in mine:
                raise FileExistsError(f'{path} is there already; choose an empty directory')
    for path in directory.glob('model*.safetensors*'):
        path.unlink()
    for name, content in companion_files(model.config).items():
        (directory / name).write_text(_json(content), encoding='utf-8')
    _write_shards(directory, complete_tensors(model), dtype, max_shard_bytes)
    for name in _HEADS:
        kind = torch.float32 if name == 'proprio_projector' else dtype
        state = {k: _to_disk(p, kind) for k, p in getattr(model, name).named_parameters()}
        torch.save(state, directory / f'{name}--{step}_checkpoint.pt')
    for name in TOKENIZER_FILES if tokenizer is not None else ():
        source = Path(tokenizer) / name
        if source.is_file() and source.resolve() != (directory / name).resolve():
            shutil.copyfile(source, directory / name)


def complete_tensors(model: OFTNetwork) -> dict[str, Tensor]:
    """Return every tensor of the safetensors files under its published name."""
    named = model.named_parameters()
    tensors: dict[str, Tensor] = {
        _published(name): p for name, p in named if not name.startswith(_HEADS)
    }
    for key, shape in unused_shapes(model.config).items():
        tensors[key] = model.unused[key] if key in model.unused else torch.zeros(shape)
    return tensors


def _write_shards(
    directory: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, limit: int
) -> None:
    """Write one file, or shards with an index; holds one shard at a time in host memory."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, tensor in tensors.items():
        n_bytes = tensor.numel() * dtype.itemsize
        if shards[-1] and size + n_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += n_bytes
    names = [_SINGLE]
    if len(shards) > 1:
        names = [f'model-{i + 1:05}-of-{len(shards):05}.safetensors' for i in range(len(shards))]
        total = sum(t.numel() * dtype.itemsize for t in tensors.values())
        where = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {'metadata': {'total_size': total}, 'weight_map': where}
        (directory / _INDEX).write_text(_json(index), encoding='utf-8')
    for name, keys in zip(names, shards, strict=True):
        shard = {key: _to_disk(tensors[key], dtype) for key in keys}
        save_file(shard, directory / name, metadata={'format': 'pt'})
        # safetensors writes a private file; give it the permissions of its neighbours.
        (directory / name).chmod((directory / 'config.json').stat().st_mode)


def _shards(directory: Path) -> Iterator[Path]:
    """Yield the safetensors files, after checking that they are all there."""
    index, single = directory / _INDEX, directory / _SINGLE
    if not index.is_file():
        if not single.is_file():
            raise FileNotFoundError(f'neither {_SINGLE} nor {_INDEX} in {directory}')
        yield single
        return
    names = sorted(set(read_json(index).get('weight_map', {}).values()))
    if not names:
        raise ValueError(f'{index} has no weight_map')
    if single.is_file() and single.name not in names:
        raise ValueError(f'{directory} holds both {_SINGLE} and {_INDEX}; remove one')
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise FileNotFoundError(f'shard {name} named in {_INDEX} is missing in {directory}')
    for name in names:
        yield directory / name


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework='pt', device='cpu')
    except SafetensorError as error:
        raise ValueError(f'{path} is not a valid safetensors file: {error}') from error


def _read_ahead(path: Path) -> None:
    """Ask the system to read a file now, in large pieces; a mapped one is read in small ones."""
    if hasattr(os, 'posix_fadvise'):
        with path.open('rb') as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _head_file(directory: Path, name: str) -> Path:
    files = sorted(directory.glob(f'{name}--*.pt'))
    if not files:
        raise FileNotFoundError(f'no {name}--*_checkpoint.pt in {directory}')
    if len(files) > 1:
        listed = ', '.join(f.name for f in files)
        raise ValueError(f'{directory} holds more than one {name} file: {listed}; keep one')
    return files[0]


def _read_head(path: Path) -> dict[str, Tensor]:
    """Read a plain state dict, weights only, without the wrapper's `module.` prefix."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever a broken file makes of the unpickler
        raise ValueError(f'{path} is not a plain state dict of tensors: {error}') from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f'{path} is not a plain state dict of tensors')
    return {key.removeprefix('module.'): tensor for key, tensor in state.items()}


def _compare(found: Shapes, expected: Shapes, where: str) -> None:
    for problem in differences(found, expected):
        raise ValueError(f'{where}: {problem}')


def _assign(
    model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | str
) -> None:
    parent, _, leaf = name.rpartition('.')
    own = tensor.to(device=device, dtype=dtype, copy=True)  # never a view of a mapped file
    setattr(model.get_submodule(parent), leaf, nn.Parameter(own))


def _published(name: str) -> str:
    return f'language_model.model.{name[8:]}' if name.startswith('decoder.') else name


def _internal(name: str) -> str:
    return name.replace('language_model.model.', 'decoder.', 1)


def _to_disk(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to('cpu', dtype).contiguous().clone()


def _json(data: Mapping) -> str:
    return json.dumps(data, indent=2) + '\n'
