# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a tick to an observation, in the one way that node and replay share. Knows no ROS.

The way back is shared too: a chunk is published as `publishable` leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune_ros.execution.checks import safe_actions
from vla_prune_ros.nodes.policy.assembler import NANOSECONDS, MatchedSet
from vla_prune_ros.nodes.policy.joints import STATES
from vla_prune_ros.nodes.policy.trigger import Tick
from vla_prune_ros.ros.images import ImageError

if TYPE_CHECKING:
    from vla_prune_ros.nodes.policy.parameters import PolicyConfig
    from vla_prune_ros.policy import Observation, VLAPolicy


class Picture:
    """A camera message that is unpacked only if somebody looks at it."""

    __slots__ = ('_message', '_report', '_unpack', 'nbytes')

    def __init__(
        self,
        message: Any,
        unpack: Callable[[Any], np.ndarray],
        report: Callable[[ImageError], None],
    ) -> None:
        """`report` gets the reason, once, if the message cannot be unpacked."""
        self._message, self._unpack, self._report = message, unpack, report
        self.nbytes = len(message.data)

    def pixels(self) -> np.ndarray:
        """The picture as uint8 [H, W, 3].

        Raises:
            ImageError: it is none.
        """
        try:
            return self._unpack(self._message)
        except ImageError as error:
            self._report(error)
            self._report = lambda _: None
            raise


def unpacked(observation: MatchedSet, cameras: Sequence[str]) -> MatchedSet:
    """The observation with arrays in the place of pictures.

    Raises:
        ImageError: one of them is none.
    """
    return replace(observation, samples=observation.samples | _images(observation, cameras))


def observation_of(
    policy: VLAPolicy, tick: Tick, cameras: Sequence[str], prepared: Prepared | None = None
) -> Observation:
    """Tell the policy's history what came before a tick; returns what is to be answered.

    Frames before it that cannot be unpacked are left out.

    Args:
        policy: that is to answer.
        tick: the observation and what came before it.
        cameras: names of the images, third-person view first.
        prepared: frames that were prepared while the policy had nothing to do.

    Raises:
        ImageError: a picture of the observation itself cannot be unpacked.
    """
    from vla_prune_ros.policy import Observation

    images, samples = _images(tick.observation, cameras), tick.observation.samples
    for event in tick.events():
        if isinstance(event, np.ndarray):
            policy.record_executed(event)
        elif policy.wants_frames:
            ready = prepared.take(event) if prepared else None
            with suppress(ImageError):
                policy.observe(_images(event, cameras) if ready is None else {}, ready)
    state = [samples[name] for name in STATES['pose_fingers'] if name in samples]
    return Observation(
        images=images,
        proprio=np.concatenate(state) if state else None,
        instruction=tick.instruction,
        stamp=tick.observation.stamp / NANOSECONDS,
    )


def publishable(actions: np.ndarray, config: PolicyConfig, period: int) -> tuple[np.ndarray, int]:
    """Actions of a chunk in the units of the robot, within their range; see `safe_actions`.

    Args:
        actions: of the policy.
        config: of the node.
        period: control period, ns.
    """
    safe, clipped = safe_actions(actions, period, *config.action.range)
    return config.action_joint_positions.of_robot(safe), clipped


class Prepared:
    """Frames between two observations, prepared when they came, not when a chunk is waited for."""

    def __init__(self) -> None:
        self._frames: dict[int, tuple[MatchedSet, Any]] = {}

    def add_one(
        self, policy: VLAPolicy, frames: Iterable[MatchedSet], cameras: Sequence[str]
    ) -> bool:
        """Prepare the first of the frames that is not yet, and forget those that are none of them.

        Returns:
            Whether there was one.
        """
        frames = tuple(frames)
        self._frames = {
            frame.stamp: self._frames[frame.stamp]
            for frame in frames
            if self._frames.get(frame.stamp, (None,))[0] is frame
        }
        missing = next((frame for frame in frames if frame.stamp not in self._frames), None)
        if missing is None:
            return False
        made = None
        with suppress(ImageError):
            made = policy.prepare(_images(missing, cameras))
        self._frames[missing.stamp] = missing, made
        return True

    def take(self, frame: MatchedSet) -> Any:
        """What was made of this very frame; None if nothing was."""
        found, prepared = self._frames.pop(frame.stamp, (None, None))
        return prepared if found is frame else None

    def clear(self) -> None:
        """Forget all."""
        self._frames.clear()


def _images(observation: MatchedSet, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    samples = {name: observation.samples[name] for name in cameras}
    return {n: s.pixels() if isinstance(s, Picture) else s for n, s in samples.items()}
