# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""VLA-Pruner: what the prefill looks at and what actions looked at vote; duplicates go.

Source: VLA-Pruner (arXiv 2511.16449) and its released code for OpenVLA. The attention of action
tokens is known only after the pass, so that of earlier queries stands for it. Deliberately unlike
the release: of that history the newest query weighs most (there, by a reversed list, the oldest).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_prune_ros.pruning.base import BUDGET, KEEP, Option, PruningMethod, Tick
from vla_prune_ros.pruning.budget import camera_quotas
from vla_prune_ros.pruning.resets import RESETS
from vla_prune_ros.pruning.scaling import scaled_layer
from vla_prune_ros.pruning.scores import top_per_view
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, ScoreRequest, TokenLayout, TokenState


@dataclass
class _Memory:
    """Attention of the action slots in earlier queries.

    Attributes:
        layout: of the sequence that they belong to.
        maps: newest first, each float32 [n_visual]; 0 for patches that were dropped.
    """

    layout: TokenLayout
    maps: list[Tensor] = field(default_factory=list)


class VLAPruner(PruningMethod):
    """Keeps what instruction and state attend to and what actions attended to, less duplicates."""

    name = 'vla_pruner'
    summary = 'VLA-Pruner: attention of the prefill and of earlier actions, without duplicates'
    budget_kind = 'exact'
    options = (
        BUDGET,
        *RESETS,
        KEEP,
        Option('full_layers', int, 3, 'layers before the cut, out of 32, at least 1', 1, 31),
        Option('window', int, 3, 'queries whose action attention is remembered', 1, 100),
        Option('decay', float, 0.8, 'weight of a remembered query against the one after it',
               0.0, 1.0),
        Option('action_layer', int, 15, 'layer of the action attention, from 0, out of 32', 0, 31),
        Option(
            'rows', str, 'live', 'whose attention counts in the prefill: state, instruction and '
            'action slots, or everyone as published', choices=('live', 'all'),
        ),
        Option('use_semantic', bool, True, 'the attention of the prefill votes'),
        Option('use_action', bool, True, 'the remembered action attention votes'),
        Option('redundancy', bool, True, 'of what was voted for keep the least alike; else the '
               'best by mean rank'),
        Option('joint', bool, True, 'rank the patches of all cameras together, not each camera'),
        Option('floor_share', float, 0.25, 'of what is kept in each camera (joint)', 0.0, 1.0),
        Option(
            'warm', str, 'first', 'complete queries after a reset: the first, or until the window '
            'is full as released', choices=('first', 'window'),
        ),
        Option('released_weights', bool, False, 'the oldest remembered query weighs most'),
    )  # fmt: skip

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        opt, depth = self.opt, config.llama.n_layers
        if not (opt.use_semantic or opt.use_action):
            raise ValueError('one of the options use_semantic, use_action must be true')
        self.full_layers = max(1, scaled_layer(opt.full_layers, depth))
        if self.full_layers >= depth:
            raise ValueError(f'option full_layers: {depth} layer(s) leave none behind the cut')
        self.action_layer = scaled_layer(opt.action_layer, depth)
        self.dense_queries = 1 if opt.warm == 'first' else opt.window
        self._slots: dict[str, Any] = {}
        self._pass: tuple[Tensor, _Memory] | None = None  # looks of the patches; the memory
        self._requests: dict[int, ScoreRequest] = {}
        self._stats: dict[str, bool | int | float | str | Tensor] = {}

    def observe(self, tick: Tick) -> None:
        """Remember where the memory is."""
        self._slots = tick.history.slots

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Plan the cut; complete queries only note the action attention."""
        memory = self._slots.get(self.name)
        if memory is None or memory.layout != layout:
            memory = self._slots[self.name] = _Memory(layout)
        visual = embeddings[layout.visual.start : layout.visual.stop].float()
        self._pass = F.normalize(visual, dim=-1), memory
        dense = len(memory.maps) < self.dense_queries
        dense = dense or self.share_kept(layout) == layout.n_visual
        rows = {'live': range(layout.proprio, layout.eos), 'all': range(layout.length)}
        self._requests = {self.action_layer: ScoreRequest(layout.placeholders, layout.visual)}
        if not dense and self.opt.use_semantic:  # its rows hold the action slots, too
            self._requests[self.full_layers - 1] = ScoreRequest(rows[self.opt.rows], layout.visual)
        self._stats = {'dense': dense, 'layer': self.full_layers, 'kept': layout.n_visual}
        points = frozenset() if dense else frozenset({self.full_layers})
        return PassPlan(points, dict(self._requests), repeats=True)

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Return the chosen patches and everything protected."""
        looks, memory = self._pass
        layout, opt = tokens.layout, self.opt
        keep, shape = self.share_kept(layout), (layout.n_views, layout.patches_per_view)
        floors = camera_quotas(keep, *shape)
        if opt.joint:
            floors = [min(quota, int(opt.floor_share * keep)) for quota in floors]
        scores = []
        if opt.use_semantic:
            scores.append(tokens.scores[self.full_layers - 1].received())
        if opt.use_action:
            scores.append(self._remembered(memory))
        votes = [_best(values.view(shape), keep, floors).flatten() for values in scores]
        if opt.use_action and opt.use_semantic:
            votes[1] &= scores[1] > 0  # what was dropped comes back through the prefill only
        voted = torch.stack(votes).any(0)
        self._stats |= {'kept': keep, 'voted': voted.sum()}
        if opt.redundancy:
            chosen = least_alike(looks, voted, keep, floors)
        else:
            ranks = torch.stack(scores).argsort(dim=1, descending=True, stable=True).argsort(1)
            mean = (-ranks.float().mean(0)).masked_fill(~voted, -float(layout.n_visual))
            chosen = _best(mean.view(shape), keep, floors).flatten().int()
            chosen = chosen.argsort(descending=True, stable=True)[:keep]
        return layout.keep(layout.visual.start + chosen)

    def end(self, tokens: TokenState) -> None:
        """Note what the action slots attended to."""
        if self._pass is None:
            return
        _, memory = self._pass
        scores, slots = tokens.scores[self.action_layer], tokens.layout.placeholders
        first = slots.start - self._requests[self.action_layer].rows.start
        seen = scores.probs[:, first : first + len(slots)].mean((0, 1)).clamp(min=0.0)
        memory.maps = [seen, *memory.maps][: self.opt.window]
        self._pass = None

    def reset(self) -> None:
        """Forget what is not in the history."""
        self._slots, self._pass = {}, None

    @property
    def numbers(self) -> dict[str, Any]:
        """See `PruningMethod.numbers`."""
        return self._stats

    def stats(self) -> dict[str, bool | int | float | str]:
        """Whether the query was complete, patches kept, and how many were voted for."""
        return {k: int(v) if isinstance(v, Tensor) else v for k, v in self._stats.items()}

    def _remembered(self, memory: _Memory) -> Tensor:
        """Action attention of the window, weighted by age, [n_visual]."""
        weights = [self.opt.decay**age for age in range(len(memory.maps))]
        if self.opt.released_weights:
            weights.reverse()
        total = sum(weights)
        return sum(w / total * seen for w, seen in zip(weights, memory.maps, strict=True))


