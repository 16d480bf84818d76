# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags as data sets to train on: `record` and `ros2 bag record` of a robot that somebody drives.

A step is an action that was executed, with the observation of the time at which it began; steps
that follow one another are an episode. A robot that held still, a lost message, a new instruction
or a new episode of a simulation ends it. Needs no ROS. `register` puts the reader beside those of
the room `datasets`, which stands below this one and cannot know it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_prune_ros.bags.files import SUFFIXES, Bag, BagError, Entry, storage_files
from vla_prune_ros.bags.steps import Recording, Step, parts_of, period_of, steps_of, succeeded
from vla_prune_ros.bags.writer import typestore
from vla_prune_ros.datasets import FORMATS, DataError, DataSet, Episode, ReadOptions
from vla_prune_ros.datasets.base import Picture
from vla_prune_ros.datasets.checks import checked, converted
from vla_prune_ros.datasets.opening import Format
from vla_prune_ros.datasets.pictures import Frames, turned
from vla_prune_ros.ros.images import ImageError, decode_compressed_rgb, decode_rgb
from vla_prune_ros.ros.reading import (
    NANOSECONDS,
    MessageError,
    actions_from,
    joints_from,
    pose_from,
    to_ns,
    values_from,
)
from vla_prune_ros.vla.pictures import encode_jpeg

CAMERAS = ('agentview', 'wrist')
FINGERS = ('finger_joint1', 'finger_joint2')
REWIND = NANOSECONDS  # a clock that goes back by more begins a recording of its own


def register() -> None:
    """Let `open_dataset` read bags."""
    FORMATS['bag'] = Format('bags of our nodes', detect, BagSet)


def detect(path: Path) -> str | None:
    """Why this is such a data set; None if it is not."""
    found = _bags(path)
    return f'{len(found)} bags' if found else None


def _bags(path: Path) -> list[Path]:
    """The bag itself, or the bags in a folder."""
    if _is_bag(path):
        return [path]
    return sorted(p for p in path.iterdir() if _is_bag(p)) if path.is_dir() else []


def _is_bag(path: Path) -> bool:
    if path.is_file():
        return path.suffix in SUFFIXES
    try:
        return path.is_dir() and bool(storage_files(path))
    except BagError:
        return False


class Topics(NamedTuple):
    """Topics of a bag; '' where it has none."""

    cameras: dict[str, str]  # our name -> topic
    executed_actions: str
    ee_pose: str
    joint_states: str
    instruction: str
    episode: str


class _Segment(NamedTuple):
    bag: Path
    id: str
    steps: list[Step]
    times: tuple[int, int]  # when its frames were published
    topics: Topics
    problem: DataError | None = None


