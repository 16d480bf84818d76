# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The recorder's ear: finds topics, subscribes to them, takes messages, counts what is missing."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from vla_prune_ros.bags.writer import Qos, qos, typestore

CAMERAS = ('agentview', 'wrist')
IMAGES = ('image_raw', 'image_raw/compressed', 'camera_info')
INPUTS = ('joint_states', 'ee_pose', 'instruction', 'executed_actions')
OUTPUTS = ('action_chunk', 'vla_policy/inference_stats', 'vla_policy/policy_info')
OTHERS = ('sim_bridge/episode', '/clock', '/parameter_events')
DEPTH = 200  # messages of a best-effort publisher that may wait to be taken
GID = 16  # bytes that tell publishers apart


class Taken(NamedTuple):
    """A message as DDS handed it out; times in ns, `sequence` 0 where there is none."""

    topic: str
    received: int
    published: int
    sequence: int
    data: bytes


class Losses:
    """Messages that were published and never came.

    A publisher numbers its messages, so one that is missing leaves a gap; middleware that gives no
    numbers may report lost messages itself.
    """

    def __init__(self) -> None:
        self._gaps: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._last: dict[tuple[str, bytes], int] = {}
        self._begun: defaultdict[str, set[bytes]] = defaultdict(set)

    def expect(self, topic: str, publishers: Iterable[bytes]) -> None:
        """Hold any further publisher on a topic to its first message; these had begun before."""
        self._begun[topic] |= set(publishers)

    def see(self, topic: str, publisher: bytes, number: int) -> None:
        """A message came with its publisher's `number`, from 1."""
        key = topic, publisher
        late = topic not in self._begun or publisher in self._begun[topic]
        last = self._last.get(key, number - 1 if late else 0)
        self._gaps[topic] += max(0, number - last - 1)
        self._last[key] = max(number, last)

    def report(self, topic: str, total: int) -> None:
        """The middleware knows of so many lost messages of a topic."""
        self._reported[topic] = max(self._reported[topic], total)

    def total(self) -> Counter[str]:
        """How many are lost, by topic."""
        return self._gaps | self._reported


