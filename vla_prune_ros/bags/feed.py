# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a bag to the ticks that the policy node made of the same messages.

Messages go in the order of their reception through the converters, the assembler and the trigger
of the node. An observation that the recorded node left out, because it was busy, is left out here,
too, and what it had to tell is handed on in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.bags.files import Bag, BagError
from vla_prune_ros.nodes.policy.assembler import Assembler, MatchedSet
from vla_prune_ros.nodes.policy.parameters import clean_instruction
from vla_prune_ros.nodes.policy.trigger import Tick, Trigger
from vla_prune_ros.ros.images import ImageError, decode_compressed_rgb, decode_rgb
from vla_prune_ros.ros.messages import (
    NANOSECONDS,
    MessageError,
    executed_from,
    joints_from,
    pose_from,
    to_ns,
)

STATES = ('joint_states', 'ee_pose')


class Sample(NamedTuple):
    """What a message says, and the message."""

    value: np.ndarray
    message: Any


class Stream(NamedTuple):
    """Where something comes from in a bag and how it is read."""

    name: str
    topic: str
    kind: type
    decode: Callable[[Any], Any]


@dataclass(frozen=True)
class FeedSettings:
    """How a bag is read.

    Attributes:
        cameras: names, third-person view first.
        fingers: names of the two finger joints.
        slop: largest difference of camera stamps, s.
        state_slop: largest difference of state and image, s.
        trigger: observation, request, or auto: request if the bag has requests.
        namespace: of the recorded nodes.
        remap: topic of the bag -> name of the policy node.
        instruction: in force until the bag has one.
        period: shortest time between two ticks of a bag without chunks, s.
        limit: ticks after which to stop; 0: none.
    """

    cameras: tuple[str, ...] = ('agentview', 'wrist')
    fingers: tuple[str, ...] = ('finger_joint1', 'finger_joint2')
    slop: float = 0.02
    state_slop: float = 0.02
    trigger: str = 'auto'
    namespace: str = ''
    remap: Mapping[str, str] = field(default_factory=dict)
    instruction: str = ''
    period: float = 0.0
    limit: int = 0


def type_name(kind: type) -> str:
    """Such as sensor_msgs/msg/Image."""
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'


def absolute(name: str, namespace: str = '') -> str:
    """A topic name as a bag has it."""
    return name if name.startswith('/') else f'/{namespace.strip("/")}/{name}'.replace('//', '/')


def find(bag: Bag, settings: FeedSettings, name: str) -> str | None:
    """The bag's topic for a name of the policy node; None if it has none.

    Raises:
        BagError: a topic that is to be remapped is not in the bag, or two become one.
    """
    wanted = absolute(name, settings.namespace)
    sources = [
        absolute(source)
        for source, target in settings.remap.items()
        if absolute(target, settings.namespace) == wanted
    ]
    if len(sources) > 1:
        raise BagError(f'--remap: {" and ".join(sources)} both become {wanted}')
    if sources and sources[0] not in bag.types:
        raise BagError(f'--remap: no topic {sources[0]} in {bag.path}; {_topics(bag)}')
    if sources:
        return sources[0]
    taken = {absolute(source) for source in settings.remap}
    return wanted if wanted in bag.types and wanted not in taken else None


def _topics(bag: Bag) -> str:
    return 'topics: ' + ', '.join(f'{t} ({k})' for t, k in sorted(bag.types.items()))


def deserialise(data: bytes, kind: type) -> Any:
    """A message of its bytes.

    Raises:
        MessageError: they are no such message.
    """
    try:
        return deserialize_message(data, kind)
    except Exception as error:  # rclpy has no narrower one for a malformed message
        raise MessageError(f'{len(data)} bytes are no {type_name(kind)}') from error


def require_type(bag: Bag, topic: str, kinds: Sequence[type]) -> type:
    """The one of `kinds` that a topic has.

    Raises:
        BagError: it has none of them.
    """
    for kind in kinds:
        if bag.types[topic] == type_name(kind):
            return kind
    wanted = ' or '.join(map(type_name, kinds))
    raise BagError(
        f'{topic} is of type {bag.types[topic]}, not {wanted}; name another topic with --remap'
    )


