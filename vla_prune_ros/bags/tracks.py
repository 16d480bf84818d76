# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a policy once said over a bag: in the bag itself, or as golden values beside it.

A track is one run over the inputs. `recorded` is the run that was recorded, with its changes of
mode; golden tracks lie in a bag of their own, BAG/golden (or FILE.golden), three topics per track:
/golden/TRACK/action_chunk, inference_stats and policy_info. The inputs are never touched.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.serialization import serialize_message
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.bags.compare import TickOutput
from vla_prune_ros.bags.feed import Seen
from vla_prune_ros.bags.files import Bag, BagError
from vla_prune_ros.bags.streams import (
    FeedSettings,
    deserialise,
    find,
    require_type,
    type_name,
)
from vla_prune_ros.bags.writer import BagWriter, qos
from vla_prune_ros.ros.messages import (
    ACTION_NAMES,
    MessageError,
    actions_from,
    chunk_message,
    to_ns,
    values_from,
    values_message,
)

RECORDED = 'recorded'
TOPICS = ('action_chunk', 'inference_stats', 'policy_info')
# Options of older versions, and the value with which they did nothing; None: they never did alone.
RETIRED = {
    'lightvla.bucket': '0',
    'lightvla.padding': None,
    'specprune.buckets': 'false',
    'specprune.bucket_sizes': None,
    'vla_cache.bucket': '0',
}
FRESH = ('reset', 'exception', 'start')  # reasons for which a replay must reset by itself


@dataclass(frozen=True)
class Moment:
    """What is in force at a tick.

    Attributes:
        mode: pruning mode.
        options: of the mode; empty: its defaults.
        reset: the history was emptied from outside before this tick.
        sha256: of the weights; '' if unknown.
        seen: what the policy looked at; None if it did not say.
    """

    mode: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reset: bool = False
    sha256: str = ''
    seen: Seen | None = None


@dataclass(frozen=True)
class Track:
    """One run over the inputs of a bag.

    Attributes:
        name: `recorded` or a pruning mode.
        outputs: of every tick that was answered, in order.
        moments: what was in force at each of them.
        info: the first `policy_info`, with hardware and versions where they are known.
        problems: what is missing or broken.
    """

    name: str
    outputs: tuple[TickOutput, ...] = ()
    moments: tuple[Moment, ...] = ()
    info: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def stamps(self) -> list[int]:
        """Stamps of the ticks."""
        return [output.stamp for output in self.outputs]

    @property
    def seen(self) -> list[Seen]:
        """What the policy looked at for each tick; empty unless it said so of all."""
        seen = [moment.seen for moment in self.moments]
        return [] if None in seen else seen


def recorded_track(bag: Bag, settings: FeedSettings) -> Track:
    """The run that is in the bag; without outputs if there is none.

    Raises:
        BagError: chunks without statistics, or a topic of another type.
    """
    chunks, stats, info = (
        find(bag, settings, name)
        for name in ('action_chunk', 'vla_policy/inference_stats', 'vla_policy/policy_info')
    )
    if stats is None or not bag.counts[stats]:
        if chunks is not None and bag.counts[chunks]:
            raise BagError(
                f'{bag.path} has {bag.counts[chunks]} chunks on {chunks} but no'
                ' vla_policy/inference_stats: record it, name it with --remap, or leave the chunks'
                ' out with --ignore-outputs'
            )
        return Track(RECORDED)
    return _read_track(bag, RECORDED, chunks, stats, info)


def _read_track(bag: Bag, name: str, chunks: str | None, stats: str, info: str | None) -> Track:
    problems: list[str] = []
    actions: dict[int, list[tuple[int, np.ndarray]]] = {}
    if chunks is not None:
        for time, message in _messages(bag, chunks, JointTrajectory, problems):
            try:
                found = actions_from(message, None)
            except MessageError as error:
                problems.append(f'{chunks}: {error}')
                continue
            actions.setdefault(to_ns(message.header.stamp), []).append((time, found))
    infos = [
        (time, values_from(message))
        for time, message in (
            _messages(bag, info, DiagnosticArray, problems) if info is not None else ()
        )
    ]
    outputs, moments, sequence = [], [], None
    for time, message in _messages(bag, stats, DiagnosticArray, problems):
        stamp, values = to_ns(message.header.stamp), values_from(message)
        own = actions.get(stamp)
        if not own:
            problems.append(f'the chunk with the stamp {stamp / 1e9:.9f} s is missing')
            continue
        nearest = min(own, key=lambda chunk, t=time: abs(chunk[0] - t))
        try:
            number = int(values.get('sequence', -1))
            output = output_of(stamp, nearest[1], values)
            moment = _moment(output, time, infos, values.get('budget'))
            moments.append(replace(moment, seen=_seen(stamp, values)))
        except (
            KeyError,
            ValueError,
        ) as error:  # damage, or a mode that this version does not know
            problems.append(f'{stats}: stamp {stamp / 1e9:.9f} s: {error}')
            continue
        # What a reset follows has left no trace; such an inference may have been discarded.
        if sequence is not None and number > sequence + 1 and not output.reset_reason:
            lost = number - sequence - 1
            problems.append(f'{lost} inferences before {stamp / 1e9:.9f} s are lost')
        sequence = number
        outputs.append(output)
    first = infos[0][1] if infos else {}
    return Track(name, tuple(outputs), tuple(moments), first, tuple(problems))


def _messages(bag: Bag, topic: str, kind: type, problems: list[str]) -> Iterator[tuple[int, Any]]:
    """Time of reception and message; those that cannot be read become problems."""
    require_type(bag, topic, (kind,))
    for entry in bag.messages({topic}):
        try:
            yield entry.time, deserialise(entry.data, kind)
        except MessageError as error:
            problems.append(f'{topic}: {error}')


