# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SpecPrune-VLA: keep what was important, what changed, and what the first layers look at.

Source: arXiv 2509.05614. The first query after a reset is dense. Later ones run the first layers
on all tokens, cut once to V_global | V_dynamic | V_local, and cut a little more in deeper layers.
A controller that follows the executed actions chooses between coarse and fine budgets. Where
paper and release disagree or are silent, the choice is noted beside the code.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.pruning.base import PruningMethod, Tick
from vla_prune_ros.pruning.budget import camera_quotas
from vla_prune_ros.pruning.controller import SpeedController, Thresholds
from vla_prune_ros.pruning.history import History
from vla_prune_ros.pruning.importance import Importance
from vla_prune_ros.pruning.scaling import scale_layers, scaled_count, whole_numbers
from vla_prune_ros.pruning.scores import instruction_rows, visual_ids
from vla_prune_ros.pruning.specprune_options import (
    OPTIONS,
    Budgets,
    budgets,
    fitting,
)
from vla_prune_ros.pruning.specprune_rules import SIZES, LayerCut, Union
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, ScoreRequest, TokenLayout, TokenState


@dataclass
class _Memory:
    """What one query leaves to the next.

    Attributes:
        controller: follows the executed actions.
        fine: mode of the last query.
        deep: scores of its deep layers [layers, views, patches], absent tokens -inf; no layers
            without V_global, None before the first query.
        dropped: tokens it left without a deep score, bool [views, patches].
    """

    controller: SpeedController = field(default_factory=SpeedController)
    fine: bool = False
    deep: Tensor | None = None
    dropped: Tensor | None = None


@dataclass
class _Pass:
    """What one query needs between its cut points."""

    dense: bool
    rules: dict[int, Union | LayerCut] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)  # see `specprune_rules`
    sizes: dict[str, int | Tensor] = field(default_factory=dict)


