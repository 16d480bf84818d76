# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Policies that come with the package, one checkpoint directory each."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def available() -> tuple[str, ...]:
    """Names of the embedded policies."""
    root = Path(str(files(__name__)))
    return tuple(sorted(path.parent.name for path in root.glob('*/config.json')))


def directory(name: str) -> Path:
    """Return the checkpoint directory of an embedded policy.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    if name not in available():
        known = ', '.join(available()) or 'none'
        raise ValueError(f'no embedded policy {name!r}; available: {known}')
    return Path(str(files(__name__))) / name
