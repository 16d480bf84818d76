# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How much GPU memory a fine-tuning needs, by counting.

Weights, gradients and AdamW's two moments are counted exactly. What a pass keeps for its gradient
was found by looking at the tensors that autograd saves, per layer and token; a test counts them
again. Workspaces of the GPU are a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vla_prune_ros.training.lora import targets, trained_whole
from vla_prune_ros.training.recipe import Recipe
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.config import OpenVLAConfig, TowerConfig

PROMPT = 35  # tokens of a usual instruction
_WORKSPACE = 1e9  # bytes of CUDA's context and libraries, not measured
_CARDS = (24, 48, 80)  # GB


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Attributes:
        frozen: weights that are not trained.
        trained: weights, gradients and moments, float32, and the copies that products use.
        average: of the weights, on the first process.
        sample: activations of one sample.
        again: one layer that is computed again, if activations are not kept.
    """

    frozen: float
    trained: float
    average: float
    sample: float
    again: float = 0.0

    @property
    def fixed(self) -> float:
        """What does not grow with the batch."""
        return self.frozen + self.trained + self.average + _WORKSPACE

    def total(self, samples: int) -> float:
        """With so many samples at a time."""
        return self.fixed + samples * (self.sample + self.again)

    def largest(self, limit: float) -> int:
        """How many samples at a time fit; 0 if none."""
        return max(0, int((limit - self.fixed) // (self.sample + self.again)))


def memory(
    config: OpenVLAConfig,
    recipe: Recipe,
    views: int = 2,
    prompt: int = PROMPT,
    half: bool = True,
    checkpointing: bool = False,
) -> Memory:
    """Count for a model.

    Args:
        config: of the model.
        recipe: LoRA and average.
        views: cameras.
        prompt: tokens of the instruction with its frame.
        half: frozen weights and products in bfloat16, else in float32.
        checkpointing: layers are computed twice.
    """
    with torch.device('meta'):
        model = OpenVLAOFT(config)
    named = {name: p.numel() for name, p in model.named_parameters()}
    everything = sum(named.values())
    rank = recipe.rank(everything)
    trained = everything
    if rank:
        heads = sum(n for name, n in named.items() if trained_whole(name))
        trained = heads + count_adapters(model, rank, recipe.lora_convolutions)
        frozen = everything - heads
    else:
        frozen = 0
    width = 2 if half else 4
    kept = _kept(config, rank, views, prompt, width, checkpointing)
    return Memory(
        frozen=float(width * frozen),
        trained=float((18 if half else 16) * trained),
        average=4.0 * trained if recipe.ema else 0.0,
        sample=kept,
        again=2.0 * _layer(config, rank, views, prompt, width) if checkpointing else 0.0,
    )


def count_adapters(model: OpenVLAOFT, rank: int, convolutions: bool) -> int:
    """Numbers of all adapters of a rank."""
    modules = dict(model.named_modules())
    weights = (modules[name].weight for name in targets(model, convolutions))
    return sum(rank * (len(w) + w[0].numel()) for w in weights)


def _layer(config: OpenVLAConfig, rank: int, views: int, prompt: int, width: int) -> float:
    """Bytes that one decoder layer keeps for its gradient, of one sample."""
    llama, n = config.llama, _length(config, views, prompt)
    wide = 2 * 4 * llama.hidden_size  # two norms in float32
    narrow = 10 * llama.hidden_size + 4 * llama.mlp_hidden + 7 * rank
    return n * (wide + width * narrow + 4 * llama.n_heads + 8)


def _block(tower: TowerConfig, rank: int, views: int, width: int) -> float:
    """Bytes that one block of a tower keeps, of all views of one sample."""
    n = views * (tower.n_patches + tower.n_prefix)
    return n * (width * (9 * tower.dim + 2 * tower.mlp_hidden + 4 * rank + 4) + 4 * tower.heads)


def _kept(
    config: OpenVLAConfig, rank: int, views: int, prompt: int, width: int, checkpointing: bool
) -> float:
    towers, n = (config.featurizer, config.fused_featurizer), _length(config, views, prompt)
    hidden, layers = config.llama.hidden_size, config.llama.n_layers
    between = 9 * config.vision_dim + 2 * hidden + 3 * rank
    total = float(width * views * config.patches_per_view * between)  # projector
    for tower in towers:
        inputs = width * views * (tower.n_patches + tower.n_prefix) * tower.dim
        each = inputs if checkpointing else _block(tower, rank, views, width)
        total += (tower.depth - 1) * each
    inputs = width * n * hidden
    each = inputs if checkpointing else _layer(config, rank, views, prompt, width)
    return total + layers * each


def _length(config: OpenVLAConfig, views: int, prompt: int) -> int:
    """Tokens of a sequence: BOS and prompt, patches, state, placeholders, EOS."""
    return config.layout(views, prompt).length


def report(
    config: OpenVLAConfig, recipe: Recipe, views: int, half: bool, checkpointing: bool, share: int
) -> str:
    """A table for people; `share` are the samples that a process has at a time."""
    mine = memory(config, recipe, views, PROMPT, half, checkpointing)
    lines = [
        f'{views} camera(s), {_length(config, views, PROMPT)} tokens with a prompt of {PROMPT}',
        f'frozen weights           {mine.frozen / 1e9:8.2f} GB',
        f'trained weights, AdamW   {mine.trained / 1e9:8.2f} GB',
        f'average of the weights   {mine.average / 1e9:8.2f} GB',
        f'context, workspaces      {_WORKSPACE / 1e9:8.2f} GB (guessed)',
        f'each sample              {(mine.sample + mine.again) / 1e9:8.2f} GB',
        f'{share} sample(s) at a time: {mine.total(share) / 1e9:.1f} GB in each process',
        '',
        'samples at a time   without checkpointing   with --checkpointing',
    ]  # fmt: skip
    both = [memory(config, recipe, views, PROMPT, half, c) for c in (False, True)]
    for card in _CARDS:
        fit = [m.largest(card * 1e9) for m in both]
        plain, twice = (str(n) if n else '-' for n in fit)
        lines.append(f'{card:>3} GB {plain:>22} {twice:>20}')
    return '\n'.join(lines)
