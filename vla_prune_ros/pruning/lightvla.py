# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LightVLA: each patch votes for the patch it needs, before the decoder; the others are dropped.

Source: LightVLA (arXiv 2509.12594) and its released code. The rule has no weights of its own and
no budget; it is the method only together with weights that were fine-tuned for it. What differs
from the release: batches with padding (padded prompt tokens are masked), and the lowest id wins
among equal scores.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from vla_prune_ros.pruning.base import BUDGET, Option, PruningMethod
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, TokenLayout, TokenState

NOISES = ('uniform', 'gumbel')
_EPS = 1e-6


def unit(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension, in float32; dtype as given."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + _EPS)).to(x.dtype)


def unit_interval(x: Tensor) -> Tensor:
    """Scale values monotonically into 0..1, exclusive of 1."""
    return (x - x.amin()) / (x.amax() - x.amin() + 1.0)


def patch_scores(patches: Tensor, task: Tensor, task_mask: Tensor | None = None) -> Tensor:
    """How much each patch wants each patch: S = n(softmax(P T^t / sqrt(D)) T) P^t / sqrt(D).

    The inner part is torch's attention call, as released: in bfloat16 it rounds its result only,
    while logits and weights that are rounded, too, change the choice of some patches.

    Args:
        patches: visual embeddings of all cameras [..., N, D].
        task: robot state, prompt, placeholders and EOS, [..., M, D].
        task_mask: bool [..., M], False on padding; None without padding.

    Returns:
        [..., N, N], row i are the scores of patch i, in the dtype of `patches`.
    """
    p, t = unit(patches), unit(task)
    mask = None if task_mask is None else task_mask[..., None, :]
    wanted = torch.nn.functional.scaled_dot_product_attention(p, t, t, attn_mask=mask)
    return (unit(wanted) @ p.transpose(-1, -2)) * (1.0 / math.sqrt(patches.shape[-1]))


def noise_scale(step: int, steps: int) -> float:
    """Amplitude of the training noise: 1 at step 0, linearly down to 0 at `steps`."""
    return min(1.0, max(0.0, 1.0 - step / steps))


def draw_noise(
    shape: torch.Size, kind: str = 'uniform', generator: torch.Generator | None = None, **to: Any
) -> Tensor:
    """Training noise of amplitude 1: uniform in 0..1 (the released code) or standard Gumbel.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in NOISES:
        raise ValueError(f'unknown noise {kind!r}; valid: {", ".join(NOISES)}')
    if kind == 'uniform':
        return torch.rand(shape, generator=generator, **to)
    return -torch.empty(shape, **to).exponential_(generator=generator).log()


def straight_through(
    patches: Tensor, task: Tensor, task_mask: Tensor | None = None, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Training-time selection: hard choice in the forward pass, softmax in the backward pass.

    Every row stays and is replaced by the patch it chose; a patch that is chosen twice is there
    twice, both times at its own position.

    Args:
        patches: see `patch_scores`.
        task: see `patch_scores`.
        task_mask: see `patch_scores`.
        noise: added to the scores, [..., N, N]; None for none.

    Returns:
        The chosen embeddings [..., N, D] and the chosen patches, int64 [..., N] in 0..N-1.
    """
    scores = patch_scores(patches, task, task_mask)
    if noise is not None:
        scores = scores + noise
    chosen = scores.argmax(-1)
    soft = scores.softmax(-1)
    hard = torch.nn.functional.one_hot(chosen, scores.shape[-1]).to(soft.dtype)
    weights = hard + (soft - soft.detach())  # [..., N, N]
    return weights.to(patches.dtype) @ patches, chosen


def select_for_training(
    embeddings: Tensor,
    layout: TokenLayout,
    key_mask: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply `straight_through` to assembled sequences.

    Args:
        embeddings: [B, n, D].
        layout: meaning of the rows, of the longest sample.
        key_mask: bool [B, n], False on padding behind EOS, or None.
        noise: [B, N, N] for N visual tokens, or None.

    Returns:
        Embeddings [B, n, D] and position ids int64 [B, n] for the decoder, which still needs
        `key_mask`.
    """
    first, rest = layout.visual.start, layout.visual.stop
    patches, task = embeddings[:, first:rest], embeddings[:, rest:]
    task_mask = None if key_mask is None else key_mask[:, rest:]
    selected, chosen = straight_through(patches, task, task_mask, noise)
    positions = torch.arange(layout.length, device=embeddings.device)
    positions = positions.repeat(len(embeddings), 1)
    positions[:, first:rest] = first + chosen
    return torch.cat([embeddings[:, :first], selected, task], dim=1), positions


class LightVLA(PruningMethod):
    """Keeps the patches that at least one patch chose; the count follows from the data."""

    name = 'lightvla'
    summary = 'patches chosen by attention to task and state (needs weights trained for it)'
    budget_kind = 'exact'
    plans_ahead = True
    options = (
        BUDGET,
        Option(
            'precision',
            str,
            'model',
            'type of the scores; model: that of the weights',
            choices=('model', 'float32'),
        ),
        Option(
            'keep',
            int,
            0,
            'exactly so many patches of all cameras, to measure speed at a given count; 0: by the '
            'rule',
            0,
            65536,
        ),
    )

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        self._trained = config.pruning_trained == self.name
        if not self._trained:
            warnings.warn(
                'mode lightvla runs on weights that were not fine-tuned for it; the result says '
                'nothing about LightVLA (train lightvla makes such weights)',
                stacklevel=2,
            )
        self._take_note()
        self._kept = 0

    def set_budget(self, share: float) -> None:
        """As `PruningMethod.set_budget`; with a budget the rule is not LightVLA's."""
        super().set_budget(share)
        self._take_note()

    def _take_note(self) -> None:
        notes = []
        if not self._trained:
            notes.append('these weights were not trained for lightvla: this is not the method')
        if self.budget:
            notes.append(f'the share of patches is fixed at {self.budget}, LightVLA has no budget')
        elif self.opt.keep:
            notes.append(
                f'the number of patches is fixed at {self.opt.keep}, LightVLA has no budget'
            )
        self.note = '; '.join(notes)

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """One cut, before the first layer."""
        return PassPlan(points=frozenset({0}), repeats=bool(self.opt.keep or self.budget))

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Return the chosen patches and everything protected."""
        layout, hidden = tokens.layout, tokens.hidden
        if self.opt.precision == 'float32':
            hidden = hidden.float()
        first, rest = layout.visual.start, layout.visual.stop
        scores = patch_scores(hidden[first:rest], hidden[rest:])  # [N, N]
        keep = torch.zeros(layout.n_visual, dtype=torch.bool, device=hidden.device)
        keep.index_fill_(0, scores.argmax(-1), True)
        count = self.most_tokens(layout) if self.budget else self.opt.keep
        if count:
            return self._exactly(keep, scores, layout, count)
        kept = keep.nonzero().flatten()
        self._kept = len(kept)
        return layout.keep(first + kept)

    def _exactly(self, keep: Tensor, scores: Tensor, layout: TokenLayout, count: int) -> Tensor:
        """Chosen patches first, then the others, each by their highest score from any patch."""
        best = unit_interval(scores.amax(0).float()) + keep  # a choice outweighs any score
        order = best.argsort(descending=True, stable=True)[:count]
        self._kept = len(order)
        return layout.keep(layout.visual.start + order)

    def stats(self) -> dict[str, bool | int | float | str]:
        """How many patches were chosen, and whether the weights know the rule."""
        return {'kept': self._kept, 'trained': self._trained}