def output_of(stamp: int, actions: np.ndarray, values: Mapping[str, str]) -> TickOutput:
    """What a chunk and its statistics say."""
    kept = [int(n) for n in values.get('kept', '').split(',') if n]
    timing = {
        key.removesuffix('_ms'): float(value)
        for key, value in values.items()
        if key.endswith('_ms') and '.' not in key
    }
    return TickOutput(
        stamp,
        values.get('mode', ''),
        actions,
        np.array(kept, np.int64),
        int(values.get('tokens_total', 0)),
        values.get('reset_reason', ''),
        timing,
        values.get('inputs', ''),
    )


def _moment(
    output: TickOutput,
    time: int,
    infos: Sequence[tuple[int, Mapping[str, str]]],
    budget: str | None,
) -> Moment:
    """The mode's options from the description that was in force when the chunk came.

    The budget is that of the chunk itself: it may follow a deadline or an audit, and a replay
    takes what was decided.
    """
    from vla_prune_ros.evaluation.entries import parse_value

    mode, options, sha256 = output.mode, {}, ''
    newest = bisect_right([t for t, _ in infos], time)
    for _, values in reversed(infos[:newest]):
        if values.get('mode') == mode:
            sha256 = values.get('sha256', '')
            prefix = f'pruning.{mode}.'
            options = {
                key.removeprefix(prefix): parse_value(mode, key.removeprefix(prefix), value)
                for key, value in values.items()
                if key.startswith(prefix) and not _is_retired(key, value)
            }
            break
    if budget is not None and ('budget' in options or float(budget)):
        options['budget'] = float(budget)
    return Moment(mode, options, output.reset_reason in FRESH, sha256)


def _seen(stamp: int, values: Mapping[str, str]) -> Seen | None:
    """What the statistics of an inference say that it looked at: stamps between spaces."""
    if 'between' not in values or 'executed' not in values:
        return None
    between, executed = (tuple(map(int, values[k].split())) for k in ('between', 'executed'))
    return Seen(stamp, between, executed)


def _is_retired(key: str, value: str) -> bool:
    idle = RETIRED.get(key.removeprefix('pruning.'), '')
    return idle is None or value == idle != ''


def start_of(recorded: Track) -> int:
    """The first tick of a recorded run that does not depend on what came before it."""
    if all(output.mode == 'none' for output in recorded.outputs):
        return 0
    for index, output in enumerate(recorded.outputs):
        if output.reset_reason:
            return index
    return len(recorded.outputs)


# -- golden values -----------------------------------------------------------------------------
def golden_path(bag: Path) -> Path:
    """Where the golden values of a bag lie."""
    return bag / 'golden' if bag.is_dir() else bag.with_name(f'{bag.name}.golden')


def read_golden(path: Path) -> dict[str, Track]:
    """Golden tracks by name; none if there is no such folder.

    Raises:
        BagError: it cannot be read.
    """
    if not path.exists():
        return {}
    with Bag(path) as bag:
        names = [t.split('/')[2] for t in bag.types if t.endswith('/inference_stats')]
        return {
            name: _read_track(bag, name, *(f'/golden/{name}/{topic}' for topic in TOPICS))
            for name in names
        }


def write_golden(path: Path, tracks: Mapping[str, Track], period: int) -> None:
    """Write a golden bag in the place of an older one, which goes only when the new one is whole.

    Args:
        path: of the golden bag.
        tracks: all that it is to hold.
        period: control period, ns.
    """
    new, old = path.with_name(f'.{path.name}.new'), path.with_name(f'.{path.name}.old')
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    write_tracks(new, tracks, period)
    rename_storage(new, path.name)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def rename_storage(folder: Path, name: str) -> None:
    """Give the storage file of a bag the name that the folder is to have."""
    metadata = folder / 'metadata.yaml'
    for file in folder.glob('*.mcap'):
        text = metadata.read_text(encoding='utf-8').replace(file.name, f'{name}.mcap')
        metadata.write_text(text, encoding='utf-8')
        file.rename(folder / f'{name}.mcap')


def write_tracks(path: Path, tracks: Mapping[str, Track], period: int) -> None:
    """Write tracks into a new bag."""
    with BagWriter(path) as writer:
        for name, track in tracks.items():
            topics = [f'/golden/{name}/{topic}' for topic in TOPICS]
            kinds = (JointTrajectory, DiagnosticArray, DiagnosticArray)
            for topic, kind in zip(topics, kinds, strict=True):
                writer.add_topic(topic, type_name(kind), qos(latched=topic == topics[2]))
            moments = zip(track.outputs, track.moments, strict=True)
            described = None
            names = track.info.get('dimension_names', ','.join(ACTION_NAMES)).split(',')
            for time, (output, moment) in enumerate(moments, start=1):
                info = {**track.info, 'mode': moment.mode}
                info |= {f'pruning.{moment.mode}.{k}': v for k, v in moment.options.items()}
                stats = stats_of(output, time - 1)
                messages = [
                    chunk_message(output.actions, output.stamp, period, names=names),
                    values_message('golden: inference', stats, output.stamp),
                ]
                if info != described:
                    messages.append(values_message('golden: policy', info, output.stamp))
                    described = info
                for topic, message in zip(topics, messages, strict=False):
                    writer.write(topic, time, serialize_message(message))


def stats_of(output: TickOutput, sequence: int) -> dict[str, Any]:
    """The part of `~/inference_stats` that does not depend on the machine."""
    return {
        'sequence': sequence,
        'mode': output.mode,
        'tokens_kept': len(output.kept),
        'tokens_total': output.n_visual,
        'reset_reason': output.reset_reason,
        'inputs': output.inputs,
        'kept': output.kept.tolist(),
    }
