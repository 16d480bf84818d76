# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of one training run: one, several started by torchrun, or CPU workers of ours."""

from __future__ import annotations

import builtins
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

_SAID = (ImportError, OSError, RuntimeError, ValueError)  # in one line; others are of the program
_PATIENCE = timedelta(hours=1)  # the others wait while the first one merges and writes a model


@dataclass(frozen=True)
class Team:
    """This process among those of the run: its number from 0, how many, and its device."""

    rank: int = 0
    size: int = 1
    device: str = 'cpu'

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether one of them says so."""
        if self.size == 1:
            return flag
        said = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Of what all say; every process names the same."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))


@contextmanager
def torchrun_team(device: str) -> Iterator[Team | None]:
    """The team that torchrun started, each on a GPU of its own or on the CPU; None without.

    Raises:
        ValueError: one GPU was named for several processes.
    """
    if int(os.environ.get('WORLD_SIZE', 1)) < 2 or 'LOCAL_RANK' not in os.environ:
        yield None
        return
    kind = torch.device(device)
    if kind.index is not None:
        raise ValueError(f'--device {device}: under torchrun each process takes a GPU of its own')
    if kind.type == 'cuda':
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if kind.type == 'cuda' else 'gloo', timeout=_PATIENCE)
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


@contextmanager
def stopping(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` at SIGINT and SIGTERM, in the main thread of a process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda *_: act()) for s in signals]
    try:
        yield
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)


def run_workers(work: Callable[..., None], workers: int, *arguments: Any) -> None:
    """Call `work(team, *arguments)` in so many CPU processes of one thread each.

    SIGINT and SIGTERM are handed on to all of them; they are waited for, so that they can save.

    Raises:
        KeyboardInterrupt: such a signal came.
        RuntimeError: a worker was killed, or ended in an error that is said in a line.
    """
    asked = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / 'rendezvous').as_uri()
        context = torch.multiprocessing.spawn(
            _worker, (work, workers, meeting, arguments), nprocs=workers, join=False
        )

        def hand_on() -> None:
            asked.set()
            for process in context.processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGINT)

        with stopping(hand_on):
            try:
                while not context.join():
                    pass
            except ProcessExitedException as error:
                raise RuntimeError(
                    f'a worker died ({error}); the same command goes on from the last save'
                ) from error
            except ProcessRaisedException as error:
                kind, _, text = error.msg.strip().rpartition('\n')[2].partition(': ')
                if not issubclass(getattr(builtins, kind, Exception), _SAID):
                    raise
                raise RuntimeError(text) from error
    if asked.is_set():
        raise KeyboardInterrupt


def _worker(
    rank: int, work: Callable[..., None], workers: int, meeting: str, arguments: tuple
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=meeting, rank=rank, world_size=workers, timeout=_PATIENCE
    )
    try:
        work(Team(rank, workers), *arguments)
    finally:
        dist.destroy_process_group()
