# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The lines of a comparison, from the options of the verb `evaluate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vla_prune_ros import weights
from vla_prune_ros.evaluation.rollouts import Entry
from vla_prune_ros.pruning import MODES

CONTROL = '0.125,0.25,0.75'  # shares that `random` keeps, for the curve
_NEXT_OPTION = r',(?=\w+=)'


def make_entries(
    modes: str,
    options: Sequence[str] = (),
    variants: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    control: str | None = None,
) -> list[Entry]:
    """Lines of the comparison from the command line; see its help.

    Raises:
        ValueError: an unknown mode or option, a bad value, or a name given twice.
    """
    named = _named_modes(modes)
    names = [mode for _, mode, _ in named]
    by_mode: dict[str, dict[str, Any]] = {}
    for text in options:
        mode, key, value = _split_option(text)
        by_mode.setdefault(mode, {})[key] = parse_value(mode, key, value)
    if unused := sorted(by_mode.keys() - set(names)):
        raise ValueError(f'--option for modes that do not run: {", ".join(unused)}')
    entries = [Entry(name, mode, {**by_mode.get(mode, {}), **own}) for name, mode, own in named]
    for text in variants:
        name, _, rest = text.partition('=')
        # A comma that no KEY= follows belongs to a list, as in cut_layers=5,10
        mode, *pairs = re.split(_NEXT_OPTION, rest)
        entries.append(Entry(name, mode, _parse_pairs(mode, pairs)))
    for text in sweeps:
        mode, key, values = _split_option(text)
        for value in values.split(','):
            parsed = {**by_mode.get(mode, {}), key: parse_value(mode, key, value)}
            entries.append(Entry(f'{mode} {key}={value}', mode, parsed))
    control = control or (CONTROL if modes == 'all' else 'off')
    inherited = {k: v for k, v in by_mode.get('random', {}).items() if k != 'keep'}
    for share in control.split(',') if control != 'off' else ():
        ratio = parse_value('random', 'keep_ratio', share)
        entries.append(Entry(f'random {share}', 'random', {**inherited, 'keep_ratio': ratio}))
    seen = [entry.name for entry in entries]
    if double := sorted({name for name in seen if seen.count(name) > 1}):
        raise ValueError(f'entries given twice: {", ".join(double)}')
    if not entries:
        raise ValueError('nothing to run: give --modes, --variant or --sweep')
    return entries


def assign_checkpoints(
    entries: Sequence[Entry], given: Sequence[str], defaults: dict[str, str] | None = None
) -> list[Entry]:
    """Give entries a checkpoint of their own.

    Args:
        entries: lines of the comparison.
        given: `NAME=DIR` each; NAME is an entry, or a mode for those of its entries that are not
            named. DIR may be the name of an embedded policy.
        defaults: mode -> checkpoint where nothing is given.

    Raises:
        ValueError: a text of another form, a name given twice, or one that nothing bears.
    """
    borne = {name for entry in entries for name in (entry.name, entry.mode)}
    chosen: dict[str, str] = {}
    for text in given:
        # Names of entries and directories may hold an equals sign, too.
        name = max((n for n in borne if text.startswith(f'{n}=')), key=len, default='')
        checkpoint = text[len(name) + 1 :]
        if not name or not checkpoint:
            names = ', '.join(entry.name for entry in entries)
            raise ValueError(
                f'--checkpoint-for {text!r} is not NAME=DIR with an entry or mode of this run;'
                f' entries: {names}'
            )
        if name in chosen:
            raise ValueError(f'--checkpoint-for {name} is given twice')
        chosen[name] = checkpoint
    chosen = {**(defaults or {}), **chosen}
    return [
        replace(entry, checkpoint=chosen.get(entry.name, chosen.get(entry.mode)))
        for entry in entries
    ]


def embedded_checkpoints(suite: str) -> tuple[str, dict[str, str]]:
    """The embedded policy of a suite, and mode -> embedded policy that was trained for it.

    Raises:
        ValueError: no policy for this suite comes with the package.
    """
    weights.directory(suite)
    own = {mode: f'{suite}_{mode}' for mode in MODES}
    return suite, {mode: name for mode, name in own.items() if name in weights.available()}


def parse_value(mode: str, key: str, text: str) -> Any:
    """The value of a mode's option from the command line, in the option's own type."""
    options = {option.name: option for option in MODES[mode].options}
    if key not in options:
        valid = ', '.join(options) or 'it has no options'
        raise ValueError(f'mode {mode!r} has no option {key!r}; valid: {valid}')
    kind = options[key].type
    try:
        if kind is bool:
            return {'true': True, 'false': False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ValueError(f'{mode}.{key}: {text!r} is not a {kind.__name__}') from None


def _named_modes(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, mode and options of each entry in a list such as `none,fastv:budget=0.25,rows=all`."""
    if text == 'all':
        return [(mode, mode, {}) for mode in MODES]
    entries: list[str] = []
    for part in filter(None, text.split(',')):
        # A comma behind options leads to the next mode, to one more option, or on in a list.
        if entries and ':' in entries[-1] and part.partition(':')[0] not in MODES:
            entries[-1] += f',{part}'
        else:
            entries.append(part)
    named = []
    for entry in entries:
        mode, _, rest = entry.partition(':')
        pairs = re.split(_NEXT_OPTION, rest) if rest else []
        named.append((entry, mode, _parse_pairs(mode, pairs)))
    return named


def _parse_pairs(mode: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Options written as KEY=VALUE."""
    _require_mode(mode)
    values = (pair.partition('=') for pair in pairs)
    return {key: parse_value(mode, key, value) for key, _, value in values}


def _split_option(text: str) -> tuple[str, str, str]:
    path, equals, value = text.partition('=')
    mode, dot, key = path.partition('.')
    if not (equals and dot and key):
        raise ValueError(f'{text!r} is not of the form MODE.KEY=VALUE')
    _require_mode(mode)
    return mode, key, value


def _require_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f'unknown pruning mode {mode!r}; valid: {", ".join(MODES)}')
