# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tiers T0 and T1 of a replay: the node's converters and core in recorded order, without DDS.

T1 answers every tick of a bag. T0 answers every tick once more after a round through messages and
CDR bytes, and wants the same bits. One policy does both, one run after the other.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message

import vla_prune_ros
from vla_prune_ros.bags.compare import TickOutput
from vla_prune_ros.bags.feed import Feed, Sample, values_of
from vla_prune_ros.bags.files import file_digest
from vla_prune_ros.bags.settings import MODEL, VARIANT, policy_config
from vla_prune_ros.bags.streams import STATES
from vla_prune_ros.bags.tracks import Moment, Track
from vla_prune_ros.evaluation.auditing import OVERALL
from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.answering import observation_of, publishable
from vla_prune_ros.nodes.policy.assembler import MatchedSet
from vla_prune_ros.nodes.policy.loading import hardware, load_policy
from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.nodes.policy.trigger import Tick
from vla_prune_ros.ros.images import decode_rgb
from vla_prune_ros.ros.messages import (
    actions_from,
    chunk_message,
    executed_from,
    executed_message,
    image_message,
    joint_message,
    joints_from,
    pose_from,
)

WAYS = ('runtime', 'quantization', 'image_pipeline')  # to run the same network; see `info`


@dataclass(frozen=True)
class Setup:
    """What the policy runs on and as; see the node's parameters of the same names."""

    checkpoint: str
    device: str = 'cpu'
    dtype: str = 'auto'
    unnorm_key: str = ''
    readout_start: int = 0
    torch_threads: int = 1
    cameras: tuple[str, ...] = ('agentview', 'wrist')
    finger_joints: tuple[str, ...] = ('finger_joint1', 'finger_joint2')
    control_rate: float = 20.0
    max_gap: float = 5.0
    runtime: str = 'auto'
    quantization: str = 'none'
    image_pipeline: str = 'exact'
    jpeg: bool = True
    others: tuple[tuple[str, Any], ...] = ()  # parameters of the variant and their values

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the node, by name."""
        values = asdict(self)
        return values | dict(values.pop('others'))

    @cached_property
    def config(self) -> PolicyConfig:
        """The node's configuration."""
        return policy_config(self.parameters)

    @property
    def period(self) -> int:
        """Control period, ns."""
        return round(1e9 / self.control_rate)


def setup_of(checkpoint: str, values: Mapping[str, Any]) -> Setup:
    """The setup by parameters of the node, of which some do not count here."""
    chosen = {name: values[name] for name in MODEL if name in values}
    others = tuple((name, values[name]) for name in VARIANT if name in values)
    return Setup(checkpoint, **chosen, others=others)


def load(setup: Setup) -> Any:
    """The policy in mode none, ready to give the same bits again and again."""
    import torch

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    gc.collect()
    return load_policy(setup.config)


def fingerprint(policy: Any) -> dict[str, str]:
    """Device and software; where all of it is the same, so are the bits."""
    import cv2
    import PIL
    import torch

    info = policy.info()
    return {
        **{key: str(info[key]) for key in WAYS},
        'hardware': hardware(policy),
        'code': code_digest(),
        'capability': torch.backends.cpu.get_cpu_capability(),
        'threads': str(torch.get_num_threads()),
        'torch': torch.__version__,
        'numpy': np.__version__,
        'pillow': PIL.__version__,
        'simplejpeg': version('simplejpeg'),
        'opencv': cv2.__version__,
        'device': str(policy.model.device),
        'dtype': str(policy.model.dtype).removeprefix('torch.'),
    }


@cache
def code_digest() -> str:
    """Of what turns an observation into a chunk: the same numbers need the same source."""
    root = Path(vla_prune_ros.__file__).parent
    files = [root / 'ros' / 'images.py', root / 'ros' / 'messages.py']
    for room in ('vla', 'pruning', 'runtime', 'policy', 'execution'):
        files += sorted((root / room).glob('*.py'))
    return file_digest(files)[:16]


class Schedule:
    """Mode and resets at each tick of a replay."""

    def __init__(
        self,
        recorded: Track,
        forced: tuple[str, dict[str, Any]] | None,
        switches: Sequence[tuple[int, str, dict[str, Any]]] = (),
    ) -> None:
        """Plan a run.

        Args:
            recorded: the run that was recorded; its resets count in any case.
            forced: mode and options for all ticks; None: those recorded.
            switches: (tick, mode, options) from which on another mode holds.
        """
        self._moments = dict(enumerate(recorded.moments))
        self._stamps = recorded.stamps
        self._forced = forced
        self._switches = sorted(switches, key=lambda switch: switch[0])
        self._next = 0

    def at(self, index: int, stamp: int) -> Moment:
        """What holds at the tick `index`; call it in order."""
        moment = Moment('none')
        if stamp in self._stamps[self._next :]:
            place = self._stamps.index(stamp, self._next)
            moment, self._next = self._moments[place], place + 1
            moment = replace(moment, reset=moment.reset and place > 0)
        if self._forced is not None:
            moment = Moment(*self._forced, moment.reset)
        for tick, mode, options in self._switches:
            if index >= tick:
                moment = Moment(mode, options, moment.reset)
        return moment


