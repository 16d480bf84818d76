# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is around the arm and its state: other nodes, a permit, episodes, the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import Bool

from vla_prune_ros.nodes.robot.parameters import RobotConfig
from vla_prune_ros.ros.messages import EPISODES, LATCHED, NANOSECONDS, RELIABLE, values_from

LOOK = 0.2  # s between two looks at the graph
JUMP = 0.2  # s by which a clock may be set without our noticing
SETTLE = 0.3  # s after a simulated robot was put somewhere else
CHUNKS = 'action_chunk'


class Surroundings:
    """See the module's text.

    Attributes:
        sources: nodes that publish chunks; `rivals`: others that command the arm.
        listeners: readers of our commands, of the topic that has the fewest.
        permit: whether the robot may move; None where no permit is needed.
        episode: why to wait between the episodes of a simulated robot; '' for no reason.
    """

    def __init__(
        self,
        node: Node,
        config: RobotConfig,
        commands: Collection[Publisher],
        on_forbidden: Callable[[], None],
        on_episode: Callable[[], None],
    ) -> None:
        self._node, self._commands = node, commands
        self._on_forbidden, self._on_episode = on_forbidden, on_episode
        self.sources: tuple[str, ...] = ()
        self.rivals: tuple[str, ...] = ()
        self.listeners = 0
        self.permit = False if config['permit.required'] else None
        self._permit_came = time.monotonic()
        self.episode, self._number, self._settled = '', '', 0.0
        self._looked = 0.0
        self._offset: int | None = None
        for qos in (RELIABLE, LATCHED) if config['permit.required'] else ():  # any writer
            node.create_subscription(Bool, config['topics.permit'], self._take_permit, qos)
        if topic := config['follow_episodes']:
            node.create_subscription(DiagnosticArray, topic, self._take_episode, EPISODES)

    def look(self, now: float, *, at_once: bool = False) -> bool:
        """See who is there, a few times per second; whether we did."""
        if not at_once and now - self._looked < LOOK:
            return False
        self._looked = now
        self.sources = self._names(CHUNKS)
        own, rivals = self._node.get_fully_qualified_name(), set()
        for publisher in self._commands:
            names = list(self._names(publisher.topic_name))
            if own in names:
                names.remove(own)
            rivals |= {*names}
        self.rivals = tuple(sorted(rivals))
        self.listeners = min(p.get_subscription_count() for p in self._commands)
        return True

    def chunk_sources(self) -> int:
        """How many publish chunks at this moment."""
        return self._node.count_publishers(self._node.resolve_topic_name(CHUNKS))

    def permit_age(self, now: float) -> float:
        """Seconds since the permit was given or refused."""
        return now - self._permit_came

    def clock_set(self, now_ns: int) -> float:
        """Seconds by which the node's clock was set since the last call; simulated time may."""
        offset = now_ns - time.monotonic_ns()
        last, self._offset = self._offset, offset
        if last is None or self._node.get_parameter('use_sim_time').value:
            return 0.0
        jump = (offset - last) / NANOSECONDS
        return jump if abs(jump) > JUMP else 0.0

    def episode_begins(self, now: float) -> bool:
        """Whether a new episode begins just now: the robot is in its place."""
        if not self._settled or now < self._settled:
            return False
        self.episode, self._settled = '', 0.0
        return True

    def _names(self, topic: str) -> tuple[str, ...]:
        infos = self._node.get_publishers_info_by_topic(self._node.resolve_topic_name(topic))
        return tuple(sorted(f'{i.node_namespace.rstrip("/")}/{i.node_name}' for i in infos))

    def _take_permit(self, message: Bool) -> None:
        self.permit, self._permit_came = message.data, time.monotonic()
        if not message.data:
            self._on_forbidden()

    def _take_episode(self, message: DiagnosticArray) -> None:
        status = values_from(message)
        if status.get('state') == 'done':
            self.episode, self._settled = 'the episode is over', 0.0
        elif status.get('episode') != self._number:
            self._number = status.get('episode', '')
            self.episode, self._settled = 'a new episode', time.monotonic() + SETTLE
        if self.episode:
            self._on_episode()
