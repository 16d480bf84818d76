# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a robot reports of the actions that it was given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Executed:
    """Actions [n, 7] that a robot executed, and the time in ns at which each of them ended."""

    actions: np.ndarray
    ends: tuple[int, ...]
