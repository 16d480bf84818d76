# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every answer of a benchmark in a file as it comes: what is left of a run that was cut short."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from vla_prune_ros.evaluation.statistics import percentiles
from vla_prune_ros.policy import ActionChunk


class Journal:
    """A file of JSON lines, written through after each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open('w', encoding='utf-8')

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def note(self, arm: str, query: int, first: bool, chunk: ActionChunk, ms: float) -> None:
        """Write one answer.

        Args:
            arm: who answered.
            query: its number.
            first: an episode begins with it.
            chunk: the answer.
            ms: from frames to actions, around the whole call.
        """
        line = {
            'arm': arm,
            'query': query,
            'first': first,
            'ms': ms,
            'kept': len(chunk.kept),
            'timing': dict(chunk.timing),
            'runtime': chunk.stats.get('runtime', 'plain'),
        }
        self._file.write(json.dumps(line) + '\n')
        self._file.flush()


def summarise(path: Path) -> list[dict]:
    """Median and spread by arm of a journal, first queries left out; [] where nothing is there.

    A last line that was cut off is left out.
    """
    times: dict[str, list[float]] = {}
    kept: dict[str, list[int]] = {}
    if path.exists():
        for text in path.read_text(encoding='utf-8').splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if not line['first']:
                times.setdefault(line['arm'], []).append(line['ms'])
                kept.setdefault(line['arm'], []).append(line['kept'])
    return [
        {
            'arm': arm,
            'queries': len(ms),
            **{key: percentiles(ms)[key] for key in ('p50', 'p95')},
            'kept': sum(kept[arm]) / len(ms),
        }
        for arm, ms in times.items()
    ]
