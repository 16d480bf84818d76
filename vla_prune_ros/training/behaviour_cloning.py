# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Behaviour cloning of an OpenVLA-OFT model: L1 on action chunks, plus grounding losses.

Data-parallel over CPU processes, or on one GPU. A run is resumable: everything that the next step
depends on is in one state file, replaced atomically.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vla_prune_ros.sim.tabletop.tasks import COLOURS, TASKS
from vla_prune_ros.training.dataset import Batch, DemonstrationSet
from vla_prune_ros.training.grounding import Grounding, grounding_loss
from vla_prune_ros.training.lightvla import Finetuning, merged, prepare, training_pass
from vla_prune_ros.training.validation import closed_loop_success
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import save_pretrained
from vla_prune_ros.vla.config import DINO_MEAN, DINO_STD, SIGLIP_MEAN, SIGLIP_STD, OpenVLAConfig
from vla_prune_ros.vla.processor import Normaliser
from vla_prune_ros.vla.tokenizer import PromptTokenizer

STATE_FILE = 'training_state.pt'


@dataclass(frozen=True)
class CloningConfig:
    """One stage of training.

    start: checkpoint directory in the published layout to start from (its config, statistics and
    tokenizer are kept); output: receives the trained checkpoint and the training state; files:
    episode files; steps: optimiser steps; batch_size: samples per step over all workers;
    learning_rate: peak, reached after `warmup` steps and brought down to a tenth by a cosine;
    ema: decay of the averaged weights that are saved; grounding: auxiliary losses on or off;
    lightvla: fine-tune for the mode `lightvla`, without auxiliary losses; validation: closed-loop
    episodes whose success is logged with every checkpoint, 0 for none.
    """

    start: Path
    output: Path
    files: tuple[Path, ...]
    cache: Path
    steps: int = 6000
    batch_size: int = 32
    learning_rate: float = 1e-3
    final_share: float = 0.05
    warmup: int = 200
    weight_decay: float = 0.02
    ema: float = 0.998
    grounding: bool = True
    lightvla: Finetuning | None = None
    save_every: int = 500
    validation: int = 0
    log_every: int = 50
    workers: int = 1
    device: str = 'cpu'
    seed: int = 0


def clone(config: CloningConfig, progress: bool = True) -> Path:
    """Train to `config.steps`, resuming from `config.output` if it holds a state."""
    config.output.mkdir(parents=True, exist_ok=True)
    DemonstrationSet(config.files, config.cache)  # unpack once, before the workers map it
    if config.workers <= 1 or config.device != 'cpu':
        _train(0, replace(config, workers=1), None, progress)
    else:
        with tempfile.TemporaryDirectory() as folder:
            meeting = (Path(folder) / 'rendezvous').as_uri()
            torch.multiprocessing.spawn(_train, (config, meeting, progress), nprocs=config.workers)
    return config.output


def _train(rank: int, config: CloningConfig, meeting: str | None, progress: bool) -> None:
    workers = config.workers
    if meeting is not None:
        torch.set_num_threads(1)
        dist.init_process_group('gloo', init_method=meeting, rank=rank, world_size=workers)
    torch.manual_seed(config.seed)
    large = config.lightvla is not None and config.lightvla.lora_rank and config.device != 'cpu'
    dtype = torch.bfloat16 if large else torch.float32
    model = OpenVLAOFT.from_pretrained(config.start, dtype, config.device).train()
    learner = Learner(model, config)
    optimizer = torch.optim.AdamW(
        _parameter_groups(learner, config.weight_decay), lr=0.0, betas=(0.9, 0.95), fused=True
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in trained]
    first = _resume(config, learner, optimizer, average)
    data = DemonstrationSet(config.files, config.cache)
    log = (config.output / 'log.jsonl').open('a') if rank == 0 else None
    bar = tqdm(
        total=config.steps, initial=first, unit='step', disable=not progress or rank > 0,
        desc=config.output.name,
    )  # fmt: skip
    clock, sums = time.monotonic(), {}
    for step in range(first, config.steps):
        rate = _learning_rate(config, step)
        for group in optimizer.param_groups:
            group['lr'] = rate
        batch = data.batch(step, config.batch_size // workers, config.seed, rank, workers)
        losses = learner.losses(batch.to(config.device), step, rank)
        losses['total'].backward()
        if meeting is not None:
            _average_gradients(learner, workers)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, trained, 1.0 - decay)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if rank:
            continue
        bar.update()
        if (step + 1) % config.log_every == 0:
            seconds, clock = time.monotonic() - clock, time.monotonic()
            record = {k: v / config.log_every for k, v in sums.items()}
            record |= {
                'step': step + 1,
                'learning_rate': rate,
                'samples_per_second': config.log_every * config.batch_size / seconds,
            }
            sums = {}
            print(json.dumps(record), file=log, flush=True)
            bar.set_postfix(l1=f'{record["action"]:.4f}')
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            _save(config, learner, optimizer, average, step + 1)
            if config.validation:  # the other workers wait in the next exchange of gradients
                mode = 'none' if config.lightvla is None else 'lightvla'
                success = closed_loop_success(
                    config.output, config.validation, mode, workers, config.device
                )
                print(json.dumps({'step': step + 1, **success}), file=log, flush=True)
                bar.write(f'step {step + 1}: closed-loop success {success["success"]:.0%}')
                clock = time.monotonic()
    bar.close()
    if meeting is not None:
        dist.barrier()
        dist.destroy_process_group()


