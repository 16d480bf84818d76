# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scout: what earlier queries looked at, carried along with what moved, and a patrol of the rest.

A mode of this project, training-free. It cuts before the first layer to a fixed number of patches,
so that no layer runs on all of them; it never waits for the host; and what it drops it does not
lose sight of, because the towers see every patch of every query:

- memory: attention that patches received in the last query that computed them, in a few layers;
- follow: a patch inherits the score of the patch of the last query that it looks like;
- patrol: a share of the budget goes to patches unlike any chosen one, the longest unseen first.

Only the first query after a reset is complete.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_prune_ros.pruning.base import BUDGET, KEEP, Option, PruningMethod, Tick
from vla_prune_ros.pruning.resets import RESETS
from vla_prune_ros.pruning.scaling import scale_layers, whole_numbers
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, ScoreRequest, TokenLayout, TokenState

_TEMPERATURE = 0.05  # of the similarity by which scores are passed on
_RANK_OFFSET = 2.0  # of the ranks that are fused
_LEAST_NOVELTY = 0.02  # of a patch that looks like a chosen one: it waits longer, not for ever


@dataclass
class _Memory:
    """What one query leaves to the next.

    Attributes:
        layout: of the sequence that it belongs to.
        scores: attention received, by source, float32 [sources, n_visual].
        age: queries since the patch was computed, float32 [n_visual].
        looks: embeddings of the last query, unit length [views, patches, D].
        open: what the gripper was last told; None before anything was executed.
    """

    layout: TokenLayout
    scores: Tensor
    age: Tensor
    looks: Tensor
    open: bool | None = None


class Scout(PruningMethod):
    """Keeps what earlier queries looked at, where it is now, and patrols the rest."""

    name = 'scout'
    summary = 'remembered attention that follows what moves, and a patrol; no full layers'
    budget_kind = 'exact'
    dense_queries = 1
    options = (
        BUDGET,
        *RESETS,
        KEEP,
        Option('explore', float, 0.25, 'share of the kept patches that patrol', 0.0, 1.0),
        Option('follow', bool, True, 'scores move with what moves; else they stay in place'),
        Option(
            'patrol', str, 'diverse', 'which other patches: unlike those chosen and long unseen, '
            'or only long unseen', choices=('diverse', 'age'),
        ),
        Option('joint', bool, True, 'rank the patches of all cameras together, not each camera'),
        Option('action_layers', str, '8,16,31', 'whose action slots score, from 0, out of 32'),
        Option('text_layers', str, '8', 'whose instruction rows score, from 0, out of 32'),
        Option('dense_on_grip', bool, False, 'a complete query when the gripper opened or closed'),
    )  # fmt: skip

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        depth = config.llama.n_layers
        sources = []
        for rows in ('action', 'text'):
            name = f'{rows}_layers'
            text = getattr(self.opt, name)
            printed = whole_numbers(name, text) if text else ()
            sources += [(rows, i) for i in scale_layers(name, printed, depth, 0, depth - 1)]
        if not sources:
            raise ValueError('options action_layers, text_layers: one of them must name a layer')
        self.sources = [*dict.fromkeys(sources)]
        self.sees_grip = config.action_kind == 'delta_pose'  # then the last number is a gripper
        if self.opt.dense_on_grip and not self.sees_grip:
            self.note = 'the actions are joint positions: dense_on_grip is off'
            warnings.warn(f'mode scout: {self.note}', stacklevel=2)
        self._slots: dict[str, Any] = {}
        self._gripper: list[bool] = []
        self._chosen: Tensor | None = None
        self._looks = torch.empty(0)
        self._stats: dict[str, bool | int | float | str] = {}

    def observe(self, tick: Tick) -> None:
        """Remember where the memory is, and what the gripper was told."""
        self._slots = tick.history.slots
        executed = tick.history.executed if self.sees_grip else ()
        self._gripper = [bool(action[-1] > 0.5) for action in executed]

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Choose the patches; without a memory, or after a gripper event, all of them."""
        opt, memory = self.opt, self._recall(layout)
        visual = embeddings[layout.visual.start : layout.visual.stop].float()
        self._looks = F.normalize(visual, dim=-1).view(layout.n_views, layout.patches_per_view, -1)
        self._chosen = None
        keep = self.share_kept(layout)
        gripped = memory is not None and self._gripped(memory)
        dense = memory is None or keep == layout.n_visual or (opt.dense_on_grip and gripped)
        if memory is not None and opt.follow:
            memory.scores = followed(memory.scores, self._looks, memory.looks)
        patrol = 0 if dense else round(opt.explore * keep)
        self._stats = {
            'dense': dense,
            'kept': layout.n_visual if dense else keep,
            'patrol': patrol,
        }
        if not dense:
            self._chosen = self._choose(memory, keep, patrol)
        return PassPlan(
            points=frozenset() if dense else frozenset({0}),
            scores=self._requests(layout),
            repeats=True,
            blind=True,
        )

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Return the chosen patches and everything protected."""
        return tokens.layout.keep(tokens.layout.visual.start + self._chosen)

    def end(self, tokens: TokenState) -> None:
        """Computed patches take the new scores; the others keep theirs."""
        layout = tokens.layout
        split = len(layout.text)
        new = []
        for rows, layer in self.sources:
            probs = tokens.scores[layer].probs.mean(0)  # [rows, n_visual], absent -inf
            new.append((probs[:split] if rows == 'text' else probs[split:]).mean(0))
        scores = torch.stack(new)
        memory, chosen = self._recall(layout), self._chosen
        if memory is None or chosen is None:
            opened = None if memory is None else memory.open
            memory = _Memory(layout, scores, torch.zeros_like(scores[0]), self._looks, opened)
        else:
            # Attention of a pruned query is shared by fewer keys: as much as these had before.
            found, before = scores[:, chosen], memory.scores[:, chosen].sum(1, keepdim=True)
            found = found * (before / found.sum(1, keepdim=True).clamp(min=1e-12))
            memory.scores = memory.scores.index_copy(1, chosen, found)
            memory.age = (memory.age + 1).index_fill(0, chosen, 0.0)
            memory.looks = self._looks
        memory.open = self._gripper[-1] if self._gripper else memory.open
        self._slots[self.name] = memory

    def reset(self) -> None:
        """Forget what is not in the history."""
        self._slots, self._gripper, self._chosen = {}, [], None

    def stats(self) -> dict[str, bool | int | float | str]:
        """Whether the query was complete, how many patches it computed, how many as a patrol."""
        return dict(self._stats)

    def _recall(self, layout: TokenLayout) -> _Memory | None:
        memory = self._slots.get(self.name)
        return memory if memory is not None and memory.layout == layout else None

    def _gripped(self, memory: _Memory) -> bool:
        """Whether the gripper was told something else than before, since the last query."""
        told = [memory.open] * (memory.open is not None) + self._gripper
        return len({*told}) > 1

    def _requests(self, layout: TokenLayout) -> dict[int, ScoreRequest]:
        rows = range(layout.text.start, layout.placeholders.stop)  # they are neighbours
        return {layer: ScoreRequest(rows, layout.visual) for _, layer in self.sources}

    def _choose(self, memory: _Memory, keep: int, patrol: int) -> Tensor:
        """Visual rows 0..n_visual-1 that stay, int64 [keep]; their number is known."""
        views, patches = self._looks.shape[:2]
        merit = fused(memory.scores)
        if self.opt.joint:
            order = merit.argsort(descending=True, stable=True)
        else:  # the best of every camera, then the second best of every camera
            each = merit.view(views, patches).argsort(dim=1, descending=True, stable=True)
            starts = patches * torch.arange(views, device=each.device)
            order = (each + starts[:, None]).T.flatten()
        remembered = order[: keep - patrol]
        if not patrol:
            return remembered
        if self.opt.patrol == 'age':
            age = memory.age.index_fill(0, remembered, -1.0)
            return torch.cat([remembered, age.argsort(descending=True, stable=True)[:patrol]])
        return unlike(self._looks.flatten(0, 1), remembered, memory.age + 1, patrol)


