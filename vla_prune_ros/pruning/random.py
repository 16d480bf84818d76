# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Random drop: the control that every pruning method has to beat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.pruning.base import BUDGET, Option, PruningMethod, Tick
from vla_prune_ros.pruning.budget import BudgetKind, camera_quotas
from vla_prune_ros.pruning.history import History
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, SelectorProxy, TokenLayout, TokenState


class Reference(SelectorProxy):
    """Notes what a mode keeps of each view at every cut, for a control that keeps as many.

    Attributes:
        counts: cut point -> tokens kept per view in the latest pass.
        finished: the latest pass came to its end.
    """

    inner: PruningMethod

    def __init__(self, inner: PruningMethod) -> None:
        super().__init__(inner)
        self.counts: dict[int, list[int]] = {}
        self.finished = False

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """See `TokenSelector.begin`."""
        self.counts, self.finished = {}, False
        return super().begin(layout, embeddings)

    def select(self, point: int, tokens: TokenState) -> Tensor | None:
        """See `TokenSelector.select`."""
        kept = super().select(point, tokens)
        ids, layout = tokens.ids if kept is None else kept, tokens.layout
        visual = ids[(ids > 0) & (ids < layout.proprio)]
        views = (visual - 1) // layout.patches_per_view
        self.counts[point] = torch.bincount(views, minlength=layout.n_views).tolist()
        return kept

    def end(self, tokens: TokenState) -> None:
        """See `TokenSelector.end`."""
        super().end(tokens)
        self.finished = True


