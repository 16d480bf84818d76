# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Conventions of the gripper number in recorded actions, and the way to ours: 1 open, 0 closed."""

from __future__ import annotations

import numpy as np

GRIPPERS = {
    'env': '-1 open, 1 closed, as in LIBERO and robosuite',
    'policy': '1 open, 0 closed, as the policy has it',
    'inverse': '0 open, 1 closed',
    'none': 'left as it is',
}
_SLACK = 0.05  # beyond the range that a convention has


def to_policy(actions: np.ndarray, convention: str, column: int = -1) -> np.ndarray:
    """Convert the gripper of actions float32 [T, A]; the argument is left alone.

    `env` is `1 - clip(g, 0, 1)` (OpenVLA-OFT, oxe/transforms.py), so 0.25 becomes 0.75.

    Raises:
        ValueError: the numbers are those of another convention.
    """
    if convention == 'none' or not len(actions):
        return actions
    gripper = actions[:, column]
    _check(gripper, convention)
    if convention == 'policy':
        return actions
    converted = actions.copy()
    converted[:, column] = 1.0 - (gripper.clip(0.0, 1.0) if convention == 'env' else gripper)
    return converted


def _check(gripper: np.ndarray, convention: str) -> None:
    low, high = float(gripper.min()), float(gripper.max())
    if convention == 'env':
        wrong = low < -1.0 - _SLACK or high > 1.0 + _SLACK
        wrong |= low >= 0.0 and low < 0.5 < high  # opens and closes between 0 and 1
    else:
        wrong = low < -_SLACK or high > 1.0 + _SLACK
    if wrong:
        raise ValueError(
            f'the gripper goes from {low:g} to {high:g}, which is not the convention {convention}'
            f' ({GRIPPERS[convention]})'
        )


def guess(gripper: np.ndarray) -> str | None:
    """The convention that recorded numbers [N] leave no doubt about, else None."""
    found = np.unique(gripper)
    return 'env' if found.size and np.isin(found, (-1.0, 1.0)).all() and -1.0 in found else None