class Feed:
    """The ticks of a bag. Iterate as often as needed; the counters belong to the last time.

    Attributes:
        streams: what is read from where.
        trigger: observation or request.
        broken: messages that could not be used, by stream, with the first reason in `reasons`.
        unanswered: observations that were left out.
        incomplete: stamps of observations that were answered, but cannot be put together.
        without_instruction: observations before there was an instruction.
        dropped: frames that came to nothing, by camera.
    """

    def __init__(self, bag: Bag, settings: FeedSettings, answered: Sequence[int] = ()) -> None:
        """Find the topics.

        Args:
            bag: open.
            settings: how to read it.
            answered: stamps of the observations that the recorded node answered, in order; empty:
                all are wanted.

        Raises:
            BagError: a topic is missing or has another type.
        """
        self.bag, self.settings = bag, settings
        self._answered = Counter(answered)
        self._executed = find(bag, settings, 'executed_actions')
        self.streams = self._find_streams()
        self.trigger = settings.trigger
        if self.trigger == 'auto':
            self.trigger = 'request' if self._has_requests(answered) else 'observation'
        self._start()

    def _start(self) -> None:
        self.broken: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self.unanswered = self.without_instruction = 0
        self.incomplete: list[int] = []
        self.dropped: Counter[str] = Counter()

    def _find_streams(self) -> dict[str, Stream]:
        """Bag topic -> stream, for cameras, state, instruction and executed actions."""
        missing, found = [], []
        for camera in self.settings.cameras:
            name = f'{camera}/image_raw'
            topic = find(self.bag, self.settings, name) or find(
                self.bag, self.settings, f'{name}/compressed'
            )
            if topic is None:
                missing.append((name, (Image, CompressedImage)))
                continue
            kind = require_type(self.bag, topic, (Image, CompressedImage))
            decode = decode_rgb if kind is Image else decode_compressed_rgb
            found.append(Stream(camera, topic, kind, decode))
        fingers = self.settings.fingers
        states = (JointState, partial(_fingers, fingers)), (PoseStamped, pose_from)
        for name, (kind, decode) in zip(STATES, states, strict=True):
            topic = find(self.bag, self.settings, name)
            if topic is None:
                missing.append((name, (kind,)))
                continue
            require_type(self.bag, topic, (kind,))
            found.append(Stream(name, topic, kind, decode))
        if missing:
            raise BagError('\n'.join(self._suggest(*m) for m in missing))
        topic = find(self.bag, self.settings, 'instruction')
        if topic is not None:
            require_type(self.bag, topic, (String,))
            found.append(Stream('instruction', topic, String, _instruction))
        elif not self.settings.instruction:
            raise BagError(self._suggest('instruction', (String,)) + '; or give --instruction')
        if self._executed is not None:
            require_type(self.bag, self._executed, (JointTrajectory,))
            found.append(
                Stream('executed_actions', self._executed, JointTrajectory, executed_from)
            )
        return {stream.topic: stream for stream in found}

    def _suggest(self, name: str, kinds: Sequence[type]) -> str:
        names = [type_name(kind) for kind in kinds]
        same = sorted(topic for topic, kind in self.bag.types.items() if kind in names)
        wanted = absolute(name, self.settings.namespace)
        if not same:
            return f'{self.bag.path} has no {wanted} and nothing else of type {" or ".join(names)}'
        return (
            f'{self.bag.path} has no {wanted}; of its type there are {", ".join(same)}:'
            f' use --remap TOPIC:={name} or --namespace'
        )

    def _has_requests(self, answered: Sequence[int]) -> bool:
        if self._executed is None or not self.bag.counts[self._executed]:
            return False
        asked = set()
        for entry in self.bag.messages({self._executed}):
            try:
                asked.add(to_ns(deserialise(entry.data, JointTrajectory).header.stamp))
            except MessageError:
                continue
        return bool(asked) and asked.issuperset(answered)

    # -- reading -------------------------------------------------------------------------------
    def __iter__(self) -> Iterator[Tick]:
        """Ticks with `Sample`s, in the order in which they were complete."""
        self._start()
        settings = self.settings
        assembler = Assembler(
            settings.cameras,
            STATES,
            slop=round(settings.slop * NANOSECONDS),
            state_slop=round(settings.state_slop * NANOSECONDS),
        )
        trigger = Trigger(self.trigger)
        instruction = settings.instruction
        left, last, count = self._answered.copy(), None, 0
        for entry in self.bag.messages(set(self.streams)):
            stream = self.streams[entry.topic]
            self.received[stream.name] += 1
            try:
                message = deserialise(entry.data, stream.kind)
                value = stream.decode(message)
            except (ImageError, MessageError, ValueError) as error:
                self.broken[stream.name] += 1
                self.reasons.setdefault(stream.name, str(error))
                continue
            if stream.name == 'instruction':
                instruction = value
            else:
                _hand_on(assembler, trigger, stream.name, message, value)
            for stamp in trigger.asked():
                wanted = self._is_wanted(stamp, left, last)
                if wanted and not instruction and self._answered:
                    break  # it was answered when there was one
                if not wanted or not instruction:
                    trigger.refuse(stamp)
                    self.unanswered += bool(instruction)
                    self.without_instruction += not instruction
                    continue
                left[stamp] -= 1
                last, count = stamp, count + 1
                yield replace(trigger.take(stamp), instruction=instruction)
                if count == settings.limit:
                    return
        self.dropped, self.incomplete = assembler.dropped, sorted(left.elements())

    def _is_wanted(self, stamp: int, left: Counter[int], last: int | None) -> bool:
        if self._answered:
            return left[stamp] > 0
        period = self.settings.period * NANOSECONDS
        return last is None or not last <= stamp < last + period

    def warnings(self) -> list[str]:
        """What was wrong with the bag, after reading it."""
        lines = [f'{self.bag.path}: {self.bag.damage}'] if self.bag.damage else []
        for name, number in self.broken.items():
            lines.append(
                f'{name}: {number} of {self.received[name]} messages cannot be used; the first:'
                f' {self.reasons[name]}'
            )
        for name, number in self.dropped.items():
            if number:
                lines.append(f'{name}: {number} messages repeated, late or without counterpart')
        if self.incomplete:
            lines.append(
                f'{len(self.incomplete)} observations that were answered are not complete in the'
                f' bag; the first has the stamp {self.incomplete[0] / 1e9:.9f} s'
            )
        if self.without_instruction:
            lines.append(f'{self.without_instruction} observations before the first instruction')
        if self.unanswered:
            lines.append(f'{self.unanswered} observations that were not answered are left out')
        return lines

    def nothing(self) -> str:
        """Why there was no tick at all."""
        counts = ', '.join(f'{s.name} {self.received[s.name]}' for s in self.streams.values())
        return (
            f'{self.bag.path}: no observation could be put together from {counts} messages, with'
            f' stamps of the cameras {self.settings.slop:g} s and of the state'
            f' {self.settings.state_slop:g} s apart at most (--slop, --state-slop)'
        )


def _hand_on(assembler: Assembler, trigger: Trigger, name: str, message: Any, value: Any) -> None:
    stamp = to_ns(message.header.stamp)
    if name == 'executed_actions':
        trigger.add_executed(stamp, value)
        return
    for complete in assembler.add(name, stamp, Sample(value, message)):
        trigger.add_observation(complete)


def values_of(tick: Tick) -> Tick:
    """The tick with arrays in the place of samples, as the policy takes it."""
    return replace(
        tick,
        observation=_values(tick.observation),
        between=tuple(_values(frame) for frame in tick.between),
    )


def _values(matched: MatchedSet) -> MatchedSet:
    return replace(matched, samples={name: s.value for name, s in matched.samples.items()})


def _fingers(names: Sequence[str], message: JointState) -> np.ndarray:
    return joints_from(message, names)


def _instruction(message: String) -> str:
    return clean_instruction(message.data)
