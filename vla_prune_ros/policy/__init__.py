# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One observation in, one action chunk out."""

from vla_prune_ros.policy.policy import (
    IMAGE_PIPELINES,
    ActionChunk,
    Observation,
    PolicySettings,
    VLAPolicy,
)

__all__ = ['IMAGE_PIPELINES', 'ActionChunk', 'Observation', 'PolicySettings', 'VLAPolicy']
