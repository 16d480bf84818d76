# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Action-aware choice between coarse and fine pruning, with hysteresis.

Slow, level or downward motion is taken for manipulation, where the fine mode keeps more tokens.
Source: SpecPrune-VLA (arXiv 2509.05614) section on the action-aware controller; it gives no
numbers. Thresholds are in the units of the executed actions, where 1 is a full controller step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Thresholds:
    """When the mode changes.

    Attributes:
        enter_translation, enter_rotation: fine is entered below both, unless the hand rises.
        leave_translation, leave_rotation: fine is left above either.
        hold_steps: control steps between two changes at least.

    Raises:
        ValueError: a leave threshold is below the enter threshold.
    """

    enter_translation: float = 0.4
    enter_rotation: float = 0.2
    leave_translation: float = 0.6
    leave_rotation: float = 0.3
    hold_steps: int = 8

    def __post_init__(self) -> None:
        for axis in ('translation', 'rotation'):
            enter, leave = getattr(self, f'enter_{axis}'), getattr(self, f'leave_{axis}')
            if leave < enter:
                raise ValueError(f'option leave_{axis}={leave} is below enter_{axis}={enter}')


class SpeedController:
    """Follows the executed actions of one episode.

    Attributes:
        fine: the fine mode is in force.
        since: control step of the last change, None before the first.
        step: last control step seen.
    """

    def __init__(self) -> None:
        self.fine = False
        self.since: int | None = None
        self.step = 0

    def follow(self, executed: list[np.ndarray], step: int, limits: Thresholds) -> None:
        """See the actions that are new since the last call.

        Args:
            executed: latest executed actions, oldest first, each float64 [action_dim]: xyz,
                rotation, gripper. Those already seen are passed over.
            step: control step after the last of them.
            limits: thresholds in force.
        """
        unseen = min(step - self.step, len(executed))
        for back in range(unseen, 0, -1):
            self._update(executed[-back], step - back + 1, limits)
        self.step = step

    def _update(self, action: np.ndarray, step: int, limits: Thresholds) -> None:
        if self.since is not None and step - self.since < limits.hold_steps:
            return
        translation = float(np.linalg.norm(action[:3]))
        rotation = float(np.linalg.norm(action[3:6]))
        if self.fine:
            change = translation > limits.leave_translation or rotation > limits.leave_rotation
        else:
            slow = translation < limits.enter_translation and rotation < limits.enter_rotation
            change = slow and action[2] <= 0
        if change:
            self.fine, self.since = not self.fine, step
