# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The five suites of LIBERO: tasks, step limits and official initial states.

Read from the files of the installed package, without its `benchmark` module, which needs torch.
"""

from __future__ import annotations

import io
import pickle
import runpy
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.sim.base import Task

# Step limits after settling: longest demonstration and a margin (OpenVLA-OFT's evaluation).
STEP_LIMITS = {
    'libero_spatial': 220,
    'libero_object': 280,
    'libero_goal': 300,
    'libero_10': 520,
    'libero_90': 400,
}
SUITES = tuple(STEP_LIMITS)


@dataclass(frozen=True)
class LiberoTask(Task):
    """One task; `bddl` describes scene and goal, `states` holds the official initial states."""

    bddl: Path = Path()
    states: Path = Path()


def require_suite(suite: str) -> None:
    """ValueError for an unknown suite; the message lists the known ones."""
    if suite not in SUITES:
        raise ValueError(f'unknown LIBERO suite {suite!r}; valid: {", ".join(SUITES)}')


def load_tasks(suite: str, package: Path) -> tuple[LiberoTask, ...]:
    """The tasks of a suite in the order of the benchmark (task order 0).

    Args:
        suite: one of `SUITES`.
        package: directory of the module `libero.libero`.

    Raises:
        ValueError: unknown suite.
        FileNotFoundError: a task has no BDDL file or no initial states.
    """
    require_suite(suite)
    names = runpy.run_path(str(package / 'benchmark' / 'libero_suite_task_map.py'))
    tasks = []
    for name in names['libero_task_map'][suite]:
        bddl = package / 'bddl_files' / suite / f'{name}.bddl'
        states = package / 'init_files' / suite / f'{name}.pruned_init'
        for path in (bddl, states):
            if not path.is_file():
                raise FileNotFoundError(f'LIBERO is incomplete: {path} is missing')
        limit = STEP_LIMITS[suite]
        tasks.append(LiberoTask(name, instruction(name), suite, limit, bddl, states))
    return tuple(tasks)


def instruction(name: str) -> str:
    """The text that policies were trained with: LIBERO takes it from the name of the task's file.

    `KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet` -> `close the top drawer of the cabinet`.
    """
    if name[0].isupper():
        scene = name.find('SCENE')
        name = name[scene + (8 if 'SCENE10' in name else 7) :]
    return ' '.join(name.split('_'))


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickled numpy array and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        plain = {'_reconstruct', 'ndarray', 'dtype', '_codecs', 'encode'}
        root = module.split('.')[0]
        if name in plain and root in ('numpy', '_codecs'):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'{module}.{name} has no place in a file of initial states')


def load_initial_states(path: Path) -> np.ndarray:
    """Flattened MuJoCo states float64 [n, 1 + nq + nv], from a file that torch.save wrote.

    Raises:
        ValueError: the file is not what it should be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = next(n for n in archive.namelist() if n.endswith('/data.pkl'))
            states = _ArraysOnly(io.BytesIO(archive.read(data))).load()
    except (zipfile.BadZipFile, StopIteration, pickle.UnpicklingError) as error:
        raise ValueError(f'{path} does not hold initial states: {error}') from error
    states = np.asarray(states, dtype=np.float64)
    if states.ndim != 2 or not np.isfinite(states).all():
        raise ValueError(f'{path} does not hold initial states')
    return states
