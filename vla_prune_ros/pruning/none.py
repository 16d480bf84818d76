# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""No pruning: the reference every mode is compared with."""

from vla_prune_ros.pruning.base import PruningMethod


class NoPruning(PruningMethod):
    """Keeps every token."""

    name = 'none'
    summary = 'keep every visual token'
    plans_ahead = True
