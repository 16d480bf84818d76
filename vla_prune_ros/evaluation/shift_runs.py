# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes of several evaluations, by shift and entry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_prune_ros.evaluation.rollouts import EpisodeRecord

PLAIN = 'none'  # name of the suite as it is, where a shift is named
AGAINST = ('dense', 'base')
State = tuple[int, int]  # task, initial state


@dataclass
class Runs:
    """Records by shift and entry, and what they have in common.

    Attributes:
        records: shift -> name of an entry -> (task, initial state) -> its record.
        weights: name of an entry -> digest of its weights, '' for those of the run.
        modes: name of an entry -> its mode.
        options: name of an entry -> its options.
        facts: the fingerprint of the runs, without the shift.
        seeds: shift -> what it drew from.
    """

    records: dict[str, dict[str, dict[State, EpisodeRecord]]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)

    def dense(self, name: str) -> str | None:
        """The entry without pruning on the same weights; None if there is none or it is this."""
        for other, mode in self.modes.items():
            if mode == 'none' and self.weights[other] == self.weights[name]:
                return other if other != name else None
        return None

    def base(self, name: str) -> str | None:
        """The entry of the same mode and weights with the largest part of its options."""
        mine = self.options[name].items()
        found = [
            other
            for other, options in self.options.items()
            if self.modes[other] == self.modes[name]
            and self.weights[other] == self.weights[name]
            and options.items() < mine
        ]
        return max(found, key=lambda other: len(self.options[other]), default=None)

    def reference(self, name: str, against: str) -> str | None:
        """What an entry is compared with: its `base`, or `dense`."""
        return self.base(name) if against == 'base' else self.dense(name)


def read_runs(directories: Sequence[Path]) -> Runs:
    """Read the episodes of several output directories of `evaluate`.

    Several may be of one shift, with other entries or episodes; an episode that is in two of them
    counts once.

    Raises:
        ValueError: a directory holds no evaluation, or runs that cannot be compared.
    """
    runs = Runs()
    for directory in directories:
        path = directory / 'episodes.jsonl'
        if not path.is_file():
            raise ValueError(f'{directory} holds no evaluation: there is no {path.name}')
        first, *lines = path.read_text(encoding='utf-8').splitlines()
        facts = json.loads(first)['run']
        shift = facts.pop('shift', '') or PLAIN
        seed = facts.pop('shift_seed', 0)
        if runs.seeds.setdefault(shift, seed) != seed:
            raise ValueError(f'{directory} cannot be compared: other shift_seed')
        if runs.facts and facts != runs.facts:
            differ = sorted(k for k in {*facts, *runs.facts} if facts.get(k) != runs.facts.get(k))
            raise ValueError(f'{directory} cannot be compared: other {", ".join(differ)}')
        runs.facts = facts
        runs.records.setdefault(shift, {})
        for line in lines:
            record = EpisodeRecord.from_json(json.loads(line))
            _add(runs, shift, record)
    return runs


def _add(runs: Runs, shift: str, record: EpisodeRecord) -> None:
    entry, episode = record.episode.entry, record.episode
    if record.error:
        return
    if runs.weights.setdefault(entry.name, entry.sha256) != entry.sha256:
        raise ValueError(f'entry {entry.name!r} ran on several weights')
    if runs.modes.setdefault(entry.name, entry.mode) != entry.mode:
        raise ValueError(f'entry {entry.name!r} is several modes')
    runs.options[entry.name] = dict(entry.options)
    states = runs.records[shift].setdefault(entry.name, {})
    states[episode.task, episode.state] = record
