# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Packages that only some robots need: imported when a parameter asks for them."""

from __future__ import annotations

import importlib
from types import ModuleType


def needed(module: str, wanted_by: str) -> ModuleType:
    """Import a module.

    Raises:
        RuntimeError: it is not installed; the text says what wants it and how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split('.')[0]
        raise RuntimeError(
            f'{wanted_by} needs {package}, which is not installed: {error}. It comes with a ROS 2 '
            f'installation: apt install ros-$ROS_DISTRO-{package.replace("_", "-")}'
        ) from None
