# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which variant of OpenVLA-OFT a checkpoint is: told, read, derived, or asked for by name.

The published files do not say how many cameras, which chunk length or which normalisation a model
was trained with; the authors' scripts choose them by the command line (openvla-oft,
`prismatic/vla/constants.py`). So they are declared: by the user, by keys of `config.json`, which
we write, or by what lies beside it. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

HEADS = ('l1', 'tokens')
NORMALISATIONS = ('bounds_q99', 'bounds')
ACTION_KINDS = ('delta_pose', 'joint_positions')
# Keys of `config.json`, and what each must be.
KEYS: dict[str, type] = {
    'n_views': int,
    'cameras': list,
    'use_proprio': bool,
    'proprio_dim': int,
    'action_dim': int,
    'chunk_len': int,
    'head': str,
    'film': bool,
    'normalisation': str,
    'action_kind': str,
    'control_rate': float,
}
_MAY_BE_SILENT = {'cameras', 'control_rate'}

_LIBERO = {
    'n_views': 2, 'cameras': ['agentview', 'wrist'], 'use_proprio': True, 'proprio_dim': 8,
    'action_dim': 7, 'chunk_len': 8, 'head': 'l1', 'normalisation': 'bounds_q99',
    'action_kind': 'delta_pose', 'control_rate': 20.0,
}  # fmt: skip
# FiLM is not among them: the files say it.
PRESETS: dict[str, dict[str, Any]] = {
    'libero': _LIBERO,
    # Fine-tuned with the authors' script for SimpleVLA-RL: one camera, no state, no head file.
    'libero_tokens': _LIBERO
    | {'n_views': 1, 'cameras': ['agentview'], 'use_proprio': False, 'head': 'tokens'},
    'aloha': {
        'n_views': 3, 'cameras': ['cam_high', 'cam_left_wrist', 'cam_right_wrist'],
        'use_proprio': True, 'proprio_dim': 14, 'action_dim': 14, 'chunk_len': 25, 'head': 'l1',
        'normalisation': 'bounds', 'action_kind': 'joint_positions', 'control_rate': 25.0,
    },
    'bridge': _LIBERO
    | {'n_views': 1, 'cameras': ['image_0'], 'proprio_dim': 7, 'chunk_len': 5,
       'control_rate': 5.0},
    'robotwin': {
        'n_views': 1, 'cameras': ['head_camera'], 'use_proprio': True, 'proprio_dim': 14,
        'action_dim': 14, 'chunk_len': 25, 'head': 'tokens', 'normalisation': 'bounds',
        'action_kind': 'joint_positions',
    },
}  # fmt: skip
NO_DIFFUSION = (
    'the diffusion head is not supported: it takes 50 passes of the decoder per chunk, and no '
    'weights are public; fine-tune an L1 head, which is as good in the paper'
)
_NAMES = {1: ('agentview',), 2: ('agentview', 'wrist')}


def default_cameras(n_views: int) -> tuple[str, ...]:
    """Names where none are declared; they are only names."""
    named = tuple(PRESETS['aloha']['cameras']) if n_views == 3 else ()
    return _NAMES.get(n_views) or named or tuple(f'camera_{i}' for i in range(n_views))


@dataclass(frozen=True)
class Files:
    """What the files beside `config.json` say.

    Attributes:
        values: key -> value.
        origins: key -> file that says so.
        directory: for messages.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    directory: str = ''


def declared(text: str) -> tuple[str, dict[str, Any]]:
    """Read a declaration: `NAME`, `NAME,key=value,...` or `key=value,...`; '' declares nothing.

    Lists of names are written with blanks: `cameras=front left right`.

    Returns:
        Name of a preset or '', and the values that are given singly.

    Raises:
        ValueError: unknown name or key, or a value of another type; the message lists the valid.
    """
    name, values = '', {}
    for place, part in enumerate(filter(None, (part.strip() for part in text.split(',')))):
        key, sign, value = (piece.strip() for piece in part.partition('='))
        if not sign and place == 0:
            if part not in PRESETS:
                raise ValueError(f'variant {part!r} is not one of {", ".join(PRESETS)}')
            name = part
            continue
        if key not in KEYS or not sign:
            raise ValueError(f'variant: {part!r} is not KEY=VALUE with a key of {", ".join(KEYS)}')
        try:
            found = value.split() if KEYS[key] is list else yaml.safe_load(value)
        except yaml.YAMLError:
            found = None
        values[key] = _typed(key, found, f'variant: {part!r}')
    return name, values


def applied(config: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Contents of a `config.json` with what is declared put in; see `declared`."""
    name, told = declared(text)
    values = {**PRESETS.get(name, {}), **told}
    if 'cameras' in told:
        values['n_views'] = told.get('n_views', len(told['cameras']))
    elif 'n_views' in told:
        values['cameras'] = list(default_cameras(told['n_views']))
    return {**config, **values}


def _typed(key: str, value: Any, where: str) -> Any:
    kind = KEYS[key]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f'{where}: {key} must be of type {kind.__name__}, not {value!r:.60}')
    return value


