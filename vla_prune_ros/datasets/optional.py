# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Libraries that only some formats need (requirements/training.txt)."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def library(name: str, what: str) -> Any:
    """Import a module.

    Raises:
        ModuleNotFoundError: it is not installed; the text says what needs it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{what} needs the package {name.partition(".")[0]}'
            ' (pip install -r requirements/training.txt)'
        ) from error
