# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How the hand moved in an episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def path_length(places: Sequence[np.ndarray]) -> float:
    """Length (m) of the way through positions [n, 3]."""
    return float(np.linalg.norm(np.diff(np.asarray(places), axis=0), axis=1).sum())


def rms_jerk(places: Sequence[np.ndarray], hz: float) -> float:
    """Root mean square of the third derivative (m/s3) by differences; 0 below four positions.

    Args:
        places: positions [n, 3] of the hand, one per control step.
        hz: control steps per second.
    """
    if len(places) < 4:
        return 0.0
    jerk = np.diff(np.asarray(places), n=3, axis=0) * hz**3
    return float(np.sqrt((jerk**2).sum(axis=1).mean()))
