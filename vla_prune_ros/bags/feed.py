# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a bag to the ticks that the policy node made of the same messages.

Messages go in the order of their publishing through the converters and the assembler of the node.
A node says with every chunk what it looked at before (`between`, `executed` of its statistics):
exactly that is fed again. For a recording without these words, or without a node, the node's
trigger decides; an observation that the node left out, because it was busy, is left out here, too,
and what it had to tell is handed on in the same way.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.bags.files import Bag
from vla_prune_ros.bags.streams import (
    FeedSettings,
    Stream,
    deserialise,
    find,
    find_streams,
)
from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import REWIND, Assembler, MatchedSet
from vla_prune_ros.nodes.policy.trigger import Tick, Trigger
from vla_prune_ros.ros.images import ImageError
from vla_prune_ros.ros.messages import NANOSECONDS, MessageError, to_ns


class Sample(NamedTuple):
    """What a message says, and the message."""

    value: np.ndarray
    message: Any


class Seen(NamedTuple):
    """What a policy looked at when it answered an observation; stamps in ns.

    Attributes:
        stamp: of the observation.
        between: of the frames before it.
        executed: of the executed-actions messages before it.
    """

    stamp: int
    between: tuple[int, ...]
    executed: tuple[int, ...]


class Feed:
    """The ticks of a bag. Iterate as often as needed; the counters belong to the last time.

    Attributes:
        streams: what is read from where.
        trigger: observation or request.
        broken: messages that could not be used, by stream, with the first reason in `reasons`.
        unanswered: observations that were left out.
        incomplete: stamps of observations that were answered, but cannot be put together.
        missing: stamps of frames and reports that the recorded policy saw and the bag has not.
        without_instruction: observations before there was an instruction.
        dropped: frames that came to nothing, by camera.
    """

    def __init__(
        self,
        bag: Bag,
        settings: FeedSettings,
        answered: Sequence[int] = (),
        seen: Sequence[Seen] = (),
    ) -> None:
        """Find the topics.

        Args:
            bag: open.
            settings: how to read it.
            answered: stamps of the observations that the recorded node answered, in order; empty:
                all are wanted.
            seen: what it looked at for each of them; empty: not known.

        Raises:
            BagError: a topic is missing or has another type.
        """
        self.bag, self.settings = bag, settings
        self._answered = Counter(answered)
        self._seen = tuple(seen)
        self._executed = find(bag, settings, 'executed_actions')
        self.streams = find_streams(bag, settings)
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
        self.missing: list[int] = []
        self.dropped: Counter[str] = Counter()

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
            settings.state.streams,
            slop=round(settings.slop * NANOSECONDS),
            state_slop=round(settings.state_slop * NANOSECONDS),
        )
        ticks = self._as_seen(assembler) if self._seen else self._as_triggered(assembler)
        for count, tick in enumerate(ticks, start=1):
            yield tick
            if count == settings.limit:
                return
        self.dropped = assembler.dropped

    def _decoded(self) -> Iterator[tuple[Stream, Any, Any]]:
        """Stream, message and value of what can be used."""
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
            yield stream, message, value

    def _as_seen(self, assembler: Assembler) -> Iterator[Tick]:
        """What the recorded policy looked at; a tick waits for that until the next one is due."""
        left, instruction = deque(self._seen), self.settings.instruction
        needed = Counter(stamp for seen in left for stamp in (seen.stamp, *seen.between))
        frames: dict[int, MatchedSet] = {}
        executed: dict[int, Executed] = {}

        def complete(seen: Seen) -> bool:
            return {seen.stamp, *seen.between} <= frames.keys() and executed.keys() >= {
                *seen.executed
            }

        def due() -> Iterator[Tick]:
            while left and instruction:
                late = len(left) > 1 and left[1].stamp in frames
                if not (over or late or complete(left[0])):
                    return
                seen = left.popleft()
                stamps = seen.stamp, *seen.between
                self.missing += [t for t in stamps[1:] if t not in frames]
                self.missing += [t for t in seen.executed if t not in executed]
                if seen.stamp in frames:
                    yield Tick(
                        frames[seen.stamp],
                        tuple(executed.pop(t) for t in seen.executed if t in executed),
                        tuple(frames[t] for t in seen.between if t in frames),
                        instruction,
                    )
                else:
                    self.incomplete.append(seen.stamp)
                needed.subtract(stamps)
                anew = left and left[0].stamp < seen.stamp - REWIND
                for stamp in [t for t in frames if anew or needed[t] <= 0]:
                    del frames[stamp]

        over = False
        for stream, message, value in self._decoded():
            if stream.name == 'instruction':
                instruction = value
            elif stream.name == 'executed_actions':
                executed[to_ns(message.header.stamp)] = value
            else:
                sample = Sample(value, message)
                for found in assembler.add(stream.name, to_ns(message.header.stamp), sample):
                    if needed[found.stamp] > 0:
                        frames[found.stamp] = found
            yield from due()
        over = True
        yield from due()
        self.without_instruction = len(left)

    def _as_triggered(self, assembler: Assembler) -> Iterator[Tick]:
        """What the node's trigger makes of the messages."""
        trigger = Trigger(self.trigger)
        instruction = self.settings.instruction
        left, last = self._answered.copy(), None
        for stream, message, value in self._decoded():
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
                last = stamp
                yield replace(trigger.take(stamp), instruction=instruction)
        self.incomplete = sorted(left.elements())

    def _is_wanted(self, stamp: int, left: Counter[int], last: int | None) -> bool:
        if self._answered:
            return left[stamp] > 0
        period = self.settings.period * NANOSECONDS
        return last is None or not last <= stamp < last + period

    def warnings(self) -> list[str]:
        """What was wrong with the bag, after reading it."""
        lines = [f'{self.bag.path}: {self.bag.damage}'] if self.bag.damage else []
        if self.bag.lost:
            text = ', '.join(f'{n} of {topic}' for topic, n in sorted(self.bag.lost.items()))
            lines.append(f'messages were lost while it was recorded: {text}')
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

    def problems(self) -> list[str]:
        """Why this is not what the recorded policy saw, after reading it."""
        if not self.missing:
            return []
        first = f'the first has the stamp {self.missing[0] / 1e9:.9f} s'
        return [f'{len(self.missing)} messages that the policy used are not in the bag; {first}']

    def nothing(self) -> str:
        """Why there was no tick at all."""
        counts = ', '.join(f'{s.name} {self.received[s.name]}' for s in self.streams.values())
        return (
            f'{self.bag.path}: no observation could be put together from {counts} messages, with'
            f' stamps of the cameras {self.settings.slop:g} s and of the state'
            f' {self.settings.state_slop:g} s apart at most (-p sync.slop:=, -p sync.state_slop:=)'
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
