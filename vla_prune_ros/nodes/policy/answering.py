# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a tick to an observation, in the one way that node and replay share. Knows no ROS.

The way back is shared too: a chunk is published as `checks.safe_actions` leaves it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros.nodes.policy.assembler import NANOSECONDS, MatchedSet
from vla_prune_ros.nodes.policy.trigger import MAX_BETWEEN, Tick

if TYPE_CHECKING:
    from vla_prune_ros.policy import Observation, VLAPolicy


def observation_of(
    policy: VLAPolicy, tick: Tick, cameras: Sequence[str], prepared: Prepared | None = None
) -> Observation:
    """Tell the policy's history what came before a tick; returns what is to be answered.

    Args:
        policy: that is to answer.
        tick: the observation and what came before it.
        cameras: names of the images, third-person view first.
        prepared: frames that were prepared while the policy had nothing to do.
    """
    from vla_prune_ros.policy import Observation

    for event in tick.events():
        if isinstance(event, np.ndarray):
            policy.record_executed(event)
        else:
            policy.observe(_images(event, cameras), prepared and prepared.take(event))
    samples = tick.observation.samples
    return Observation(
        images=_images(tick.observation, cameras),
        proprio=np.concatenate([samples['ee_pose'], samples['joint_states']]),
        instruction=tick.instruction,
        stamp=tick.observation.stamp / NANOSECONDS,
    )


class Prepared:
    """Frames between two observations, prepared when they came, not when a chunk is waited for."""

    def __init__(self) -> None:
        self._frames: OrderedDict[int, tuple[MatchedSet, Any]] = OrderedDict()

    def add(self, policy: VLAPolicy, frame: MatchedSet, cameras: Sequence[str]) -> None:
        """Prepare a frame; the oldest of too many is forgotten."""
        self._frames[frame.stamp] = frame, policy.prepare(_images(frame, cameras))
        while len(self._frames) > MAX_BETWEEN:
            self._frames.popitem(last=False)

    def take(self, frame: MatchedSet) -> Any:
        """What was made of this very frame; None if nothing was."""
        found, prepared = self._frames.pop(frame.stamp, (None, None))
        return prepared if found is frame else None

    def clear(self) -> None:
        """Forget all."""
        self._frames.clear()


def _images(observation: MatchedSet, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: observation.samples[name] for name in cameras}