def _best(values: Tensor, keep: int, floors: list[int]) -> Tensor:
    """Mark the `keep` best patches, at least `floors` of each view; bool [views, patches]."""
    sure = top_per_view(values, floors)
    order = values.masked_fill(sure, torch.inf).flatten().argsort(descending=True, stable=True)
    marked = torch.zeros_like(sure).flatten().index_fill_(0, order[:keep], True)
    return marked.view_as(values)


def least_alike(looks: Tensor, voted: Tensor, keep: int, floors: list[int]) -> Tensor:
    """Choose patches of which none is like another: greedy max-min of the cosine distance.

    First the patch whose nearest other is farthest, then each time the patch farthest from all
    that were chosen; cameras with a floor come first.

    Args:
        looks: unit embeddings [n, D], view after view.
        voted: bool [n], at least `keep` in all and at least its floor in each view.
        keep: patches to choose.
        floors: least number in each view.

    Returns:
        Rows, int64 [keep]; no step waits for the device.
    """
    distance = 1 - looks @ looks.T  # [n, n]
    n, view = len(looks), len(looks) // len(floors)
    itself = torch.eye(n, dtype=torch.bool, device=looks.device)
    others = distance.masked_fill(itself | ~voted, torch.inf)
    nearest, chosen = others.amin(1), []
    places = torch.arange(n, device=looks.device) // view
    wanted = [i for i, floor in enumerate(floors) for _ in range(floor)]
    wanted += [-1] * (keep - len(wanted))
    free = voted
    for k, camera in enumerate(wanted):
        allowed = free if camera < 0 else free & (places == camera)
        best = nearest.masked_fill(~allowed, -torch.inf).argmax(keepdim=True)
        chosen.append(best)
        free = free.index_fill(0, best, False)
        to_best = distance.index_select(0, best)[0]
        nearest = to_best if k == 0 else torch.minimum(nearest, to_best)
    return torch.cat(chosen)
