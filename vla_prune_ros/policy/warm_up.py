# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run and record everything beforehand, so that a robot never waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.pruning import History, PruningMethod, Tick
from vla_prune_ros.runtime.workspace import bucket_counts
from vla_prune_ros.vla import OFTOutput
from vla_prune_ros.vla.selection import SelectorProxy, TokenSelector, TokenState


class ForcedCount(SelectorProxy):
    """A selector whose first cut leaves a given number of visual tokens, spread evenly.

    Attributes:
        count: that number; None leaves the selector alone.
    """

    def __init__(self, inner: TokenSelector, count: int | None) -> None:
        super().__init__(inner)
        self.count = count

    @property
    def open_ended(self) -> bool:
        """Whether the plan has a cut whose count depends on the data."""
        return bool(self.plan.points) and not self.plan.repeats and self.plan.cache is None

    def select(self, point: int, tokens: TokenState) -> Tensor | None:
        """See `TokenSelector.select`."""
        kept = super().select(point, tokens)
        if self.count is None or not self.open_ended or point != min(self.plan.points):
            return kept
        layout = tokens.layout
        step = layout.n_visual / max(1, self.count)
        chosen = [layout.visual.start + int(i * step) for i in range(self.count)]
        return layout.keep(torch.tensor(chosen, dtype=torch.int64, device=tokens.ids.device))


def record_sizes(
    run: Callable[[np.ndarray, TokenSelector], OFTOutput],
    method: PruningMethod,
    template_tokens: int,
    frames_shape: tuple[int, ...],
    budgets: Sequence[float] = (),
) -> int:
    """Run a mode on noise: as it is, then with the largest and least count of every bucket.

    Counts of later cuts follow from that of the first, and grow with it.

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
    wanted: list[int | None] = [None, None, None]  # a dense pass first, for modes that remember
    passes = 0
    shares = [*budgets] if method.budget_kind != 'none' else []
    while wanted or shares:
        if not wanted:
            method.set_budget(shares.pop())
            wanted = [None]
        frames = noise.integers(0, 256, frames_shape, dtype=np.uint8)
        selector = ForcedCount(method, wanted.pop(0))
        method.observe(Tick(frames, template_tokens, history))
        out = run(frames, selector)
        history.close_query(frames)
        passes += 1
        if passes == 3 and selector.open_ended:
            most = bucket_counts(out.layout)
            wanted += sorted({*most, *(n + 1 for n in most[1:])}, reverse=True)
    return passes
