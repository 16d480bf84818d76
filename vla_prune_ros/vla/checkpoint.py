# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The published checkpoint layout: strict, read-only loading, and saving.

A directory holds `config.json`, `model.safetensors` (or shards with an index), one
`action_head--*_checkpoint.pt` (not where actions are tokens), one
`proprio_projector--*_checkpoint.pt` (where the state is used), one
`vision_backbone--*_checkpoint.pt` (with FiLM), optionally `dataset_statistics.json`, and tokenizer
files; see `published` for the small files. Nothing here touches the network.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_prune_ros.vla import film
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.model import OFTNetwork
from vla_prune_ros.vla.published import (
    TOKENIZER_FILES,
    companion_files,
    differences,
    unused_shapes,
)
from vla_prune_ros.vla.stored import (
    FILM_FILE,
    HEADS,
    INDEX,
    PROJECTOR,
    SINGLE,
    StoredTensor,
    head_file,
    head_names,
    open_safetensors,
    read_head,
    stored_tensors,
)

_TOWERS = 'vision_backbone.'


def published_shapes(model: OFTNetwork) -> dict[str, tuple[int, ...]]:
    """Every tensor of the safetensors files for this model: name -> shape.

    Modulations (FiLM) have a file of their own, and so have the heads that are no tokens.
    """
    apart = head_names(model.config)
    shapes = {
        _published(name): tuple(p.shape)
        for name, p in model.named_parameters()
        if not name.startswith(apart) and not film.is_modulation(name)
    }
    unused = unused_shapes(model.config)
    return shapes | {k: shape for k, shape in unused.items() if not film.is_modulation(k)}


def problems_of(
    model: OFTNetwork, directory: Path, stored: Mapping[str, StoredTensor], shown: int = 5
) -> Iterator[str]:
    """What is wrong with the names and shapes in a directory; files are read by their headers.

    Args:
        model: as its config says, weights do not matter.
        directory: of the checkpoint.
        stored: see `stored_tensors`.
        shown: names of tensors in a message.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is malformed, or there are several of one kind.
    """
    expected = published_shapes(model)
    apart = [name for name in head_names(model.config) if not _is_inside(name, stored)]
    for name in head_names(model.config):
        if name not in apart:
            own = getattr(model, name).named_parameters()
            expected |= {f'{name}.{key}': tuple(p.shape) for key, p in own}
    found = {
        key: tensor.shape
        for key, tensor in stored.items()
        if model.config.use_proprio or not key.startswith(PROJECTOR)
    }
    yield from (f'{directory}: {one}' for one in differences(found, expected, shown))
    for name in apart:
        path = head_file(directory, name)
        shapes = {key: tuple(tensor.shape) for key, tensor in read_head(path).items()}
        wanted = {k: tuple(p.shape) for k, p in getattr(model, name).named_parameters()}
        yield from (f'{path}: {one}' for one in differences(shapes, wanted, shown))
    if model.config.film:
        path = head_file(directory, FILM_FILE)
        shapes = film.merged_shapes(read_head(path), path)
        own = model.vision_backbone.named_parameters()
        wanted = {_TOWERS + name: tuple(p.shape) for name, p in own}
        unused = unused_shapes(model.config)
        wanted |= {k: shape for k, shape in unused.items() if k.startswith(_TOWERS)}
        yield from (f'{path}: {one}' for one in differences(shapes, wanted, shown))


def _is_inside(name: str, stored: Mapping[str, StoredTensor]) -> bool:
    """Whether a head lies in the safetensors, as trainers of another kind write it."""
    return any(key.startswith(f'{name}.') for key in stored)


Taker = Callable[[nn.Module, str, Tensor], bool]


