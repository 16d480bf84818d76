# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How a cut is decided on the device, within a recording: what a selector may put into its plan.

Tensors that rules read, and what they leave to each other and to the selector, are notes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vla_prune_ros.vla.selection import LayerScores


@dataclass(frozen=True)
class Note:
    """A tensor that a rule reads or leaves; found by its name within a pass."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Rule(Protocol):
    """How a cut is decided without Python looking on: one frozen value with a hash.

    It is part of what a recording is found by, so it holds all that was decided in Python.

    Attributes:
        exact: it leaves as many as `most` says of as many as there are.
        leaves: notes that it makes, under names that no other rule of a pass uses.
    """

    @property
    def exact(self) -> bool:
        """See above."""

    @property
    def leaves(self) -> tuple[Note, ...]:
        """See above."""

    def most(self, before: int) -> int:
        """How many visual tokens it leaves at most of so many, or of fewer."""

    def choose(
        self, notes: Mapping[str, Tensor], scores: Mapping[int, LayerScores], live: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Decide; must not wait for the device and sees nothing but its arguments.

        Args:
            notes: see `PassPlan`, and those that earlier rules of the pass left.
            scores: of layers that were run since the last cut, where only the mean is requested.
            live: visual tokens that are there, bool [n_visual].

        Returns:
            Those of them that stay, bool [n_visual], and what it leaves.
        """
