# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one training loop: L1 on action chunks, dense or with LightVLA's selection.

In one process, in CPU workers, or in the processes of torchrun, with the same result: a step sees
the same samples, whoever they are shared out to. A run is resumable: everything that the next step
depends on is in the newest checkpoint.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from vla_prune_ros.training.folder import Folder
from vla_prune_ros.training.processes import Team, run_workers, stopping
from vla_prune_ros.training.recipe import Recipe
from vla_prune_ros.training.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """One stage of training.

    Attributes:
        start: checkpoint directory in the published layout (its config and tokenizer are kept,
            and its statistics unless the heads are fresh).
        output: receives checkpoints and log, see `folder.py`.
        stores: of the data sets.
        recipe: of the optimisation.
        lightvla: fine-tune for the mode `lightvla`.
        adapter: folder with adapters to go on from, in the place of fresh ones.
        unnorm_key: statistics that the trained heads of `start` go by, where it has several.
        variant: what the files of `start` do not say, see `vla.variant.declared`.
        chunk: actions of a chunk for fresh heads; 0: as `start` has them.
        grounding: auxiliary losses of the tabletop.
        precision: of frozen weights and products: 'float32', 'bfloat16', or 'auto' (bfloat16 on a
            GPU with adapters).
        checkpointing: save memory by computing each layer twice.
        accumulate: parts that a process's share of a batch is computed in, one after the other.
        save_every: steps between checkpoints.
        keep: how many checkpoints stay.
        validation: closed-loop episodes of the tabletop with every checkpoint; 0: none.
        held_out: share of the episodes whose L1 is logged with every checkpoint, not trained on.
        log_every: steps between lines of the log.
        workers: CPU processes.
        device: where it is trained.
        seed: of everything that is drawn.
    """

    start: Path
    output: Path
    stores: tuple[Path, ...]
    recipe: Recipe
    lightvla: bool = False
    adapter: Path | None = None
    unnorm_key: str | None = None
    variant: str = ''
    chunk: int = 0
    grounding: bool = False
    precision: str = 'auto'
    checkpointing: bool = False
    accumulate: int = 1
    save_every: int = 500
    keep: int = 1
    validation: int = 0
    held_out: float = 0.0
    log_every: int = 50
    workers: int = 1
    device: str = 'cpu'
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f'a share of {self.held_out} cannot be held out; valid: 0 to below 1')


def finetune(run: Run, progress: bool = True, team: Team | None = None) -> Path:
    """Train to the last step of the recipe, resuming from `run.output` if it holds a checkpoint.

    Args:
        run: what to train.
        progress: show a bar.
        team: of torchrun; without it as many processes as `run.workers` are started on a CPU.

    Returns:
        The last checkpoint.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was finished and saved.
        ValueError: the output belongs to another run, or data and model do not go together.
    """
    if team is None and run.workers > 1 and torch.device(run.device).type == 'cpu':
        run_workers(_train, run.workers, run, progress)
    else:
        _train(team or Team(device=run.device), run, progress)
    return list(Folder(run.output).checkpoints().values())[-1]


def _train(team: Team, run: Run, progress: bool) -> None:
    trainer = Trainer(team, run, progress and team.rank == 0)
    asked = threading.Event()
    with stopping(asked.set):
        trainer.run(asked)
