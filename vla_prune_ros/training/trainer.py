# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One process of a training run: its steps, its log and its checkpoints."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from vla_prune_ros.datasets import Store
from vla_prune_ros.training.batches import Batch, Batches
from vla_prune_ros.training.folder import STATE, Folder
from vla_prune_ros.training.learner import Learner, parameter_groups
from vla_prune_ros.training.lora import adapters, merged, save_adapters
from vla_prune_ros.training.processes import Team
from vla_prune_ros.training.starting import (
    rate_warnings,
    start_model,
    statistics_of,
    warnings_of,
)
from vla_prune_ros.training.validation import closed_loop_success
from vla_prune_ros.vla.checkpoint import save_pretrained
from vla_prune_ros.vla.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from vla_prune_ros.training.finetune import Run


class Trainer:
    """One process of a run."""

    def __init__(self, team: Team, run: Run, progress: bool = False) -> None:
        """Load everything, and resume."""
        self._team, self._run, self._progress = team, run, progress
        recipe = run.recipe
        self._parts = team.size * run.accumulate
        if recipe.batch_size % self._parts:
            raise ValueError(
                f'a batch of {recipe.batch_size} cannot be shared out to {team.size} process(es)'
                f' and {run.accumulate} part(s) of each'
            )
        stores = [Store(path) for path in run.stores]
        model = start_model(run, stores, team.device)
        self.learner = Learner(model, recipe, run.lightvla, run.grounding, run.checkpointing)
        statistics = statistics_of(run, model.config, stores)
        tokenizer = PromptTokenizer.from_directory(
            run.start, model.config.bos_id, model.config.llama.vocab_size
        )
        self._data = Batches(
            stores, model.config, statistics, tokenizer, recipe, run.seed, run.held_out,
            threads=4 if team.size == 1 else 1,
        )  # fmt: skip
        self._folder = Folder(run.output)
        self._identity = self._identify(stores)
        if team.rank == 0:
            self._warn(stores, statistics)
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self.learner, recipe), lr=0.0, betas=recipe.betas, fused=True
        )
        self.trained = [p for p in self.learner.parameters() if p.requires_grad]
        self._average: list[Tensor] = []
        if recipe.ema and team.rank == 0:
            self._average = [p.detach().clone() for p in self.trained]
        self.first = self._resume()
        if team.rank == 0:
            every = sum(p.numel() * p.element_size() for p in model.parameters())
            self._folder.require_space(every + sum(12 * p.numel() for p in self.trained))
        self._wrapped: Any = self.learner
        if team.size > 1:
            self._wrapped = DistributedDataParallel(self.learner, gradient_as_bucket_view=True)

    def _warn(self, stores: Sequence[Store], statistics: Sequence[Mapping[str, Any]]) -> None:
        """Say where the data is not what the heads know."""
        config = self.learner.model.config
        for store, known in zip(stores, statistics, strict=True):
            found = rate_warnings(store.name, store.rate, config.control_rate)
            if not self._run.recipe.fresh_heads:
                found += warnings_of(store.name, store.statistics, known, config.normalisation)
            for warning in found:
                print(f'train: {warning}', file=sys.stderr)

    def _identify(self, stores: Sequence[Store]) -> dict[str, Any]:
        """What must be equal for a state to be resumed; not how the work is shared out."""
        run = self._run
        recipe = {name: str(value) for name, value in asdict(run.recipe).items()}
        return {
            **recipe,
            'data': [f'{store.name} {store.source}' for store in stores],
            'start': _listing(run.start),
            'variant': run.variant,
            'unnorm_key': run.unnorm_key,
            'chunk': run.chunk,
            'adapter': '' if run.adapter is None else _listing(run.adapter),
            'lightvla': run.lightvla,
            'grounding': run.grounding,
            'held_out': run.held_out,
            'seed': run.seed,
        }

    def _resume(self) -> int:
        state = self._folder.state(self._identity, self._team.device)
        if state is None:
            if self._team.rank == 0:
                self._folder.cut_log(0)
            self._begin_grounding()
            return 0
        self.learner.load_state_dict(self.learner.state_dict() | state['learner'])
        self._optimizer.load_state_dict(state['optimizer'])
        for mine, saved in zip(self._average, state['average'], strict=self._team.rank == 0):
            mine.copy_(saved)
        if self._team.rank == 0:
            self._folder.cut_log(state['step'])
        return state['step']

    def _begin_grounding(self) -> None:
        """Auxiliary heads go on from an earlier stage."""
        earlier = self._run.start / STATE
        if self.learner.grounding is None or not earlier.exists():
            return
        state = torch.load(earlier, map_location=self._team.device, weights_only=True)['learner']
        own = {k: v for k, v in state.items() if k.startswith('grounding.')}
        self.learner.load_state_dict(self.learner.state_dict() | own)

    def run(self, asked: threading.Event) -> None:
        """Take all steps that are left, or stop after one that `asked` came in."""
        run, team, recipe = self._run, self._team, self._run.recipe
        bar = tqdm(
            total=recipe.steps, initial=self.first, unit='step', disable=not self._progress,
            desc=run.output.name,
        )  # fmt: skip
        meter = _Meter()
        with bar, ThreadPoolExecutor(1, 'batches') as ahead:
            waiting = self._order(ahead, self.first, 0)
            for step in range(self.first, recipe.steps):
                for part in range(run.accumulate):
                    batch = waiting.result()
                    last = part + 1 == run.accumulate
                    waiting = self._order(ahead, step + last, 0 if last else part + 1)
                    meter.add(self._backward(batch, step, last), len(batch.seed) * team.size)
                self._step(step)
                stop = team.any(asked.is_set() or _orphaned())
                bar.update()
                done = step + 1
                if done % run.log_every == 0:
                    record = {'step': done, 'learning_rate': recipe.rate(step)}
                    record |= team.mean(meter.means()) | meter.speed()
                    if torch.device(team.device).type == 'cuda':
                        record['gpu_gb'] = torch.cuda.max_memory_allocated() / 1e9
                    if team.rank == 0:
                        self._folder.log(record)
                        bar.set_postfix(l1=f'{record.get("l1", record["action"]):.4f}')
                    meter = _Meter()
                if stop or done % run.save_every == 0 or done == recipe.steps:
                    if team.rank == 0:
                        self._save(done, bar, not stop)
                    team.wait()
                    meter = _Meter()
                if stop and done < recipe.steps:
                    raise KeyboardInterrupt

    def _order(self, ahead: ThreadPoolExecutor, step: int, part: int) -> Future[Batch]:
        """Have the next batch made while this one is computed."""
        number = self._team.rank * self._run.accumulate + part
        return ahead.submit(self._data.batch, step, number, self._parts)

    def _backward(self, batch: Batch, step: int, last: bool) -> dict[str, float]:
        """Add the gradients of a part; those of all processes are averaged with the last one."""
        alone = last or self._team.size == 1
        with nullcontext() if alone else self._wrapped.no_sync():
            losses = self._wrapped(batch.to(self._team.device), step)
            (losses['total'] / self._run.accumulate).backward()
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not values['total'] < float('inf'):
            raise RuntimeError(f'the loss of step {step + 1} is {values["total"]}: lower the rate')
        return values

    def _step(self, step: int) -> None:
        recipe = self._run.recipe
        for group in self._optimizer.param_groups:
            group['lr'] = recipe.rate(step)
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.trained, recipe.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average:
            decay = min(recipe.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(self._average, self.trained, 1.0 - decay)

    def _save(self, step: int, bar: tqdm, judge: bool) -> None:
        run, named = self._run, self.learner.named_parameters()
        state = {
            'identity': self._identity,
            'step': step,
            'learner': {n: p.detach() for n, p in named if p.requires_grad},
            'optimizer': self._optimizer.state_dict(),
            'average': self._average,
        }
        path = self._folder.write(step, lambda folder: self._export(folder, step), state, run.keep)
        if judge and run.held_out:
            record = {'step': step, 'held_out': self._held_out_loss(step)}
            self._folder.log(record)
            bar.write(f'step {step}: L1 on held-out episodes {record["held_out"]:.4f}')
        if judge and run.validation:
            mode = 'lightvla' if run.lightvla else 'none'
            success = closed_loop_success(path, run.validation, mode, run.workers, run.device)
            self._folder.log({'step': step, **success})
            bar.write(f'step {step}: closed-loop success {success["success"]:.0%}')

    def _export(self, folder: Path, step: int) -> None:
        model, current = self.learner.model, [p.detach().clone() for p in self.trained]
        if self._average:
            _assign(self.trained, self._average)
        save_pretrained(merged(model), folder, step=step, tokenizer=self._run.start)
        if adapters(model):
            save_adapters(model, folder)
        _assign(self.trained, current)

    @torch.no_grad()
    def _held_out_loss(self, step: int) -> float:
        """Mean L1 on the episodes that are not trained on, without noise on the scores."""
        recipe, total, count = self._run.recipe, 0.0, 0
        for batch in self._data.validation(max(1, recipe.batch_size // self._parts)):
            losses = self.learner(batch.to(self._team.device), recipe.steps)
            total += float(losses.get('l1', losses['action'])) * len(batch.seed)
            count += len(batch.seed)
        return total / count if count else float('nan')


class _Meter:
    """Means and speed since the last line of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = self._samples = 0
        self._clock = time.monotonic()

    def add(self, values: dict[str, float], samples: int) -> None:
        self._count, self._samples = self._count + 1, self._samples + samples
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / self._count for name, value in self._sums.items()}

    def speed(self) -> dict[str, float]:
        return {'samples_per_second': self._samples / (time.monotonic() - self._clock)}


def _orphaned() -> bool:
    """Whether the process that started this worker was killed."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _listing(directory: Path) -> str:
    """Names and sizes of the weight files of a directory."""
    files = [*directory.glob('*.safetensors'), *directory.glob('*.pt')]
    return ' '.join(f'{p.name}:{p.stat().st_size}' for p in sorted(files) if p.name != STATE)


def _assign(parameters: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
