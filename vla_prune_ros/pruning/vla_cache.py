# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""VLA-Cache: patches that did not change keep the keys and values of an earlier inference.

Source: VLA-Cache (arXiv 2502.02175) and its released code. No token leaves the attention; the
rows of reused tokens are not computed. Deliberately unlike the release: frames are compared with
the frame that wrote a slot, slots have a largest age, candidates are ordered by similarity and
relevance instead of by index, and nothing to reuse means a dense pass.

State machine: COLD (nothing stored) -> dense -> WARM; WARM reuses, or REFRESH (dense) where too
little can be reused. A reset, an exception or another prompt length leads back to COLD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vla_prune_ros.pruning.base import BUDGET, Option, PruningMethod, Tick
from vla_prune_ros.pruning.budget import bucket_step
from vla_prune_ros.pruning.cache_schedule import (
    entropy_shares,
    parse_stages,
    released_entropy,
    released_shares,
)
from vla_prune_ros.pruning.frames import patch_similarity, to_patches
from vla_prune_ros.pruning.resets import RESETS
from vla_prune_ros.pruning.scaling import scaled_count, scaled_layer
from vla_prune_ros.pruning.scores import instruction_rows, top_per_view
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import (
    PassPlan,
    ScoreRequest,
    SlotCache,
    TokenLayout,
    TokenState,
)

_SLOT = 'vla_cache'
_RELEVANCE_LAYER = 15  # of 32, 0-based
_RELEASED_ROWS = 34  # from the robot state on, whatever the prompt is
PRESETS: dict[str, dict[str, Any]] = {
    'default': {
        'static_k': 150, 'relevance': 'top', 'schedule': 'fixed', 'max_age': 1,
        'reference': 'writer', 'refresh_below': 0.2, 'released': False,
    },
    'paper': {
        'static_k': 100, 'relevance': 'threshold', 'schedule': 'entropy', 'max_age': 0,
        'reference': 'previous', 'refresh_below': 0.0, 'released': False,
    },
    # Its reference frame is the current one by mistake; here it is the previous one. `released`:
    # candidates in the order of their ids, at least one of them reused, relevance of fixed rows.
    'released_oft': {
        'static_k': 150, 'relevance': 'top', 'schedule': 'released', 'max_age': 0,
        'reference': 'previous', 'refresh_below': 0.0, 'released': True,
    },
}  # fmt: skip


@dataclass
class CacheState:
    """What one inference leaves to the next, by visual slot [views, patches].

    Attributes:
        layout: the sequence that it belongs to.
        kv: keys and values of all layers by absolute slot.
        ref_patch: pixels of the frame that wrote each slot, uint8 [views, patches, pixels].
        last_patch: pixels of the last inference, the same shape.
        writer: inference that last wrote the slot through all layers, int64.
        age: inferences since then in which the slot was reused in some layer, int64.
        relevance: attention received from the instruction in the last inference, float32.
        entropy: attention entropy of each layer in the last inference, or None.
        inference: number of the last inference since the reset.
        valid: False while a pass is under way; a pass that failed leaves it False.
    """

    layout: TokenLayout
    kv: SlotCache
    ref_patch: Tensor
    last_patch: Tensor
    writer: Tensor
    age: Tensor
    relevance: Tensor
    entropy: Tensor | None = None
    inference: int = -1
    valid: bool = False


@dataclass
class _Pass:
    """What one inference needs between its cut points."""

    state: CacheState
    patches: Tensor
    rows: range  # whose attention is the relevance
    cuts: dict[int, Tensor] = field(default_factory=dict)  # layer -> visual rows that stay live
    most: dict[int, int] = field(default_factory=dict)  # layer -> at most so many of them