class BagSet(DataSet):
    """See the module."""

    format = 'bag'

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path, self.notes, self._options = path, [], options
        self.name = options.name or path.resolve().name.partition('.')[0]
        self.cameras = tuple(options.cameras) or CAMERAS
        self._joints = tuple(filter(None, options.state.split(','))) or FINGERS
        self._bags = _bags(path)
        self._segments: list[_Segment] = []
        self._periods: list[int] = []
        for bag in self._bags:
            self._scan(bag)
        period = np.median(self._periods) if self._periods else 0
        self.rate = options.rate or (round(NANOSECONDS / period, 3) if period else None)

    def __len__(self) -> int:
        return len(self._segments)

    def files(self) -> list[Path]:
        """Storage files of all bags."""
        return [file for bag in self._bags for file in storage_files(bag)]

    def mask(self, width: int) -> list[bool]:
        """Without a gripper to convert there is none to leave out."""
        return [True] * width if self._gripper(width) == 'none' else super().mask(width)

    def _gripper(self, width: int) -> str:
        return self._options.gripper or ('policy' if width == 7 else 'none')

    def read(self, index: int) -> Episode:
        """One segment."""
        segment = self._segments[index]
        if segment.problem is not None:
            raise segment.problem
        steps = segment.steps
        actions = np.stack([step.action for step in steps]).astype(np.float32)
        states = [step.proprio for step in steps if step.proprio is not None]
        place: dict[str, Any] = {'file': segment.bag, 'episode': segment.id}
        return checked(
            Episode(
                id=segment.id,
                file=segment.bag,
                instructions=(steps[0].instruction or self._options.instruction,),
                actions=converted(actions, self._gripper(actions.shape[1]), **place),
                proprio=np.stack(states).astype(np.float32) if states else None,
                pictures={
                    camera: Frames(len(steps), partial(self._frames, segment, camera))
                    for camera in self.cameras
                },
            )
        )

    # -- pictures ------------------------------------------------------------------------------
    def _frames(self, segment: _Segment, camera: str) -> Iterator[Picture]:
        """As the policy's node gets them, made JPEG."""
        topic = segment.topics.cameras[camera]
        wanted = [step.frames[camera] for step in segment.steps]
        found: dict[int, bytes] = {}
        turn, step = self._options.rotate or 0, 0
        with Bag(segment.bag) as bag:
            kind = bag.types[topic]
            decode = decode_compressed_rgb if 'Compressed' in kind else decode_rgb
            needed = set(wanted)
            for entry in bag.messages({topic}, *segment.times):
                stamp = _stamp(entry.data)
                if stamp not in needed or stamp in found:
                    continue
                try:
                    frame = decode(_message(bag, entry))
                except (ImageError, MessageError) as error:
                    raise DataError(
                        segment.bag,
                        f'{topic}: {error}',
                        'record colour pictures',
                        segment.id,
                        step,
                    ) from error
                found[stamp] = encode_jpeg(turned(frame, turn))
                while step < len(wanted) and wanted[step] in found:
                    yield found[wanted[step]]
                    step += 1
                    for old in [s for s in found if s < min(wanted[step:], default=s + 1)]:
                        del found[old]

    # -- numbers -------------------------------------------------------------------------------
    def _scan(self, path: Path) -> None:
        name = path.name.partition('.')[0]
        try:
            with Bag(path) as bag:
                topics = self._topics(bag)
                recordings = self._read(bag, topics)
                if bag.lost:
                    lost = ', '.join(f'{n} of {topic}' for topic, n in sorted(bag.lost.items()))
                    self.notes.append(f'{name}: messages were lost while it was recorded: {lost}')
        except (BagError, MessageError) as error:
            problem = DataError(path, str(error), 'record it again, or leave it out')
            self._segments.append(_Segment(path, name, [], (0, 0), Topics({}, *[''] * 5), problem))
            return
        executed = observed = number = 0
        for recording in recordings:
            period = period_of(recording)
            poses, joints = bool(topics.ee_pose), bool(topics.joint_states)
            steps = list(steps_of(recording, self.cameras, poses, joints, period))
            executed += len(recording.actions)
            observed += len(steps)
            if period:
                self._periods.append(period)
            for part in parts_of(steps, period, recording):
                if self._options.only_success and not succeeded(part, recording):
                    continue
                times = [recording.frames[c][s.frames[c]] for s in part for c in self.cameras]
                span = min(times), max(times)
                self._segments.append(_Segment(path, f'{name}/{number}', part, span, topics))
                number += 1
        if not executed:
            problem = DataError(path, 'no action was executed', 'drive the robot while recording')
            self._segments.append(_Segment(path, name, [], (0, 0), topics, problem))
        elif observed < executed:
            self.notes.append(
                f'{name}: {executed - observed} of {executed} actions began without an observation'
                ' within half a period and are left out (sim_bridge: publish_every_step)'
            )

    def _topics(self, bag: Bag) -> Topics:
        wanted = {c: self._options.cameras.get(c, f'{c}/image_raw') for c in self.cameras}
        cameras = {
            camera: _find(bag, topic) or _find(bag, f'{topic}/compressed')
            for camera, topic in wanted.items()
        }
        missing = [wanted[camera] for camera, topic in cameras.items() if not topic]
        executed = _find(bag, 'executed_actions')
        if not executed:
            missing.append('executed_actions, what the robot did')
        if missing:
            raise BagError(
                f'no topic {" and no ".join(missing)}; there are: {", ".join(sorted(bag.types))}'
            )
        names = ('ee_pose', 'joint_states', 'instruction', 'episode')
        return Topics(cameras, executed, *(_find(bag, name) for name in names))

    def _read(self, bag: Bag, topics: Topics) -> list[Recording]:
        """Numbers, and when which frame was published; pictures stay where they are."""
        recordings = [Recording()]
        cameras = {topic: camera for camera, topic in topics.cameras.items()}
        clocks = _Clocks()
        instruction = self._options.instruction
        for entry in bag.messages({*cameras, *filter(None, topics[1:])}):
            if entry.topic == topics.instruction:
                instruction = ' '.join(_message(bag, entry).data.split()) or instruction
                continue
            stamp = _stamp(entry.data)
            turn = clocks.turn(entry.topic, stamp)
            if turn == len(recordings):
                recordings.append(Recording())
            now = recordings[turn]
            if entry.topic in cameras:
                now.frames[cameras[entry.topic]].setdefault(stamp, entry.time)
                now.said.setdefault(stamp, instruction)
                continue
            message = _message(bag, entry)
            if entry.topic == topics.executed_actions:
                for point, action in zip(message.points, actions_from(message, None), strict=True):
                    now.actions[stamp + to_ns(point.time_from_start)] = action
            elif entry.topic == topics.ee_pose:
                now.poses[stamp] = pose_from(message)
            elif entry.topic == topics.joint_states:
                now.joints[stamp] = joints_from(message, self._joints)
            else:
                values = values_from(message)
                if values.get('state') == 'done':
                    now.ended[stamp] = values.get('success') == 'true'
        return recordings