def run(
    policy: Any,
    ticks: Iterable[Tick],
    schedule: Schedule,
    setup: Setup,
    *,
    audit: bool = False,
) -> Iterator[tuple[TickOutput, Moment]]:
    """Answer ticks one after another, from a policy without a history; see `answer`."""
    policy.set_pruning('none')
    policy.reset('start')
    for index, tick in enumerate(ticks):
        moment = schedule.at(index, tick.observation.stamp)
        if moment.reset:
            policy.reset('reset')
        policy.set_pruning(moment.mode, **moment.options)
        yield (
            answer(policy, values_of(tick), setup, audit=audit),
            replace(moment, options=dict(policy.settings.options)),
        )


def answer(policy: Any, tick: Tick, setup: Setup, *, audit: bool = False) -> TickOutput:
    """The chunk for a tick, as the node publishes it, and with `audit` what pruning changed."""
    chunk = policy.step(observation_of(policy, tick, setup.cameras))
    actions, _ = publishable(chunk.actions, setup.config, setup.period)
    deviation = {}
    if audit:
        found = policy.audit(steps=policy.requery_after(actions))
        deviation = {**found.groups, OVERALL: found.overall}
    return TickOutput(
        tick.observation.stamp,
        chunk.mode,
        actions,
        chunk.kept,
        chunk.n_visual,
        chunk.reset_reason or '',
        dict(chunk.timing),
        inputs_digest(tick),
        deviation,
    )


def inputs_digest(tick: Tick) -> str:
    """Of everything that the policy gets to see and to know with a tick, as values."""
    digest = hashlib.blake2b(tick.instruction.encode(), digest_size=8)
    for event in (*tick.events(), tick.observation):
        if isinstance(event, np.ndarray):
            digest.update(np.ascontiguousarray(event))
            continue
        for name, value in sorted(event.samples.items()):
            digest.update(f'{name} {value.shape} {value.dtype}'.encode())
            digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()


def run_track(
    policy: Any,
    feed: Feed,
    schedule: Schedule,
    setup: Setup,
    name: str,
    progress: Callable[[], None] = lambda: None,
    *,
    by_messages: bool = False,
    audit: bool = False,
) -> Track:
    """T1: all ticks of a bag; T0, `by_messages`: with everything made a message and read again."""
    ticks = (
        (through_messages(tick, setup.config, setup.period) for tick in feed)
        if by_messages
        else feed
    )
    pairs = []
    for output, moment in run(policy, ticks, schedule, setup, audit=audit):
        if by_messages:
            names = setup.config.action.names
            chunk = chunk_message(output.actions, output.stamp, setup.period, names=names)
            output = replace(output, actions=actions_from(_cdr(chunk), names))
        pairs.append((output, moment))
        progress()
    return _track(name, policy, pairs)


def _track(name: str, policy: Any, pairs: Sequence[tuple[TickOutput, Moment]]) -> Track:
    outputs, moments = ([pair[k] for pair in pairs] for k in (0, 1))
    return Track(name, tuple(outputs), tuple(moments), describe(policy) | {'track': name})


def describe(policy: Any) -> dict[str, str]:
    """Weights, meaning of the numbers, device and software; nothing that a tick can change."""
    info = policy.info() | fingerprint(policy)
    for key in ('options', 'checkpoint', 'note', 'mode'):  # a path is of this machine only
        info.pop(key)
    return {key: _text(value) for key, value in info.items()}


def _text(value: Any) -> str:
    return ','.join(map(str, value)) if isinstance(value, tuple | list) else str(value)


# -- T0 ----------------------------------------------------------------------------------------
def through_messages(tick: Tick, config: PolicyConfig, period: int) -> Tick:
    """The tick after everything in it was made a message, CDR bytes, and read again."""
    executed, names = [], config.action.names
    for e in tick.executed:
        # The converters know the times at which actions begin; the first is one period long.
        stamp = e.ends[-1] if e.ends else tick.observation.stamp
        message = executed_message(e.actions, stamp, period, names)
        executed.append(Executed(executed_from(_cdr(message), names).actions, e.ends))
    return replace(
        tick,
        observation=_round(tick.observation),
        executed=tuple(executed),
        between=tuple(_round(frame) for frame in tick.between),
    )


def _round(matched: MatchedSet) -> MatchedSet:
    samples = {
        name: _state(name, sample) if name in STATES else _picture(sample, matched.stamp)
        for name, sample in matched.samples.items()
    }
    return replace(matched, samples={k: Sample(v, None) for k, v in samples.items()})


def _picture(sample: Sample, stamp: int) -> np.ndarray:
    return decode_rgb(_cdr(image_message(sample.value, stamp, 'camera')))


def _state(name: str, sample: Sample) -> np.ndarray:
    if name == 'ee_pose':
        return pose_from(_cdr(sample.message))
    names = [f'finger{i}' for i in range(len(sample.value))]
    return joints_from(_cdr(joint_message(names, sample.value, 0)), names)


def _cdr(message: Any) -> Any:
    return deserialize_message(serialize_message(message), type(message))
