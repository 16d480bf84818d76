# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of the pruning modes, from their registry: needs torch, unlike the others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vla_prune_ros.nodes.policy.parameters import PRUNING, pruning_choice
from vla_prune_ros.ros.parameters import ParameterError, Spec


def pruning_specs() -> tuple[Spec, ...]:
    """The mode and the options of every registered pruning mode. Imports torch."""
    from vla_prune_ros.pruning import MODES

    specs = [replace(PRUNING, choices=tuple(MODES))]  # also those that a program added
    for mode, method in MODES.items():
        specs += [
            Spec(
                f'pruning.{mode}.{option.name}', option.default, option.description,
                option.min, option.max, option.choices, read_only=False,
            )
            for option in method.options
        ]  # fmt: skip
    return tuple(specs)


def check_pruning(
    values: Mapping[str, Any], changed: Mapping[str, Any], config: Any = None
) -> None:
    """Refuse modes and budgets that a change would affect and that cannot be.

    Args:
        values: of all parameters.
        changed: new values of some.
        config: of the model that is loaded; None: nothing is known about it yet.

    Raises:
        ValueError: a mode cannot be made for the model, or what needs a budget has a mode without.
    """
    from vla_prune_ros.pruning import MODES, make_selector

    touched = {name.split('.')[1] for name in changed if name.startswith('pruning.')}
    values = {**values, **changed}
    mode = values['pruning.mode']
    budgeted = [
        name
        for name, on in (
            ('governor.deadline', values['governor.deadline']),
            ('governor.auto', values['governor.auto']),
            ('audit.threshold', values['audit.enabled'] and values['audit.threshold']),
        )
        if on
    ]
    kind = MODES[mode].budget_kind
    if config is not None and (touched or budgeted):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # nothing runs on these selectors
            for name in touched - {'mode'} | {mode}:
                method = make_selector(name, config, **pruning_choice(values, name)[1])
                kind = method.budget_kind if name == mode else kind
    if budgeted and kind == 'none':
        able = ', '.join(name for name, method in MODES.items() if method.budget_kind != 'none')
        raise ParameterError(
            f'parameter {budgeted[0]}: pruning.mode {mode} has no budget with its options; modes '
            f'with one: {able}'
        )
