# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a policy says: its chunks, and on another topic how much of each is to be played."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.nodes.simulation.inbox import Answer, Inbox
from vla_prune_ros.ros.messages import (
    NANOSECONDS,
    RELIABLE,
    MessageError,
    actions_from,
    requery_from,
    to_ns,
)

STATISTICS = 'vla_policy/inference_stats'
MEANING = Semantics().signature  # of actions: every simulated robot is driven as OSC_POSE
LIMITS = 16  # chunks whose early end may be known before they come


class Answers(Inbox):
    """An inbox that both topics fill; what cannot be used is refused.

    Attributes:
        period: of the robot's control, ns; 0 until it is there.
    """

    def __init__(
        self,
        node: Node,
        heard: Callable[[], None],
        warn: Callable[[str, str], None],
        *,
        listens: bool = True,
    ) -> None:
        """Listen; `heard` is called for every chunk, `warn` with a kind and a text.

        An arm that takes commands of another node does not listen to the policy.
        """
        super().__init__()
        self._node, self._heard, self._warn = node, heard, warn
        self.period = 0
        self._limits: OrderedDict[int, int] = OrderedDict()  # stamp -> actions to play
        self._limits_follow = True  # whether statistics say so of every chunk; not known yet
        if not listens:
            return
        node.create_subscription(DiagnosticArray, STATISTICS, self._on_stats, RELIABLE)
        node.create_subscription(JointTrajectory, 'action_chunk', self._on_chunk, RELIABLE)

    def limits_follow(self) -> bool:
        """Whether the statistics of a policy say so, as it does of every chunk or of none."""
        name = self._node.resolve_topic_name(STATISTICS)
        return self._limits_follow and self._node.count_publishers(name) > 0

    def _on_chunk(self, message: JointTrajectory) -> None:
        self._heard()
        try:
            actions = actions_from(message)
            if not len(actions):
                raise MessageError('no actions')
            if message.header.frame_id not in ('', MEANING):  # expert_node says nothing
                raise MessageError(f'actions mean {message.header.frame_id}; expected {MEANING}')
            self._check_grid(message)
        except MessageError as error:
            self.refused += 1
            self._warn('refused', f'chunk refused: {error}')
            return
        stamp = to_ns(message.header.stamp)
        self.put(Answer(stamp, actions, self._limits.pop(stamp, 0)))

    def _check_grid(self, message: JointTrajectory) -> None:
        """MessageError unless the actions are meant for this robot's control rate."""
        if not self.period:
            raise MessageError('the simulation has not started')
        times = [to_ns(point.time_from_start) for point in message.points]
        if any(abs(t - k * self.period) > 0.1 * self.period for k, t in enumerate(times)):
            raise MessageError(
                f'time_from_start must be 0, {self.period / 1e6:g} ms, ...: set control_rate of '
                f'the policy to {NANOSECONDS / self.period:g} Hz'
            )

    def _on_stats(self, message: DiagnosticArray) -> None:
        """Before its chunk or after it: how much of the chunk is to be played."""
        limit = requery_from(message)
        self._limits_follow = limit is not None
        if limit is None:
            return
        stamp = to_ns(message.header.stamp)
        if limit:
            self._limits[stamp] = limit
            if len(self._limits) > LIMITS:
                self._limits.popitem(last=False)
        self.put(Answer(stamp, None, limit))
