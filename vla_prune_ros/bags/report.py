# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files and tables of a replay: JSON lines, JUnit, differences, actions over time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vla_prune_ros.bags.compare import TickComparison, TickOutput, Verdict
from vla_prune_ros.bags.files import Bag, file_digest, storage_files
from vla_prune_ros.evaluation.plots import executed_actions

LINES, JUNIT = 'replay.jsonl', 'junit.xml'


def new_folder(wanted: Path | None, bag: Path) -> Path:
    """A folder for results in which nothing is yet.

    Raises:
        FileExistsError: the one asked for holds something.
    """
    if wanted is not None:
        if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
            raise FileExistsError(f'{wanted} is not empty; results are never written over')
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    stem, number = Path('out/replay') / bag.stem, 1
    while True:
        folder = stem if number == 1 else stem.with_name(f'{stem.name}-{number}')
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of settings, whatever their order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def header(
    argv: Sequence[str], bag: Bag, golden: Path | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """What was run on what, with digests."""
    from vla_prune_ros.command_line import command_line, environment

    return {
        'type': 'header',
        'command': command_line(argv, 'replay'),
        'bag': str(bag.path),
        'bag_sha256': bag.sha256(),
        'golden': golden and str(golden),
        'golden_sha256': golden and file_digest(storage_files(golden)),
        'config': config,
        'config_sha256': config_digest(config),
        'environment': environment(),
    }


class Lines:
    """A file of JSON objects, one per line, on disk as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open('x', encoding='utf-8')

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one line."""
        self._file.write(json.dumps(record, default=str) + '\n')
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()


def write_junit(verdicts: Sequence[Verdict], path: Path) -> None:
    """One test case per mode and tier, for a CI server."""
    failed = sum(not v.passed for v in verdicts)
    suite = ElementTree.Element(
        'testsuite', name='replay', tests=str(len(verdicts)), failures=str(failed)
    )
    for v in verdicts:
        case = ElementTree.SubElement(suite, 'testcase', classname=v.tier, name=v.track)
        if not v.passed:
            ElementTree.SubElement(case, 'failure', message=v.text())
    ElementTree.ElementTree(suite).write(path, encoding='utf-8', xml_declaration=True)


def difference_table(
    comparisons: Mapping[str, Sequence[TickComparison]], names: Sequence[str]
) -> str:
    """One row per track: how far from the reference, in robot units, and where most."""
    from vla_prune_ros.evaluation.summary import table  # needs torch

    rows = []
    for track, ticks in comparisons.items():
        known = [t for t in ticks if t.max_diff is not None]
        if not known:
            rows.append([track, len(ticks), *['-'] * (5 + len(names))])
            continue
        worst = max(known, key=lambda t: t.max_diff_normalised)
        step, dimension = worst.where
        times = sorted(t.timing['total'] for t in known[1:] if 'total' in t.timing)
        rows.append([
            track,
            len(ticks),
            *[f'{max(t.max_diff[d] for t in known):.2g}' for d in range(len(names))],
            f'tick {worst.index} step {step} {names[dimension]}',
            f'{np.mean([t.gripper_agreement for t in known]):.1%}',
            f'{np.mean([t.kept for t in known]):.1f}/{known[0].n_visual}',
            f'{np.mean([t.jaccard for t in known]):.3f}',
            f'{times[len(times) // 2]:.1f}' if times else '-',
        ])  # fmt: skip
    head = ['mode', 'ticks', *names, 'largest at', 'gripper', 'kept', 'Jaccard', 'ms p50']
    return table(head, rows)


def actions_plot(
    outputs: Sequence[TickOutput],
    reference: Sequence[TickOutput],
    labels: tuple[str, str],
    names: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Actions of all chunks, one after another, of a run and of its reference."""
    curves = {
        label: np.concatenate([tick.actions for tick in run])
        for label, run in zip(labels, (outputs, reference), strict=True)
        if run
    }
    if curves:
        chunk = len((outputs or reference)[0].actions)
        executed_actions(curves, names, chunk, title, path)