class VLACache(PruningMethod):
    """Reuses keys and values of static patches that the instruction does not look at."""

    name = 'vla_cache'
    summary = 'VLA-Cache: unchanged patches keep their keys and values'
    budget_kind = 'exact'
    dense_queries = 1
    options = (
        BUDGET,
        *RESETS,
        Option('preset', str, 'default', 'where options are "preset" or -1', choices=(*PRESETS,)),
        Option('tau', float, 0.996, 'least similarity of a static patch', -1.0, 1.0),
        Option('static_k', int, -1, 'most static patches per camera; -1: by preset, scaled', -1),
        Option(
            'relevance', str, 'preset', 'which patches are always recomputed: the best, or those '
            'above a threshold', choices=('preset', 'top', 'threshold'),
        ),
        Option('relevant_k', int, -1, 'relevant patches per camera (top); -1: 100 scaled', -1),
        Option('relevance_threshold', float, 0.5, 'of the relevance scaled to 0..1', 0.0, 1.0),
        Option('relevance_layer', int, -1, 'layer of the relevance; -1: 15 of 32 scaled', -1),
        Option(
            'schedule', str, 'preset', 'share of the candidates reused in each layer: fixed, by '
            'attention entropy (paper), by entropy as released',
            choices=('preset', 'fixed', 'entropy', 'released'),
        ),
        Option('stages', str, '', 'fixed shares "LAYER:SHARE,..."; empty: the published, scaled'),
        Option('entropy_gain', float, 1.0, "k' of the entropy schedule", 0.0, 100.0),
        Option('max_age', int, -1, 'inferences a slot may be old; 0: any, -1: by preset', -1),
        Option('strict', bool, False, 'dense pass as soon as any slot has reached max_age'),
        Option('refresh_below', float, -1.0, 'dense pass below this reusable share; -1: preset',
               -1.0, 1.0),
        Option(
            'reference', str, 'preset', 'frame to compare with: the one that wrote the slot, or '
            'that of the previous inference', choices=('preset', 'writer', 'previous'),
        ),
    )  # fmt: skip

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        opt, patches, depth = self.opt, config.patches_per_view, config.llama.n_layers
        self.rule = {
            name: preset if (own := getattr(opt, name, -1)) in ('preset', -1) else own
            for name, preset in PRESETS[opt.preset].items()
        }
        if opt.static_k == -1:
            self.rule['static_k'] = scaled_count(self.rule['static_k'], patches)
        self.rule['relevant_k'] = (
            scaled_count(100, patches) if opt.relevant_k == -1 else opt.relevant_k
        )
        self.relevance_layer = opt.relevance_layer
        if opt.relevance_layer == -1:
            self.relevance_layer = scaled_layer(_RELEVANCE_LAYER, depth)
        if self.relevance_layer >= depth:
            raise ValueError(f'option relevance_layer={opt.relevance_layer} is not below {depth}')
        self.stages = parse_stages(opt.stages, depth)
        self._take_note()
        if not any(self.stages.values()):
            self._without_budget('no stage reuses anything')
        self._tick: Tick | None = None
        self._pass: _Pass | None = None
        self._stats: dict[str, bool | int | float | str | Tensor] = {}

    def set_budget(self, share: float) -> None:
        """As `PruningMethod.set_budget`; below 1 patches that changed may be reused, too."""
        super().set_budget(share)
        self._take_note()

    def _take_note(self) -> None:
        self.note = (
            'the budget decides how many patches are reused, not only those that did not change: '
            'this is not VLA-Cache'
        ) if self.budget else ''  # fmt: skip

    def observe(self, tick: Tick) -> None:
        """Remember frames and history for the pass that follows."""
        self._tick = tick

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Decide what is reused; without frames seen before, a dense pass that stores nothing."""
        tick, self._tick, self._pass = self._tick, None, None
        self._stats = {'state': 'cold', 'candidates': 0, 'reused': 0, 'oldest': 0}
        if tick is None:
            return PassPlan()
        if len(tick.frames) != layout.n_views:
            raise ValueError(f'{len(tick.frames)} frames for {layout.n_views} cameras')
        frames = torch.as_tensor(tick.frames).to(embeddings.device)
        patches = to_patches(frames, self.config.featurizer.patch_size)  # [views, P, pixels]
        state = tick.history.slots.get(_SLOT)
        usable = state is not None and state.valid and state.layout == layout
        if not usable:
            state = self._new_state(layout, embeddings, patches)
            tick.history.slots[_SLOT] = state
        rows = instruction_rows(layout, tick.template_tokens)
        if self.rule['released']:
            start = layout.proprio
            rows = range(start, min(start + _RELEASED_ROWS, layout.length))
        self._pass = _Pass(state, patches, rows)
        if usable:
            self._pass.cuts = self._plan(state, patches, layout)
        state.valid = False
        state.inference += 1
        return PassPlan(
            points=frozenset(self._pass.cuts),
            scores=self._score_requests(layout, rows),
            cache=state.kv,
            repeats=bool(self.budget),
            blind=True,
            most=self._pass.most,
            varies=not self.budget and self.rule['schedule'] != 'fixed',
        )

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Return the rows that are computed from this layer on."""
        return tokens.layout.keep(1 + self._pass.cuts[point])

    def end(self, tokens: TokenState) -> None:
        """Book what was written; only slots computed in every layer count as written."""
        if self._pass is None:
            return
        now, self._pass = self._pass, None
        state, patches = now.state, now.patches
        layout, shape = tokens.layout, state.age.shape
        n_live = len(tokens.ids) - (layout.length - layout.n_visual)
        written = torch.zeros(layout.n_visual, dtype=torch.bool, device=patches.device)
        written.index_fill_(0, tokens.ids[1 : 1 + n_live] - 1, True)
        written = written.view(shape)
        state.age = torch.where(written, 0, state.age + 1)
        state.writer = torch.where(written, state.inference, state.writer)
        state.ref_patch = torch.where(written[..., None], patches, state.ref_patch)
        state.last_patch = patches
        scores, relevant = tokens.scores, tokens.scores[self.relevance_layer]
        relevance = relevant.received()
        if self.rule['schedule'] == 'released':  # scores of everything, ids are places in them
            rows, columns = ([*ids] for ids in (now.rows, layout.visual))
            relevance = relevant.probs[:, rows][..., columns].mean((0, 1))
            state.entropy = torch.stack([released_entropy(scores[i]) for i in sorted(scores)])
        elif self.rule['schedule'] == 'entropy':
            state.entropy = torch.stack([scores[i].entropy for i in sorted(scores)])
        state.relevance = relevance.view(shape)
        state.valid = True

    def reset(self) -> None:
        """Forget the pass; the slots are in the history."""
        self._tick = self._pass = None

    @property
    def numbers(self) -> dict[str, Any]:
        """See `PruningMethod.numbers`."""
        return self._stats

    def stats(self) -> dict[str, bool | int | float | str]:
        """Return state, candidates, rows reused in the last layer, and the oldest slot used."""
        return {k: int(v) if isinstance(v, Tensor) else v for k, v in self._stats.items()}

    def sizes(self, layout: TokenLayout) -> list[dict[int, int]]:
        """See `PruningMethod.sizes`: one for every bucket of the number of candidates."""
        if self.budget or self.rule['schedule'] != 'fixed':
            return []
        step = bucket_step(layout.n_visual)
        largest = layout.n_views * min(self.rule['static_k'], layout.patches_per_view)
        least = max(0, self.rule['refresh_below'] * layout.n_visual - step)
        every = [self._most(n, layout) for n in range(0, largest + 1, step) if n >= least]
        return [most for i, most in enumerate(every) if most not in every[:i]]

    def _new_state(self, layout: TokenLayout, embeddings: Tensor, patches: Tensor) -> CacheState:
        llama, shape = self.config.llama, patches.shape[:2]
        kv = SlotCache(
            llama.n_layers,
            layout.length,
            llama.n_heads,
            llama.head_dim,
            embeddings.dtype,
            embeddings.device,
        )
        zeros = torch.zeros(shape, dtype=torch.int64, device=patches.device)
        return CacheState(layout, kv, patches, patches, zeros - 1, zeros, zeros.float())

    def _score_requests(self, layout: TokenLayout, rows: range) -> dict[int, ScoreRequest]:
        schedule, columns = self.rule['schedule'], layout.visual
        layers = range(self.config.llama.n_layers)
        if schedule == 'fixed':
            layers = range(self.relevance_layer, self.relevance_layer + 1)
        elif schedule == 'released':  # its entropies are those of complete attention maps
            rows = columns = range(layout.length)
        entropy, mean = schedule == 'entropy', schedule != 'released'
        return {layer: ScoreRequest(rows, columns, entropy, mean) for layer in layers}

    def _plan(self, state: CacheState, patches: Tensor, layout: TokenLayout) -> dict[int, Tensor]:
        """Return the visual rows (0-based) that stay live from each layer on; {} is dense."""
        order, n = self._candidates(state, patches)
        if self.budget:
            return self._within_budget(order, n, state, layout)
        limit = self.rule['max_age']
        too_old = self.opt.strict and limit and bool((state.age >= limit).any())
        self._stats |= {'state': 'warm', 'candidates': n}
        if too_old or n < self.rule['refresh_below'] * layout.n_visual:
            self._stats['state'] = 'refresh'
            return {}
        least = min(n, 1) if self.rule['released'] else 0
        shares = self._shares(state).items()
        counts = {k: max(least, math.floor(share * n + 1e-9)) for k, share in shares}
        cuts = self._reuse(order, counts, state)
        if not cuts or self.rule['schedule'] != 'fixed':
            return cuts
        # The same cuts whatever the number is, though the first may reuse nothing yet.
        self._pass.most = self._most(n, layout)
        return {layer: order[counts[layer] :] for layer in self._pass.most}

    def _most(self, n: int, layout: TokenLayout) -> dict[int, int]:
        """Rows that the stages compute at most, for all `n` candidates of one bucket."""
        step = bucket_step(layout.n_visual)
        counts, reused = {}, 0.0
        for layer, share in sorted(self.stages.items()):
            if share > reused:
                reused = share
                counts[layer] = layout.n_visual - math.floor(share * (n // step * step) + 1e-9)
        return counts

    def _within_budget(
        self, order: Tensor, n: int, state: CacheState, layout: TokenLayout
    ) -> dict[int, Tensor]:
        """As `_plan`, so that the last layers compute exactly what the budget says.

        The stages keep their proportions. No refresh: it would not hold the budget.
        """
        reused, largest = layout.n_visual - self.most_tokens(layout), max(self.stages.values())
        self._stats |= {'state': 'warm', 'candidates': n}
        counts = {
            layer: math.floor(reused * share / largest + 1e-9)
            for layer, share in self.stages.items()
        }
        return self._reuse(order, counts, state)

    def _reuse(
        self, order: Tensor, counts: dict[int, int], state: CacheState
    ) -> dict[int, Tensor]:
        """Cuts that leave out the first `counts` rows of `order`; only growing counts act."""
        cuts: dict[int, Tensor] = {}
        reused = 0
        for layer, count in sorted(counts.items()):
            if count > reused:
                cuts[layer], reused = order[count:], count
        self._stats['reused'] = reused
        if reused:
            self._stats['oldest'] = 1 + state.age.flatten()[order[:reused]].max()
        return cuts

    def _candidates(self, state: CacheState, patches: Tensor) -> tuple[Tensor, int]:
        """All visual rows [n_visual], candidates for reuse first and the best of them first."""
        rule = self.rule
        reference = state.ref_patch if rule['reference'] == 'writer' else state.last_patch
        similarity = patch_similarity(patches, reference)  # [views, P]
        similar = similarity.masked_fill(similarity < self.opt.tau, -torch.inf)
        static = top_per_view(similar, rule['static_k'])
        low, high = state.relevance.min(), state.relevance.max()
        relevance = (state.relevance - low) / (high - low).clamp(min=torch.finfo().tiny)
        if rule['relevance'] == 'top':
            relevant = top_per_view(state.relevance, rule['relevant_k'])
        else:
            relevant = relevance >= self.opt.relevance_threshold
        candidates = static & ~relevant
        if rule['max_age']:
            candidates &= state.age < rule['max_age']
        merit = torch.zeros_like(similarity) if rule['released'] else similarity * (1 - relevance)
        best = merit.flatten().argsort(descending=True, stable=True)
        first = candidates.flatten()[best].to(torch.int8).argsort(descending=True, stable=True)
        return best[first], int(candidates.sum())

    def _shares(self, state: CacheState) -> dict[int, float]:
        """Layer -> share of the candidates reused from there on."""
        if self.rule['schedule'] == 'fixed':
            return self.stages
        entropy = state.entropy.tolist()
        if self.rule['schedule'] == 'entropy':
            return entropy_shares(entropy, self.opt.entropy_gain)
        return released_shares(entropy, self.stages)