class Learner(torch.nn.Module):
    """A model with everything needed to turn a batch into losses."""

    def __init__(self, model: OpenVLAOFT, config: CloningConfig) -> None:
        super().__init__()
        self.model = model
        self._config = config
        if config.lightvla is not None:
            if config.grounding:
                raise ValueError('LightVLA is trained on the L1 loss alone: switch grounding off')
            prepare(model, config.lightvla)
        sizes: OpenVLAConfig = model.config
        statistics = next(iter(sizes.norm_stats.values()))
        self._normaliser = Normaliser(statistics, sizes.action_dim, sizes.proprio_dim)
        tokenizer = PromptTokenizer.from_directory(
            config.start, sizes.bos_id, sizes.llama.vocab_size
        )
        prompts = [tokenizer.prompt_ids(task.instruction) for task in TASKS]
        longest = max(map(len, prompts))
        device = config.device
        self._prompts = torch.tensor(
            [p + [sizes.pad_id] * (longest - len(p)) for p in prompts], device=device
        )
        self._lengths = torch.tensor([len(p) for p in prompts], device=device)
        self._targets = torch.tensor([COLOURS.index(task.colour) for task in TASKS], device=device)
        values = (DINO_MEAN, SIGLIP_MEAN), (DINO_STD, SIGLIP_STD)
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, 1, 2, 3, 1, 1) for v in values
        )
        self.grounding = None
        if config.grounding:
            self.grounding = Grounding(
                sizes.llama.hidden_size, sizes.featurizer.grid, sizes.image_size
            ).to(device)
            earlier = config.start / STATE_FILE
            if earlier.exists():  # an earlier stage: its auxiliary heads go on
                state = torch.load(earlier, map_location=device, weights_only=True)['learner']
                name = 'grounding.'
                self.grounding.load_state_dict(
                    {k[len(name) :]: v for k, v in state.items() if k.startswith(name)}
                )

    def losses(self, batch: Batch, step: int = 0, rank: int = 0) -> dict[str, Tensor]:
        """`action` (L1 on the normalised chunk), the grounding losses, and their `total`.

        For LightVLA there is `kept` beside them, the mean number of different patches chosen;
        optimiser step and worker decide over its noise.
        """
        pixels = (batch.images[:, :, None] - self._mean) / self._std  # [B, V, 2, 3, S, S]
        proprio = self._normaliser.normalise_proprio(batch.proprio.cpu().numpy())
        wanted = self._normaliser.normalise_actions(batch.actions.cpu().numpy())
        device = batch.images.device
        lengths = self._lengths[batch.task]
        at = torch.arange(int(lengths.max()), device=device)
        inputs = (
            pixels.flatten(1, 3),
            self._prompts[batch.task][:, : len(at)],
            torch.as_tensor(proprio, dtype=torch.float32, device=device),
        )
        mask = at < lengths[:, None]
        wanted = torch.as_tensor(wanted, dtype=torch.float32, device=device)
        config = self._config
        if config.lightvla is not None:
            seed = ((config.seed + 2) * 1_000_003 + step) * 64 + rank
            actions, kept = training_pass(
                self.model,
                *inputs,
                mask,
                config.lightvla,
                (step, config.steps),
                torch.Generator(device).manual_seed(seed),
            )
            loss = F.l1_loss(actions, wanted)
            return {'action': loss, 'total': loss, 'kept': kept}
        out = self.model(*inputs, attention_mask=mask)
        losses = {'action': F.l1_loss(out.actions, wanted)}
        losses['total'] = losses['action']
        if self.grounding is not None:
            visual = out.embeddings[:, 1 : 1 + out.layout.n_visual]
            parts = self.grounding(
                visual,
                out.readout[:, 0],
                batch.object_pixels,
                self._targets[batch.task],
                batch.relative,
            )
            losses['total'] = losses['action'] + grounding_loss(parts)
            losses |= parts
        return losses


def _parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict]:
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    return [
        {'params': matrices, 'weight_decay': weight_decay},
        {'params': others, 'weight_decay': 0.0},
    ]


def _learning_rate(config: CloningConfig, step: int) -> float:
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    floor = config.final_share
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def _average_gradients(module: torch.nn.Module, workers: int) -> None:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= workers
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _identity(config: CloningConfig) -> dict:
    """What must be equal for a state to be resumed."""
    names = ('steps', 'batch_size', 'learning_rate', 'seed', 'grounding')
    identity = {name: asdict(config)[name] for name in names} | {'files': len(config.files)}
    return identity | ({} if config.lightvla is None else {'lightvla': asdict(config.lightvla)})


def _resume(
    config: CloningConfig,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
) -> int:
    path = config.output / STATE_FILE
    if not path.exists():
        return 0
    state = torch.load(path, map_location=config.device, weights_only=True)
    if state['identity'] != _identity(config):
        raise ValueError(
            f'{path} belongs to another training run ({state["identity"]}); '
            'remove it to start anew'
        )
    learner.load_state_dict(learner.state_dict() | state['learner'])
    optimizer.load_state_dict(state['optimizer'])
    for mine, saved in zip(average, state['average'], strict=True):
        mine.copy_(saved)
    return state['step']


def _save(
    config: CloningConfig,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
    step: int,
) -> None:
    state = {
        'identity': _identity(config),
        'step': step,
        'learner': {n: p.detach() for n, p in learner.named_parameters() if p.requires_grad},
        'optimizer': optimizer.state_dict(),
        'average': average,
    }
    partial = config.output / (STATE_FILE + '.partial')
    torch.save(state, partial)
    partial.rename(config.output / STATE_FILE)
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    current = [p.detach().clone() for p in trained]
    _assign(trained, average)
    save_pretrained(merged(learner.model), config.output, step=1, tokenizer=config.start)
    _assign(trained, current)


def _assign(parameters: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