class RandomDrop(PruningMethod):
    """Keeps patches of each view drawn uniformly without replacement.

    How many is fixed, or follows another mode (`matched_to`): that mode then gets a pass of its
    own in front of each real one, the rehearsal, and as many random patches survive each of its
    cuts. If the model is called without a rehearsal, the mode decides within the pass, from random
    survivors; for a mode that remembers scores the counts are then only near its own.

    A reset does not rewind the generator: the draws follow from the seed and the number of draws
    before, so episodes differ from each other and a whole run can be repeated.
    """

    name = 'random'
    summary = 'keep random patches of each view (control)'
    budget_kind: BudgetKind = 'exact'
    options = (
        BUDGET,
        Option('keep_ratio', float, 0.5, 'share of each view kept, if keep is 0', 0.0, 1.0),
        Option('keep', int, 0, 'patches of each view kept; 0 means by keep_ratio', 0),
        Option('layer', int, 0, 'full layers before the cut; 0 cuts before the first', 0),
        Option('matched_to', str, '', 'mode whose cuts and counts are copied; empty: none'),
        Option('matched_options', str, '', 'options of that mode, NAME=VALUE NAME=VALUE ...'),
        Option(
            'redraw',
            str,
            'inference',
            'when a new set is drawn',
            choices=('inference', 'episode'),
        ),
        Option('seed', int, 0, 'seed of the generator', 0, 2**31 - 1),
    )

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        patches, depth = config.patches_per_view, config.llama.n_layers
        if self.opt.keep > patches:
            raise ValueError(f'option keep={self.opt.keep} is above {patches} patches per view')
        if self.opt.layer >= depth:
            raise ValueError(f'option layer={self.opt.layer} is not below {depth} layers')
        self._keep = self.opt.keep or max(1, round(self.opt.keep_ratio * patches))
        self._reference = _reference(self.opt.matched_to, self.opt.matched_options, config)
        self.plans_ahead = self._reference is None
        if self._reference is not None:
            inner = self._reference.inner
            self.plans_ahead, self.cycle = inner.plans_ahead, inner.cycle
            self.every_frame, self.note = inner.every_frame, inner.note
            self.budget_kind, self.dense_queries = inner.budget_kind, inner.dense_queries
            if self.opt.budget:
                self.set_budget(self.opt.budget)
        self._counts: list[int] = []
        self._rehearsed = False
        self._generator = torch.Generator().manual_seed(self.opt.seed)
        self._slots: dict[str, Any] = {}

    def set_budget(self, share: float) -> None:
        """As `PruningMethod.set_budget`; a mode that is copied gets it, too."""
        super().set_budget(share)
        if self._reference is not None:
            self._reference.inner.set_budget(share)

    def most_tokens(self, layout: TokenLayout) -> int:
        """As the mode that is copied, if there is one."""
        method = super() if self._reference is None else self._reference.inner
        return method.most_tokens(layout)

    def sizes(self, layout: TokenLayout) -> list[dict[int, int]]:
        """As the mode that is copied."""
        return [] if self._reference is None else self._reference.inner.sizes(layout)

    @property
    def rehearsal(self) -> Reference | None:
        """The mode that is copied, noting its counts."""
        return self._reference

    def observe(self, tick: Tick) -> None:
        """Remember where an episode's draw is kept."""
        self._slots = tick.history.slots
        if self._reference is not None:
            self._reference.inner.observe(tick)

    def wants_query(self, history: History) -> bool:
        """As the mode that is copied."""
        return self._reference is not None and self._reference.inner.wants_query(history)

    def requery_after(self, history: History, actions: np.ndarray) -> int:
        """As the mode that is copied."""
        if self._reference is None:
            return 0
        return self._reference.inner.requery_after(history, actions)

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Draw an order of the patches, or keep the episode's."""
        if self.opt.redraw == 'inference' or 'random' not in self._slots:
            drawn = [
                layout.view(view).start
                + torch.randperm(layout.patches_per_view, generator=self._generator)
                for view in range(layout.n_views)
            ]
            self._slots['random'] = torch.stack(drawn)
        reference = self._reference
        if reference is None:
            return PassPlan(points=frozenset({self.opt.layer}), repeats=True, blind=True)
        self._rehearsed, reference.finished = reference.finished, False
        if not self._rehearsed:
            return reference.begin(layout, embeddings)
        plan = replace(reference.plan, scores={}, blind=True)
        return plan if plan.cache is None else self._with_own_cache(plan)

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Return the first patches of each view in the order drawn, and everything protected."""
        order = self._slots['random']  # [views, patches]
        counts = [self._keep] * len(order)
        if self._reference is not None:
            if not self._rehearsed:
                self._reference.select(point, tokens)
            counts = self._reference.counts[point]
        elif self.budget:
            counts = camera_quotas(self.most_tokens(tokens.layout), *order.shape)
        self._counts = counts
        kept = torch.cat([ids[:count] for ids, count in zip(order, counts, strict=True)])
        return tokens.layout.keep(kept.to(tokens.ids.device))

    def end(self, tokens: TokenState) -> None:
        """Let the mode that is copied see the end of a pass that was its own, too."""
        if self._reference is not None and not self._rehearsed:
            self._reference.end(tokens)
            self._reference.finished = False

    def reset(self) -> None:
        """Forget the episode's draw."""
        self._slots = {}
        if self._reference is not None:
            self._reference.inner.reset()
            self._reference.finished = False

    @property
    def numbers(self) -> dict[str, Any]:
        """As the mode that is copied."""
        return {} if self._reference is None else self._reference.inner.numbers

    def stats(self) -> dict[str, bool | int | float | str]:
        """Budget per view and where the cut is, or whose counts were copied."""
        if self._reference is None:
            count = max(self._counts, default=self._keep)
            return {'keep_per_view': count, 'layer': self.opt.layer, 'seed': self.opt.seed}
        theirs = self._reference.inner.stats()
        return {**theirs, 'matched_to': self.opt.matched_to, 'seed': self.opt.seed}

    def _with_own_cache(self, plan: PassPlan) -> PassPlan:
        """Replace the cache by one that the random rows write; it starts with a complete pass."""
        own = self._slots.get('random_cache')
        if own is not None and own.length == plan.cache.length:
            return replace(plan, cache=own)
        own = self._slots['random_cache'] = plan.cache.empty_like()
        return PassPlan(skip_layers=plan.skip_layers, cache=own)


def _reference(mode: str, options: str, config: OpenVLAConfig) -> Reference | None:
    from vla_prune_ros.pruning import MODES, make_selector  # they list this mode, too

    if not mode:
        if options:
            raise ValueError('option matched_options needs matched_to')
        return None
    if mode == RandomDrop.name:
        raise ValueError('option matched_to=random: random cannot copy itself')
    if mode not in MODES:
        raise ValueError(f'option matched_to={mode!r} is not one of {", ".join(MODES)}')
    return Reference(make_selector(mode, config, **parse_options(MODES[mode], options)))


def parse_options(method: type[PruningMethod], text: str) -> dict[str, Any]:
    """Read options written as `alpha=0.4 use_global=false`.

    Raises:
        ValueError: not of this form, or the mode has no such option or takes no such value.
    """
    known, values = {option.name: option for option in method.options}, {}
    for word in text.split():
        name, equals, value = word.partition('=')
        if not equals or name not in known:
            valid = ', '.join(known) or 'none'
            raise ValueError(f'{word!r}: mode {method.name!r} takes NAME=VALUE with names {valid}')
        values[name] = known[name].parse(value)
    return values
