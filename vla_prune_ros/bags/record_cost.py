# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What recording costs: `python -m vla_prune_ros.bags.record_cost`.

The demo runs alternately with and without a recorder; the latency of its chunks, from the complete
observation to the published chunk, is pooled. The first chunk of an episode is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if every demo succeeded."""
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('--rounds', type=int, default=3, help='of two demos each (3)')
    p.add_argument('--episodes', type=int, default=4, help='per mode and demo (4)')
    p.add_argument('--modes', default='none,specprune', help='with commas')
    args = p.parse_args(argv)
    pooled: dict[bool, list[float]] = {False: [], True: []}
    lost = False
    with TemporaryDirectory() as scratch:
        for number in range(args.rounds):
            for recording in (number % 2 == 0, number % 2 == 1):  # neither always comes first
                out = Path(scratch) / f'{number}{"r" if recording else "p"}'
                command = [sys.executable, '-m', 'vla_prune_ros', 'demo', '--modes', args.modes]
                command += ['--episodes', str(args.episodes), '--out', str(out)]
                command += ['--record', str(out / 'bag')] if recording else []
                done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
                lost |= done.returncode != 0
                pooled[recording] += latencies(out / 'results.json')
    for recording, values in pooled.items():
        p50, p95 = np.percentile(values, (50, 95))
        print(
            f'{"with" if recording else "without"} recorder: {len(values)} chunks,'
            f' p50 {p50:.2f} ms, p95 {p95:.2f} ms, mean {np.mean(values):.2f} ms'
        )
    return int(lost)


def latencies(results: Path) -> list[float]:
    """Latency in ms of every chunk but the first of each episode."""
    episodes = json.loads(results.read_text(encoding='utf-8'))['episodes']
    return [ms for episode in episodes for ms in episode['latency_ms'][1:]]


if __name__ == '__main__':
    sys.exit(main())
