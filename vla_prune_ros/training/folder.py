# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The output folder of a training run.

    step-004000/     checkpoint in the published layout, lora_adapter/, training_state.pt
    latest           link to the newest
    log.jsonl        losses and successes

A checkpoint is complete or not there: it is written under another name and renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

STATE = 'training_state.pt'
LATEST, LOG = 'latest', 'log.jsonl'
_PARTIAL = '.partial'


class Folder:
    """See the module."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def checkpoints(self) -> dict[int, Path]:
        """Complete checkpoints by their step, ascending."""
        found = (re.fullmatch(r'step-(\d+)', p.name) for p in self.path.iterdir())
        names = sorted((int(m[1]), m[0]) for m in found if m)
        return {step: self.path / name for step, name in names}

    def state(self, identity: Mapping[str, Any], device: str) -> dict[str, Any] | None:
        """The newest state of this run; None if there is none.

        What the log says about later steps is taken back.

        Raises:
            ValueError: the folder belongs to another run.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            return None
        path = list(checkpoints.values())[-1] / STATE
        state = torch.load(path, map_location=device, weights_only=True)
        if other := [k for k, v in identity.items() if state['identity'].get(k) != v]:
            raise ValueError(
                f'{path} belongs to another training run (other {", ".join(other)}); '
                'remove it to start anew'
            )
        return state

    def cut_log(self, step: int) -> None:
        """Take back what the log says about steps after this one."""
        path = self.path / LOG
        if not path.exists():
            return
        lines = []
        for line in path.read_text().splitlines(keepends=True):
            try:
                kept = json.loads(line)['step'] <= step
            except ValueError:  # the run was killed while it was written
                kept = False
            if kept:
                lines.append(line)
        partial = path.with_suffix(_PARTIAL)
        partial.write_text(''.join(lines))
        partial.rename(path)

    def write(
        self, step: int, fill: Callable[[Path], None], state: Mapping[str, Any], keep: int = 1
    ) -> Path:
        """Write the checkpoint of a step, and drop all but the newest `keep`.

        Args:
            step: in its name.
            fill: writes the checkpoint into a directory.
            state: what the run goes on from.
            keep: how many checkpoints stay.
        """
        path = self.path / f'step-{step:06d}'
        partial = path.with_name(path.name + _PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)
        partial.mkdir()
        fill(partial)
        torch.save(dict(state), partial / STATE)
        partial.rename(path)
        link = self.path / (LATEST + _PARTIAL)
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        os.replace(link, self.path / LATEST)
        for old in list(self.checkpoints().values())[:-keep]:
            shutil.rmtree(old)
        return path

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line."""
        with (self.path / LOG).open('a') as file:
            print(json.dumps(record), file=file)

    def require_space(self, needed: int) -> None:
        """See whether a checkpoint of so many bytes fits beside the one before it.

        Raises:
            OSError: it does not.
        """
        free = shutil.disk_usage(self.path).free
        if 2 * needed > free:
            raise OSError(
                f'{self.path}: two checkpoints need {2 * needed / 1e9:.1f} GB, the disk has'
                f' {free / 1e9:.1f} GB; name a folder on another disk with --out'
            )