def load_weights(
    model: OFTNetwork,
    directory: str | Path,
    dtype: torch.dtype,
    device: torch.device | str,
    take: Taker | None = None,
) -> None:
    """Fill a model that was built on the meta device, one tensor at a time.

    The names and shapes of a file are checked before any of its weights is taken over.

    Args:
        model: its parameters are replaced by those of the files.
        directory: checkpoint directory; never written to.
        dtype: floating-point type of the loaded parameters.
        device: where they go. Unused tensors stay on the CPU in the dtype of the file.
        take: called with the model, the name of a parameter and the tensor of the file, which is
            valid within the call; says True if it put the tensor where it belongs by itself.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a tensor or file is not what it must be; the message names it.
    """
    directory, config = Path(directory), model.config
    stored = stored_tensors(directory)
    for problem in problems_of(model, directory, stored):
        raise ValueError(problem)
    for name in head_names(config):
        if not _is_inside(name, stored):
            for key, tensor in read_head(head_file(directory, name)).items():
                _assign(model, f'{name}.{key}', tensor, dtype, device)
    unused = unused_shapes(config)
    if config.film:
        path = head_file(directory, FILM_FILE)
        for key, tensor in film.merged(read_head(path), path):
            if key in unused:
                model.unused[key] = tensor.clone()
            else:
                _assign(model, key, tensor, dtype, device)
    where = {
        key: tensor.path
        for key, tensor in stored.items()
        # With FiLM the towers here are those of the model before its training.
        if not (config.film and key.startswith(_TOWERS))
        and (config.use_proprio or not key.startswith(PROJECTOR))
    }
    files = [*dict.fromkeys(where.values())]
    for path, following in itertools.zip_longest(files, files[1:]):
        for file in (path, following):
            if file is not None:
                _read_ahead(file)
        for key in (key for key, place in where.items() if place == path):
            # A mapped file stays resident until it is closed, so each tensor gets its own mapping:
            # never more than one tensor is held twice.
            with open_safetensors(path) as file:
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point():
                    raise ValueError(f'tensor {key} in {path.name} has type {tensor.dtype}')
                if key in unused:
                    model.unused[key] = tensor.clone()
                else:
                    name = _internal(key, config)
                    if take is None or not take(model, name, tensor):
                        _assign(model, name, tensor, dtype, device)
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
    names = (*head_names(model.config), *([FILM_FILE] if model.config.film else []))
    mine = {f'{name}--{step}_checkpoint.pt' for name in names}
    for name in (*HEADS, FILM_FILE):
        for path in directory.glob(f'{name}--*.pt'):
            if path.name not in mine:
                raise FileExistsError(f'{path} is there already; choose an empty directory')
    for path in directory.glob('model*.safetensors*'):
        path.unlink()
    for name, content in companion_files(model.config).items():
        (directory / name).write_text(_json(content), encoding='utf-8')
    tensors = complete_tensors(model)
    if model.config.film:
        state = film.unmerged({k: t for k, t in tensors.items() if k.startswith(_TOWERS)}, dtype)
        torch.save(state, directory / f'{FILM_FILE}--{step}_checkpoint.pt')
        del state
        tensors = {k: t for k, t in tensors.items() if not film.is_modulation(k)}
    _write_shards(directory, tensors, dtype, max_shard_bytes)
    for name in head_names(model.config):
        kind = torch.float32 if name == 'proprio_projector' else dtype
        state = {k: _to_disk(p, kind) for k, p in getattr(model, name).named_parameters()}
        torch.save(state, directory / f'{name}--{step}_checkpoint.pt')
    for name in TOKENIZER_FILES if tokenizer is not None else ():
        source = Path(tokenizer) / name
        if source.is_file() and source.resolve() != (directory / name).resolve():
            shutil.copyfile(source, directory / name)


def complete_tensors(model: OFTNetwork) -> dict[str, Tensor]:
    """Return every tensor of towers and language model under its published name."""
    apart = head_names(model.config)
    tensors: dict[str, Tensor] = {
        _published(name): p for name, p in model.named_parameters() if not name.startswith(apart)
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
    names = [SINGLE]
    if len(shards) > 1:
        names = [f'model-{i + 1:05}-of-{len(shards):05}.safetensors' for i in range(len(shards))]
        total = sum(t.numel() * dtype.itemsize for t in tensors.values())
        where = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {'metadata': {'total_size': total}, 'weight_map': where}
        (directory / INDEX).write_text(_json(index), encoding='utf-8')
    for name, keys in zip(names, shards, strict=True):
        shard = {key: _to_disk(tensors[key], dtype) for key in keys}
        save_file(shard, directory / name, metadata={'format': 'pt'})
        # safetensors writes a private file; give it the permissions of its neighbours.
        (directory / name).chmod((directory / 'config.json').stat().st_mode)


def _read_ahead(path: Path) -> None:
    """Ask the system to read a file now, in large pieces; a mapped one is read in small ones."""
    if hasattr(os, 'posix_fadvise'):
        with path.open('rb') as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _assign(
    model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | str
) -> None:
    parent, _, leaf = name.rpartition('.')
    own = tensor.to(device=device, dtype=dtype, copy=True)  # never a view of a mapped file
    setattr(model.get_submodule(parent), leaf, nn.Parameter(own))


_LM_HEAD = 'language_model.lm_head.weight', 'action_head.lm_head.weight'


def _published(name: str) -> str:
    if name == _LM_HEAD[1]:
        return _LM_HEAD[0]
    return f'language_model.model.{name[8:]}' if name.startswith('decoder.') else name


def _internal(name: str, config: OpenVLAConfig) -> str:
    if name == _LM_HEAD[0] and config.head == 'tokens':
        return _LM_HEAD[1]
    return name.replace('language_model.model.', 'decoder.', 1)


def _to_disk(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to('cpu', dtype).contiguous().clone()


def _json(data: Mapping) -> str:
    return json.dumps(data, indent=2) + '\n'
