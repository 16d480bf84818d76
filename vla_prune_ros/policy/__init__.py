# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One observation in, one action chunk out."""

from vla_prune_ros.policy.policy import VLAPolicy
from vla_prune_ros.policy.types import (
    SOME_INSTRUCTION,
    ActionChunk,
    Observation,
    PolicySettings,
)

__all__ = ['SOME_INSTRUCTION', 'ActionChunk', 'Observation', 'PolicySettings', 'VLAPolicy']
