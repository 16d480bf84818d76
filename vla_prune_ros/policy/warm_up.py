# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run and record everything beforehand, so that a robot never waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.pruning import History, PruningMethod, Tick
from vla_prune_ros.runtime.workspace import bucket_counts
from vla_prune_ros.vla import OFTOutput
from vla_prune_ros.vla.selection import (
    PassPlan,
    SelectorProxy,
    TokenLayout,
    TokenSelector,
    TokenState,
)


class Forced(SelectorProxy):
    """A selector whose cuts leave given numbers of visual tokens, spread evenly.

    Attributes:
        counts: at the first cut, where later ones leave what they would leave of as many; or at
            all cuts, which are then the only ones (see `PruningMethod.sizes`). Where rules decide,
            what the host takes for their count. None leaves the selector alone.
    """

    def __init__(self, inner: TokenSelector, counts: int | Mapping[int, int] | None) -> None:
        super().__init__(inner)
        self.counts = counts

    @property
    def open_ended(self) -> bool:
        """Whether the plan has a cut whose count depends on the data."""
        plan = self.plan
        fixed = plan.repeats or plan.most or plan.varies or plan.rules
        return bool(plan.points) and not fixed

    def counted(self, layout: TokenLayout) -> int:
        """The most that the host may count behind a rule; 0 where it does not."""
        plan = self.plan
        return max((plan.rules[point].most(layout.n_visual) for point in plan.counted), default=0)

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """See `TokenSelector.begin`."""
        self.plan = plan = self.inner.begin(layout, embeddings)
        if isinstance(self.counts, Mapping):
            self.plan = replace(plan, points=frozenset(self.counts), most=self.counts)
        elif self.counts is not None and plan.counted:
            self.plan = replace(plan, counted=dict.fromkeys(plan.counted, self.counts))
        return self.plan

    def select(self, point: int, tokens: TokenState) -> Tensor | None:
        """See `TokenSelector.select`."""
        layout = tokens.layout
        others = layout.length - layout.n_visual
        if isinstance(self.counts, Mapping):
            return _spread(tokens, self.counts[point])
        kept = super().select(point, tokens)
        if self.counts is None or not self.open_ended:
            return kept
        first = point == min(self.plan.points)
        own = len(tokens.ids) if kept is None else len(kept)
        return _spread(tokens, self.counts if first else own - others)


def _spread(tokens: TokenState, count: int) -> Tensor:
    """Keep `count` of the live visual tokens, or all if they are fewer."""
    layout = tokens.layout
    live = tokens.ids[1 : 1 + len(tokens.ids) - (layout.length - layout.n_visual)]
    count = min(count, len(live))
    return layout.keep(live[torch.arange(count, device=live.device) * len(live) // max(1, count)])


def record_sizes(
    run: Callable[[np.ndarray, TokenSelector], OFTOutput],
    method: PruningMethod,
    template_tokens: int,
    frames_shape: tuple[int, ...],
    budgets: Sequence[float] = (),
) -> int:
    """Run a mode on noise: as it is, then with the largest and least count of every bucket.

    Counts of later cuts follow from that of the first, and grow with it. Where the host counts
    what a rule left, one of every bucket will do, as later cuts follow from the bucket. A mode may
    do something else when the robot moves slowly (`PruningMethod.follows_motion`).

    Args:
        run: a pass of the network over policy images.
        method: a mode of its own for this; its state is spoilt.
        template_tokens: see `Tick`.
        frames_shape: of the policy images.
        budgets: shares that are asked for as well.

    Returns:
        Number of passes.
    """
    history, noise = History(), np.random.default_rng(0)
    natural = method.dense_queries + method.cycle + 1
    wanted: list[int | Mapping[int, int] | None] = [None] * natural
    passes, counted = 0, set[int]()
    shares = [*budgets] if method.budget_kind != 'none' else []
    while wanted or shares:
        if not wanted:
            method.set_budget(shares.pop())
            wanted = [None] * method.cycle
        frames = noise.integers(0, 256, frames_shape, dtype=np.uint8)
        counts = wanted.pop(0)
        method.observe(Tick(frames, template_tokens, history))
        if method.rehearsal is not None:
            run(frames, Forced(method.rehearsal, counts))
        selector = Forced(method, counts)
        out = run(frames, selector)
        history.close_query(frames)
        passes += 1
        if counts is None and (bound := selector.counted(out.layout)):
            buckets = bucket_counts(out.layout)
            largest = min(n for n in buckets if n >= bound)
            new = {n for n in buckets if n <= largest} - counted
            wanted += sorted(new, reverse=True)
            counted |= new
        if passes != natural:
            continue
        if method.follows_motion:
            history.record_executed(np.zeros((1, method.config.action_dim)))
            wanted.append(None)
        if sizes := method.sizes(out.layout):
            wanted += sizes
        elif selector.open_ended:
            most = bucket_counts(out.layout)
            wanted += sorted({*most, *(n + 1 for n in most[1:])}, reverse=True)
    return passes
