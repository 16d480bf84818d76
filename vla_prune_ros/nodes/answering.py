# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a tick to an observation, in the one way that node and replay share. Knows no ROS.

The way back is shared too: a chunk is published as `checks.safe_actions` leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla_prune_ros.nodes.assembler import NANOSECONDS, MatchedSet
from vla_prune_ros.nodes.trigger import Tick

if TYPE_CHECKING:
    from vla_prune_ros.policy import Observation, VLAPolicy


def observation_of(policy: VLAPolicy, tick: Tick, cameras: Sequence[str]) -> Observation:
    """Tell the policy's history what came before a tick; returns what is to be answered."""
    from vla_prune_ros.policy import Observation

    for event in tick.events():
        if isinstance(event, np.ndarray):
            policy.record_executed(event)
        else:
            policy.observe(_images(event, cameras))
    samples = tick.observation.samples
    return Observation(
        images=_images(tick.observation, cameras),
        proprio=np.concatenate([samples['ee_pose'], samples['joint_states']]),
        instruction=tick.instruction,
        stamp=tick.observation.stamp / NANOSECONDS,
    )


def _images(observation: MatchedSet, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: observation.samples[name] for name in cameras}
