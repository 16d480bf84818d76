# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`~/pruning_overlay`: the camera pictures with the patches that the model kept.

Nothing is drawn while nobody subscribes; a timer of the executor draws the newest chunk's, so the
model never waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import Image

from vla_prune_ros.nodes.policy.inference import Answer
from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.ros.messages import NO_EVENTS, RELIABLE, image_message


class Overlay:
    """Publishes at most `overlay.rate` pictures per second of wall clock."""

    def __init__(
        self, node: Node, config: PolicyConfig, patches_per_view: Callable[[], int]
    ) -> None:
        self._cameras, self._scale = config.cameras, config.overlay_scale
        self._patches_per_view = patches_per_view
        self._newest: Answer | None = None
        self._publisher = node.create_publisher(
            Image, '~/pruning_overlay', RELIABLE, event_callbacks=NO_EVENTS
        )
        node.create_timer(
            1.0 / config.overlay_rate, self._draw, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def show(self, answer: Answer) -> None:
        """Draw this one next. May be called from another thread."""
        self._newest = answer

    def _draw(self) -> None:
        answer, self._newest = self._newest, None
        if answer is None or not self._publisher.get_subscription_count():
            return
        samples, stamp = answer.tick.observation.samples, answer.tick.observation.stamp
        pictures = [samples[name] for name in self._cameras]
        pixels = draw(pictures, answer.chunk.kept, self._patches_per_view(), self._scale)
        self._publisher.publish(image_message(pixels, stamp, f'{self._cameras[0]}_optical_frame'))


def draw(
    pictures: Sequence[np.ndarray], kept: np.ndarray, patches_per_view: int, scale: int = 1
) -> np.ndarray:
    """Camera pictures side by side, dropped patches dimmed; black below the smaller ones.

    Args:
        pictures: uint8 [H, W, 3] of each view; sizes may differ.
        kept: absolute visual ids that entered the last layer.
        patches_per_view: tokens of each view before pruning.
        scale: integer magnification.

    Returns:
        uint8 [scale * largest H, scale * sum of W, 3].
    """
    from vla_prune_ros.pruning.overlay import draw_kept, kept_grid

    drawn = [
        draw_kept(picture, kept_grid(kept, view, patches_per_view), scale=scale)
        for view, picture in enumerate(pictures)
    ]
    height = max(len(picture) for picture in drawn)
    return np.concatenate(
        [np.pad(p, ((0, height - len(p)), (0, 0), (0, 0))) for p in drawn], axis=1
    )