class _Clocks:
    """How often the clock had gone back when a message was stamped.

    It is seen in the stamps of one topic, as topics overtake each other. One that was silent
    meanwhile belongs to the latest time that its stamp is near to.
    """

    def __init__(self) -> None:
        self._newest: list[int] = []  # stamp of each time
        self._last: dict[str, tuple[int, int]] = {}  # topic -> turn and stamp

    def turn(self, topic: str, stamp: int) -> int:
        """Of the next message of a topic."""
        first, last = self._last.get(topic, (0, stamp))
        first += stamp < last - REWIND
        if first == len(self._newest):
            self._newest.append(stamp)
        apart = {k: abs(self._newest[k] - stamp) for k in range(first, len(self._newest))}
        near = [k for k, distance in apart.items() if distance <= REWIND]
        found = near[-1] if near else min(apart, key=lambda k: apart[k])
        self._newest[found] = max(self._newest[found], stamp)
        self._last[topic] = found, stamp
        return found


def _find(bag: Bag, name: str) -> str:
    """The topic of a name in any namespace; '' if there is none.

    Raises:
        BagError: there are several.
    """
    found = [t for t in bag.types if t == name or t.endswith('/' + name.lstrip('/'))]
    if len(found) > 1:
        raise BagError(f'{name} is ambiguous: {", ".join(sorted(found))}')
    return found[0] if found else ''


def _message(bag: Bag, entry: Entry) -> Any:
    """A message; unlike the typestore's own function it allows the bytes that rclpy leaves behind.

    Raises:
        MessageError: it cannot be read.
    """
    store = typestore()
    definition = store.get_msgdef(bag.types[entry.topic])
    little = entry.data[1] & 1
    read = definition.deserialize_cdr_le if little else definition.deserialize_cdr_be
    try:
        return read(entry.data[4:], 0, definition.cls, store)[0]
    except Exception as error:  # of any kind: it is a library's parser on damaged bytes
        raise MessageError(f'{entry.topic}: a message cannot be read: {error}') from error


def _stamp(data: bytes) -> int:
    """Of a message that begins with a header, ns; behind the four bytes of its encapsulation."""
    order = '<iI' if data[1] & 1 else '>iI'
    seconds, rest = struct.unpack_from(order, data, 4)
    return seconds * NANOSECONDS + rest