def followed(scores: Tensor, looks: Tensor, last: Tensor) -> Tensor:
    """Scores where the patches are now.

    Args:
        scores: of the patches of the last query, [sources, n_visual], at least 0.
        looks: embeddings of today, unit length [views, patches, D].
        last: of the last query, the same shape.

    Returns:
        [sources, n_visual]: the best of exp((similarity - 1) / 0.05) * score over the patches of
        the same camera, and no less than the patch's own.
    """
    likeness = ((looks @ last.transpose(1, 2) - 1) / _TEMPERATURE).exp()  # [views, today, last]
    old = scores.view(len(scores), len(looks), 1, -1)
    return torch.maximum((likeness * old).amax(-1).flatten(1), scores)


def fused(scores: Tensor) -> Tensor:
    """Reciprocal rank fusion of several sources: sum of 1 / (2 + rank); [sources, n] -> [n]."""
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (1.0 / (_RANK_OFFSET + ranks)).sum(0)


def unlike(looks: Tensor, chosen: Tensor, weight: Tensor, count: int) -> Tensor:
    """Choose further patches one by one, each as unlike all chosen ones as possible.

    Args:
        looks: unit embeddings [n, D].
        chosen: rows that are chosen already, int64.
        weight: what the difference to the nearest chosen one is multiplied by, [n].
        count: rows to add.

    Returns:
        The chosen rows and `count` others, int64.
    """
    likeness = looks @ looks.T
    nearest = likeness[chosen].amax(0) if len(chosen) else torch.full_like(weight, -1.0)
    free = torch.ones_like(weight).index_fill(0, chosen, 0.0)
    added = []
    for _ in range(count):
        merit = weight * (1 - nearest).clamp(min=_LEAST_NOVELTY)
        best = (merit * free).argmax(keepdim=True)
        added.append(best)
        free = free.index_fill(0, best, 0.0)
        nearest = torch.maximum(nearest, likeness.index_select(0, best)[0])
    return torch.cat([chosen, *added])