class SpecPrune(PruningMethod):
    """Speculative pruning with memory of the last query, frame differences and first layers."""

    name = 'specprune'
    summary = 'SpecPrune-VLA: last query, changed patches and first layers decide'
    options = OPTIONS
    budget_kind = 'bound'
    dense_queries = 1
    plans_ahead = True

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        opt, depth = self.opt, config.llama.n_layers
        if not (opt.use_local or opt.use_global or opt.use_dynamic):
            raise ValueError('one of the options use_local, use_global, use_dynamic must be true')
        self.every_frame = opt.use_dynamic
        self.full_layers = min(opt.full_layers, depth - 1)
        deep = whole_numbers('global_layers', opt.global_layers)
        deep = scale_layers('global_layers', deep, depth, self.full_layers, depth - 1)
        self.global_layers = tuple(dict.fromkeys(deep)) if opt.use_global else ()
        cuts = whole_numbers('cut_layers', opt.cut_layers)
        cuts = scale_layers('cut_layers', cuts, depth, self.full_layers, depth - 2)
        # A cut behind the last layer would be none. Cuts that meet in a layer add up.
        possible = opt.layer_cuts and self.full_layers <= depth - 2
        self.cuts = Counter(cuts if possible else ())
        self.thresholds = Thresholds(
            opt.enter_translation,
            opt.enter_rotation,
            opt.leave_translation,
            opt.leave_rotation,
            opt.hold_steps,
        )
        # Thresholds and distances are in steps of the end effector.
        self.follows_hand = config.action_kind == 'delta_pose'
        self.follows_motion = opt.controller and self.follows_hand
        if not self.follows_hand:
            self.note = (
                'the actions are joint positions: budgets are always the coarse ones, and the '
                'reference frame is as far as at rest'
            )
            warnings.warn(f'mode specprune: {self.note}', stacklevel=2)
        self._slots: dict[str, Any] = {}
        self._frames: tuple[Any, Any] | None = None  # images of now and of the reference
        self._template_tokens = 0
        self._distance = 0
        self._pass: _Pass | None = None

    def reset(self) -> None:
        """Forget everything."""
        self._slots, self._frames, self._pass, self._distance = {}, None, None, 0

    def observe(self, tick: Tick) -> None:
        """Follow the executed actions and choose the reference frame."""
        self._template_tokens = tick.template_tokens
        memory = self._follow(tick.history)
        memory.fine = memory.controller.fine
        reference = None
        if self.opt.use_dynamic:
            reference = tick.history.previous(self.wanted_distance(tick.history))
        self._frames, self._distance = None, 0
        if reference is not None:
            self._frames = tick.frames, reference.images
            self._distance = tick.history.step - reference.step

    def wants_query(self, history: History) -> bool:
        """Whether fine motion began within the running chunk, if `requery_on_enter` is on."""
        if not self.opt.requery_on_enter:
            return False
        memory = self._follow(history)
        return memory.deep is not None and memory.controller.fine and not memory.fine

    def requery_after(self, history: History, actions: np.ndarray) -> int:
        """What `wants_query` will say while these actions are executed, without executing them."""
        memory = self._follow(history)
        asks = self.opt.requery_on_enter and self.follows_hand
        if not asks or memory.deep is None or memory.fine:
            return 0
        controller = copy.copy(memory.controller)
        for number, action in enumerate(actions[:-1], start=1):
            controller.follow([action], history.step + number, self.thresholds)
            if controller.fine:
                return number
        return 0

    def wanted_distance(self, history: History) -> int:
        """Return how many control steps back the reference frame should be; faster is nearer.

        V_global is as old as the last query. A nearer frame would hide what changed in between,
        so by default the distance is no shorter than that (the paper has no such limit).
        """
        opt = self.opt
        speed = 0.0
        if history.executed and self.follows_hand:
            speed = float(np.linalg.norm(np.sum([a[:3] for a in history.executed], axis=0)))
        steps = math.floor(opt.distance_base + opt.distance_slope * speed) + opt.distance_offset
        if opt.clamp_to_last_query and history.last_query_step is not None:
            steps = max(steps, history.step - history.last_query_step)
        return max(1, steps)

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Plan the pass."""
        opt, memory, shape = self.opt, self._memory, (layout.n_views, layout.patches_per_view)
        dense = memory.deep is None or memory.deep.shape[1:] != shape
        now = self._pass = _Pass(dense)
        rows = instruction_rows(layout, self._template_tokens)
        requests = {
            layer: ScoreRequest(rows, layout.visual, mean=True) for layer in self.global_layers
        }
        if dense:
            now.sizes['kept'] = layout.n_visual
            return PassPlan(scores=requests)
        now.rules = self._rules(layout, self._budgets(layout))
        union, device = now.rules[self.full_layers], embeddings.device
        now.notes = {'deep': memory.deep, 'dropped': memory.dropped}
        if self._frames is not None:
            pictures = (torch.as_tensor(frames).to(device) for frames in self._frames)
            now.notes |= zip(('current', 'reference'), pictures, strict=True)
        weighted = union.importance is not None and opt.confidence_weighting
        scored = {*self.cuts}
        if opt.use_local or union.importance is not None:
            scored |= {*range(self.full_layers)}
        requests |= {
            layer: ScoreRequest(rows, layout.visual, entropy=weighted, mean=True)
            for layer in scored
        }
        # More than half of all rows cost more than to wait for their number.
        counts = union.most(layout.n_visual) > layout.n_visual // 2
        return PassPlan(
            frozenset(now.rules),
            requests,
            rules=now.rules,
            notes=dict(now.notes),
            counted={self.full_layers: None} if counts else {},
        )

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Make the one cut to the union of the sets, or a small one in a deeper layer."""
        now, layout = self._pass, tokens.layout
        rule, count = now.rules[point], len(tokens.ids) - (layout.length - layout.n_visual)
        keep, left = rule.choose(now.notes, tokens.scores, _live(tokens), count)
        now.notes |= left
        if isinstance(rule, Union):
            return layout.keep(visual_ids(keep))
        now.notes[rule.name] = kept = rule.most(count)
        return layout.keep(visual_ids(keep, kept))

    def end(self, tokens: TokenState) -> None:
        """Leave the deep scores to the next query."""
        layout, memory, now = tokens.layout, self._memory, self._pass
        shape = (layout.n_views, layout.patches_per_view)
        deep = [tokens.scores[layer].received() for layer in self.global_layers]
        if deep:
            memory.deep = torch.stack(deep).view(-1, *shape)
            memory.dropped = memory.deep.isneginf().all(0)
        else:
            memory.deep = tokens.hidden.new_empty(0, *shape)
            memory.dropped = ~_live(tokens).view(shape)
        notes = now.notes | {**tokens.notes}
        for rule in now.rules.values():
            if isinstance(rule, Union):
                now.sizes |= zip(rule.names, notes[SIZES].unbind(), strict=True)
            else:
                now.sizes[rule.name] = notes[rule.name]

    @property
    def numbers(self) -> dict[str, Any]:
        """See `PruningMethod.numbers`."""
        return {} if self._pass is None else self._pass.sizes

    def stats(self) -> dict[str, bool | int | float | str]:
        """Mode, set sizes, kept tokens per view and after each cut, age of the reference frame."""
        now = self._pass
        if now is None:
            return {}
        tensors = {name: n for name, n in now.sizes.items() if isinstance(n, Tensor)}
        counted = torch.stack([*tensors.values()]).tolist() if tensors else []  # one device sync
        return {
            'motion': 'fine' if self._memory.fine else 'coarse',
            'dense': now.dense,
            'reference_distance': self._distance,
            **now.sizes,
            **dict(zip(tensors, counted, strict=True)),
        }

    @property
    def _memory(self) -> _Memory:
        return self._slots.setdefault(self.name, _Memory())

    def _follow(self, history: History) -> _Memory:
        self._slots = history.slots
        memory = self._memory
        if self.follows_motion:
            memory.controller.follow([*history.executed], history.step, self.thresholds)
        return memory

    def _budgets(self, layout: TokenLayout) -> Budgets:
        patches = layout.patches_per_view
        if not self.budget:
            return budgets(self.opt, patches, self._memory.fine)
        opt, merged = self.opt, self.opt.global_merge == 'mean'
        lists = Budgets(
            opt.use_local * self.full_layers,
            min(1, len(self.global_layers)) if merged else len(self.global_layers),
            int(opt.use_dynamic),
        )
        return fitting(opt, patches, max(self._quotas(layout)), lists)

    def _quotas(self, layout: TokenLayout) -> list[int]:
        """Tokens of each view that the budget in force admits."""
        return camera_quotas(self.most_tokens(layout), layout.n_views, layout.patches_per_view)

    def _rules(self, layout: TokenLayout, budget: Budgets) -> dict[int, Union | LayerCut]:
        """The cuts of a query that is not dense, by their points."""
        opt, first = self.opt, self.full_layers
        importance = None
        if self.cuts:
            weights = (opt.beta, opt.eps, opt.rank_decay, opt.confidence_weighting)
            importance = Importance(*weights)
        rules: dict[int, Union | LayerCut] = {
            first: Union(
                point=first,
                shape=(layout.n_views, layout.patches_per_view),
                budget=budget,
                local=opt.use_local,
                recalled=len(self.global_layers),
                mean=opt.global_merge == 'mean',
                patch_size=0 if self._frames is None else self.config.featurizer.patch_size,
                tau=opt.tau,
                quotas=tuple(self._quotas(layout)) if self.budget else None,
                importance=importance,
            )
        }
        if importance is None:
            return rules
        floor, after = _scaled_total(opt.min_tokens, layout.n_visual), first
        for layer, times in sorted(self.cuts.items()):
            n, share = layout.n_visual, opt.cut_share
            rules[layer + 1] = LayerCut(layer, after, n, times, share, floor, importance)
            after = layer + 1
        return rules


def _live(tokens: TokenState) -> Tensor:
    """Which visual tokens are there, bool [n_visual]; ids may be followed by those of filling."""
    n, ids = tokens.layout.n_visual, tokens.ids
    there = torch.zeros(n + 1, dtype=torch.bool, device=ids.device)
    return there.index_fill_(0, ids.masked_fill(ids > n, 0), True)[1:]  # 0 is BOS, and all others


def _scaled_total(count: int, n_visual: int) -> int:
    """Tokens of all views that stand for `count` of the published two views."""
    return scaled_count(count / 2, n_visual)
