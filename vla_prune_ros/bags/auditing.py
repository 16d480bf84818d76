# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What pruning changed over a bag: found again offline, beside what the policy node published.

Where the bag has the episodes of a simulation, deviations are also held against their outcomes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray

from vla_prune_ros.bags.files import Bag
from vla_prune_ros.bags.streams import FeedSettings, deserialise, find, require_type
from vla_prune_ros.bags.tracks import RECORDED, Track
from vla_prune_ros.evaluation.auditing import OVERALL, audit_row, audit_table
from vla_prune_ros.ros.messages import MessageError, to_ns, values_from

GROUPS = ('translation', 'rotation', 'gripper', 'actions', OVERALL)  # of an arm, of other actions


def audit_report(bag: Bag, settings: FeedSettings, tracks: Mapping[str, Track], lines: Any) -> str:
    """Table of the audited tracks, also written to `lines`, and what was recorded.

    Args:
        bag: open.
        settings: how it is read.
        tracks: by name, their outputs with deviations.
        lines: takes a dict per line of the report.
    """
    ends = outcomes(bag, settings)
    rows = []
    for name, track in tracks.items():
        row = {'name': name, 'audit': audit_row(_episodes(track, ends))}
        rows.append(row)
        lines.write(
            {'type': 'audit', 'track': name, 'outcomes': len(ends), **(row['audit'] or {})}
        )
    text = f'What pruning changed:\n{audit_table(rows)}'
    if not ends:
        text += (
            '\nThe bag has no episodes with an outcome: all of it counts as one that succeeded.'
        )
    published = recorded_audits(bag, settings)
    if RECORDED in tracks and published:
        own = {output.stamp: output.audit for output in tracks[RECORDED].outputs}
        apart = [
            max(abs(own[stamp][group] - value) for group, value in theirs.items())
            for stamp, theirs in published.items()
            if own.get(stamp, {}).keys() == theirs.keys()
        ]
        if apart:
            lines.write({'type': 'audit', 'published': len(apart), 'largest': max(apart)})
            text += (
                f'\nThe node audited {len(apart)} of these ticks while it ran; largest difference'
                f' {max(apart):.2g}'
            )
    return text + '\n'


def recorded_audits(bag: Bag, settings: FeedSettings) -> dict[int, dict[str, float]]:
    """Stamp -> deviation by group, as the policy node published it."""
    found = {}
    for _, values in _said(bag, settings, 'vla_policy/inference_stats'):
        if 'audit.stamp' in values:
            said = ((group, values.get(f'audit.{group}')) for group in GROUPS)
            found[int(values['audit.stamp'])] = {g: float(v) for g, v in said if v is not None}
    return found


def outcomes(bag: Bag, settings: FeedSettings) -> list[tuple[int, bool]]:
    """Stamps of the ends of episodes with an outcome, ascending, and whether they succeeded."""
    ends = {}
    for stamp, values in _said(bag, settings, 'sim_bridge/episode'):
        if values.get('state') == 'done' and values.get('result') in ('success', 'step_limit'):
            ends[stamp] = values['result'] == 'success'
    return sorted(ends.items())


def _said(bag: Bag, settings: FeedSettings, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Stamps and values of the messages on a topic; those that cannot be read are left out."""
    topic = find(bag, settings, name)
    if topic is None:
        return
    require_type(bag, topic, (DiagnosticArray,))
    for entry in bag.messages({topic}):
        try:
            message = deserialise(entry.data, DiagnosticArray)
        except MessageError:
            continue
        yield to_ns(message.header.stamp), values_from(message)


def _episodes(track: Track, ends: list[tuple[int, bool]]) -> list[Any]:
    """The ticks of a track as episodes, as `audit_row` wants them; without outcomes one."""
    stamps = [stamp for stamp, _ in ends]
    found: dict[int, Any] = {}
    for output in track.outputs:
        number = bisect_left(stamps, output.stamp)
        if ends and number == len(ends):  # an episode that did not end
            continue
        success = ends[number][1] if ends else True
        episode = found.setdefault(number, SimpleNamespace(error=None, success=success, audit={}))
        for group, value in output.audit.items():
            episode.audit.setdefault(group, []).append(value)
    return [*found.values()]