def resolve(
    data: Mapping[str, Any], files: Files, variant: str = ''
) -> tuple[dict[str, Any], dict[str, str]]:
    """Find every property of a variant.

    What the user tells goes before `config.json`, that before the files; `libero` is taken where
    an L1 head of 7 and a state projector of 8 numbers are there.

    Args:
        data: contents of `config.json`.
        files: what lies beside it.
        variant: see `declared`.

    Returns:
        Values by key, and where each comes from.

    Raises:
        FileNotFoundError: a head that is declared is not there, or none is and none is declared.
        ValueError: a declaration contradicts a file, or something must be declared.
    """
    name, told = declared(variant)
    preset = PRESETS.get(name, {})
    read = {k: _typed(k, data[k], 'config.json') for k in KEYS if data.get(k) is not None}
    if 'proprio_dim' in read:
        read.setdefault('use_proprio', read['proprio_dim'] > 0)
    is_libero = (
        files.values.get('head') == 'l1'
        and files.values.get('action_dim') == 7
        and files.values.get('proprio_dim') == 8
    )
    sources: list[tuple[Mapping[str, Any], Any]] = [
        (told, lambda key: 'told'),
        (preset, lambda key: f'told (variant {name})'),
        (read, lambda key: 'config.json'),
        (files.values, lambda key: f'derived from {files.origins[key]}'),
    ]
    if is_libero:
        sources.append(
            (PRESETS['libero'], lambda key: 'preset libero, by an L1 head of 7 and a state of 8')
        )
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key in KEYS:
        for source, origin in sources:
            if key in source:
                values[key], origins[key] = source[key], origin(key)
                break
    widths = _widths(data.get('norm_stats'))
    if 'action_dim' not in values and len(widths) == 1:
        values['action_dim'], origins['action_dim'] = *widths, 'derived from the statistics'
    _complete(values, origins)
    if 'diffusion' in (values.get('head'), files.values.get('head')):
        raise ValueError(f'{files.directory}: {NO_DIFFUSION}')
    _check_against_files(values, origins, files)
    missing = [key for key in KEYS if key not in values and key not in _MAY_BE_SILENT]
    if 'head' in missing:
        raise FileNotFoundError(
            f'no action_head--*_checkpoint.pt in {files.directory}, and no head is declared: are '
            'these discrete tokens of OpenVLA-OFT (variant libero_tokens, or head=tokens), or is '
            'it an original OpenVLA, which is another function and not supported?'
        )
    if missing:
        raise ValueError(
            f'{files.directory} does not say {", ".join(missing)}: declare a variant '
            f'({", ".join(PRESETS)}), or {missing[0]}=VALUE and so on, as the argument --variant, '
            'the parameter variant, or keys of config.json'
        )
    if widths and values['action_dim'] not in widths:
        raise ValueError(
            f'{files.directory}: action_dim is {values["action_dim"]} ({origins["action_dim"]}), '
            f'but the statistics have {", ".join(map(str, sorted(widths)))} numbers per action: '
            'give it the dataset_statistics.json of its training'
        )
    for key in _MAY_BE_SILENT - values.keys():
        origins[key] = 'not stated'
    return values, origins


def _widths(statistics: Any) -> set[int]:
    """Numbers per action in the statistics, as far as they can be read."""
    sets = statistics.values() if isinstance(statistics, Mapping) else ()
    blocks = [s.get('action') for s in sets if isinstance(s, Mapping)]
    lows = [b.get('q01', b.get('min')) for b in blocks if isinstance(b, Mapping)]
    return {len(low) for low in lows if isinstance(low, list)}


def _complete(values: dict[str, Any], origins: dict[str, str]) -> None:
    """What follows from each other: the number of the cameras from their names, no state."""
    if 'n_views' not in values and 'cameras' in values:
        values['n_views'], origins['n_views'] = len(values['cameras']), origins['cameras']
    if 'cameras' in values and len(values['cameras']) != values['n_views']:
        if origins['cameras'] == 'told' and origins['n_views'].startswith('told ('):  # a preset's
            values['n_views'], origins['n_views'] = len(values['cameras']), 'told'
        elif origins['cameras'] == 'told' or origins['cameras'] == origins['n_views']:
            raise ValueError(
                f'n_views is {values["n_views"]} ({origins["n_views"]}), but cameras are '
                f'{" ".join(values["cameras"])} ({origins["cameras"]})'
            )
        else:  # of a declaration that was overridden
            del values['cameras'], origins['cameras']
    if values.get('use_proprio') is False:
        values['proprio_dim'] = 0
        origins['proprio_dim'] = origins['use_proprio']


def _check_against_files(
    values: Mapping[str, Any], origins: Mapping[str, str], files: Files
) -> None:
    for key, there in files.values.items():
        off = key in ('use_proprio', 'proprio_dim') and not values['use_proprio']
        if values[key] == there or off:  # a projector that is not used may lie there
            continue
        said = f'{key} is {values[key]} ({origins[key]})'
        if key in ('use_proprio', 'film') and not there:
            kind = 'proprio_projector' if key == 'use_proprio' else 'vision_backbone'
            raise FileNotFoundError(
                f'no {kind}--*_checkpoint.pt in {files.directory}, but {said}; '
                f'declare {key}=false if there is to be none'
            )
        raise ValueError(
            f'{files.directory}: {said}, but {there} by {files.origins[key]}; declare what it is'
        )
    if values.get('head') == 'l1' and 'head' not in files.values:
        raise FileNotFoundError(
            f'no action_head--*_checkpoint.pt in {files.directory}, but head is l1 '
            f'({origins["head"]})'
        )