class Topics:
    """Subscriptions to wanted topics."""

    def __init__(
        self,
        node: Any,
        wanted: Iterable[str],
        announce: Callable[[str, str, list[Qos]], None],
        put: Callable[[Taken], None],
        *,
        everything: bool = False,
        complete: bool = False,
    ) -> None:
        """Listen to nothing yet.

        Args:
            node: to subscribe with.
            wanted: names of topics.
            announce: told of topic, type and offered QoS before the first message.
            put: given every message.
            everything: take every topic with a standard message.
            complete: what was sent before the first look at a topic counts as lost, too.
        """
        self._node, self._announce, self._put = node, announce, put
        self._everything, self._complete = everything, complete
        self._wanted = {node.resolve_topic_name(name) for name in wanted}
        # These speak before anyone can listen.
        self._early = {node.resolve_topic_name(name) for name in OTHERS}
        self._seen: set[str] = set()
        self._subscriptions: dict[str, Any] = {}
        self._newest: dict[str, int] = {}  # topic -> time of reception of its last message
        self.losses = Losses()

    def look(self) -> None:
        """Subscribe to what is new in the graph."""
        for topic, kinds in self._node.get_topic_names_and_types():
            if topic in self._seen or not (self._everything or topic in self._wanted):
                continue
            publishers = self._node.get_publishers_info_by_topic(topic)
            if publishers:
                self._seen.add(topic)
                self._subscribe(topic, kinds, publishers)

    def _subscribe(
        self, topic: str, kinds: Sequence[str], publishers: Sequence[TopicEndpointInfo]
    ) -> None:
        logger = self._node.get_logger()
        if len(kinds) != 1:
            logger.warning(f'{topic} is not recorded: it has several types, {", ".join(kinds)}')
            return
        try:
            if kinds[0] not in typestore().fielddefs:
                raise ImportError('no definition')
            message = message_class(kinds[0])
        except (ImportError, AttributeError) as error:
            logger.warning(f'{topic} is not recorded: type {kinds[0]}: {error}')
            return
        profile, offered = matching(publishers)
        self._announce(topic, kinds[0], offered)
        if _is_complete(profile) and topic not in self._early:
            begun = () if self._complete else publishers
            self.losses.expect(topic, (bytes(p.endpoint_gid[:GID]) for p in begun))
        self._subscriptions[topic] = self._create(message, topic, profile)
        logger.info(f'recording {topic}')

    def _create(self, message: type, topic: str, profile: QoSProfile) -> Any:
        """A subscription that reports losses where the middleware can."""

        def lost(event: Any) -> None:
            self.losses.report(topic, event.total_count)

        for events in ({'message_lost': lost}, {}):
            try:
                return self._node.create_subscription(
                    message,
                    topic,
                    lambda data, info: self._took(topic, data, info),
                    profile,
                    raw=True,
                    event_callbacks=SubscriptionEventCallbacks(
                        use_default_callbacks=False, **events
                    ),
                )
            except UnsupportedEventTypeError:
                continue
        raise AssertionError('a subscription without events cannot be unsupported')

    def take(self) -> bool:
        """Take all that has arrived; whether there was anything.

        The executor would look at every subscription between two messages.
        """
        found = False
        for topic, subscription in self._subscriptions.items():
            with subscription.handle:
                while taken := subscription.handle.take_message(subscription.msg_type, True):
                    self._took(topic, *taken)
                    found = True
        return found

    def _took(self, topic: str, data: bytes, info: dict[str, Any]) -> None:
        """Times of reception never run backwards on a topic, although what was sent again does."""
        received = info.get('received_timestamp') or time.time_ns()
        received = self._newest[topic] = max(received, self._newest.get(topic, 0))
        number = info.get('publication_sequence_number') or 0
        if number:
            self.losses.see(topic, bytes(info['publisher_gid']['data'][:GID]), number)
        published = info.get('source_timestamp') or received
        self._put(Taken(topic, received, published, number, data))


def wanted_topics(cameras: str, others: str) -> list[str]:
    """Names of topics to record, relative to the namespace; arguments with commas."""
    names = [f'{camera}/{topic}' for camera in cameras.split(',') if camera for topic in IMAGES]
    return [*names, *INPUTS, *OUTPUTS, *OTHERS, *(name for name in others.split(',') if name)]


def matching(publishers: Sequence[TopicEndpointInfo]) -> tuple[QoSProfile, list[Qos]]:
    """A subscription that hears all these publishers, and their profiles for the bag.

    It asks for no more than every one of them offers, as rosbag2 does, and keeps all messages of
    reliable ones until they are taken.
    """
    reliable = [p.qos_profile.reliability == ReliabilityPolicy.RELIABLE for p in publishers]
    latched = [p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers]
    profile = QoSProfile(
        history=HistoryPolicy.KEEP_ALL if all(reliable) else HistoryPolicy.KEEP_LAST,
        depth=DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if all(reliable) else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if all(latched) else DurabilityPolicy.VOLATILE,
    )
    depths = [p.qos_profile.depth or DEPTH for p in publishers]
    offered = [qos(r, d, n) for r, d, n in zip(reliable, latched, depths, strict=True)]
    return profile, [one for k, one in enumerate(offered) if one not in offered[:k]]


def _is_complete(profile: QoSProfile) -> bool:
    """Whether a reader hears all that is published once both know of each other."""
    return (
        profile.reliability == ReliabilityPolicy.RELIABLE
        and profile.durability == DurabilityPolicy.VOLATILE
    )


def message_class(kind: str) -> type:
    """The class of a type such as `sensor_msgs/msg/Image`.

    Raises:
        ImportError, AttributeError: it is not installed.
    """
    package, _, name = kind.partition('/msg/')
    return getattr(import_module(f'{package}.msg'), name)
