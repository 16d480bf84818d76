# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One observation in, one action chunk out."""

from vla_prune_ros.policy.policy import VLAPolicy
from vla_prune_ros.policy.types import ActionChunk, Observation, PolicySettings

__all__ = ['ActionChunk', 'Observation', 'PolicySettings', 'VLAPolicy']
