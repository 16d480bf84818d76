# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are what to the policy node, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from geometry_msgs.msg import PoseStamped
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.bags.files import Bag, BagError
from vla_prune_ros.bags.settings import INPUT
from vla_prune_ros.nodes.policy.inputs import joint_positions
from vla_prune_ros.nodes.policy.instructions import clean_instruction
from vla_prune_ros.nodes.policy.joints import StateLayout
from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.ros.images import decode_compressed_rgb, decode_rgb
from vla_prune_ros.ros.messages import ACTION_NAMES, MessageError, executed_from, pose_from

STATES = ('joint_states', 'ee_pose')  # of all kinds; `FeedSettings.state` says which are needed


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
        state: what the robot state is made of.
        action_names: of the numbers of an executed action.
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
    state: StateLayout = field(default_factory=StateLayout)
    action_names: tuple[str, ...] = ACTION_NAMES
    slop: float = 0.02
    state_slop: float = 0.02
    trigger: str = 'auto'
    namespace: str = ''
    remap: Mapping[str, str] = field(default_factory=dict)
    instruction: str = ''
    period: float = 0.0
    limit: int = 0

    def for_node(self, config: PolicyConfig, given: Mapping[str, Any]) -> FeedSettings:
        """The same for a node of this configuration.

        Args:
            config: of the node.
            given: its parameters that the user chose, of which those of matching count.
        """
        chosen = {name.removeprefix('sync.'): given[name] for name in INPUT if name in given}
        state, names = config.state, config.action.names
        return replace(self, cameras=config.cameras, state=state, action_names=names, **chosen)


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


def find_streams(bag: Bag, settings: FeedSettings) -> dict[str, Stream]:
    """Bag topic -> stream, for cameras, state, instruction and executed actions.

    Raises:
        BagError: a topic is missing or has another type.
    """
    missing, found = [], []
    for camera in settings.cameras:
        name = f'{camera}/image_raw'
        topic = find(bag, settings, name) or find(bag, settings, f'{name}/compressed')
        if topic is None:
            missing.append((name, (Image, CompressedImage)))
            continue
        kind = require_type(bag, topic, (Image, CompressedImage))
        decode = decode_rgb if kind is Image else decode_compressed_rgb
        found.append(Stream(camera, topic, kind, decode))
    readers: dict[str, tuple[type, Callable[[Any], Any]]] = {
        'joint_states': (JointState, partial(joint_positions, settings.state.joints)),
        'ee_pose': (PoseStamped, pose_from),
    }
    for name in settings.state.streams:
        kind, decode = readers[name]
        topic = find(bag, settings, name)
        if topic is None:
            missing.append((name, (kind,)))
            continue
        require_type(bag, topic, (kind,))
        found.append(Stream(name, topic, kind, decode))
    if missing:
        raise BagError('\n'.join(_suggest(bag, settings, *m) for m in missing))
    topic = find(bag, settings, 'instruction')
    if topic is not None:
        require_type(bag, topic, (String,))
        found.append(Stream('instruction', topic, String, _instruction))
    elif not settings.instruction:
        raise BagError(
            _suggest(bag, settings, 'instruction', (String,)) + '; or give --instruction'
        )
    topic = find(bag, settings, 'executed_actions')
    if topic is not None:
        require_type(bag, topic, (JointTrajectory,))
        read = partial(executed_from, names=settings.action_names)
        found.append(Stream('executed_actions', topic, JointTrajectory, read))
    return {stream.topic: stream for stream in found}


def _suggest(bag: Bag, settings: FeedSettings, name: str, kinds: Sequence[type]) -> str:
    names = [type_name(kind) for kind in kinds]
    same = sorted(topic for topic, kind in bag.types.items() if kind in names)
    wanted = absolute(name, settings.namespace)
    if not same:
        return f'{bag.path} has no {wanted} and nothing else of type {" or ".join(names)}'
    return (
        f'{bag.path} has no {wanted}; of its type there are {", ".join(same)}:'
        f' use --remap TOPIC:={name} or --namespace'
    )


def _instruction(message: String) -> str:
    return clean_instruction(message.data)
