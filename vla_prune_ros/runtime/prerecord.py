# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Record the stages of every bucket beforehand, so that a robot never waits for a recording."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.pruning import History, PruningMethod, Tick
from vla_prune_ros.vla.model import OFTOutput
from vla_prune_ros.vla.selection import PassPlan, TokenLayout, TokenSelector, TokenState


class ForcedCount:
    """A selector whose first cut leaves a given number of visual tokens, spread evenly.

    Attributes:
        count: that number; None leaves the selector alone.
        open_ended: whether the latest pass had a cut whose count depends on the data.
    """

    def __init__(self, selector: TokenSelector, count: int | None) -> None:
        self._selector, self.count = selector, count
        self._first, self.open_ended = True, False

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """See `TokenSelector.begin`."""
        plan = self._selector.begin(layout, embeddings)
        self._first = True
        self.open_ended = bool(plan.points) and not plan.repeats and plan.cache is None
        return plan

    def select(self, point: int, tokens: TokenState) -> Tensor | None:
        """See `TokenSelector.select`."""
        kept = self._selector.select(point, tokens)
        first, self._first = self._first, False
        if not first or not self.open_ended or self.count is None:
            return kept
        layout = tokens.layout
        step = layout.n_visual / max(1, self.count)
        chosen = [layout.visual.start + int(i * step) for i in range(self.count)]
        device = tokens.ids.device
        return layout.keep(torch.tensor(chosen, dtype=torch.int64, device=device))

    def end(self, tokens: TokenState) -> None:
        """See `TokenSelector.end`."""
        self._selector.end(tokens)


def record_sizes(
    run: Callable[[np.ndarray, TokenSelector], OFTOutput],
    method: PruningMethod,
    template_tokens: int,
    frames_shape: tuple[int, ...],
    counts: Callable[[TokenLayout], list[int]],
) -> int:
    """Run a mode on noise: as it is, then with the largest and least count of every bucket.

    Counts of later cuts follow from that of the first, and grow with it.

    Args:
        run: a pass of the network over policy images.
        method: a mode of its own for this; its state is spoilt.
        template_tokens: see `Tick`.
        frames_shape: of the policy images.
        counts: visual tokens of the buckets of a layout, largest first.

    Returns:
        Number of passes.
    """
    history, noise = History(), np.random.default_rng(0)
    wanted: list[int | None] = [None, None, None]  # a dense pass first, for modes that remember
    passes = 0
    while wanted:
        frames = noise.integers(0, 256, frames_shape, dtype=np.uint8)
        selector = ForcedCount(method, wanted.pop(0))
        method.observe(Tick(frames, template_tokens, history))
        out = run(frames, selector)
        history.close_query(frames)
        passes += 1
        if passes == 3 and selector.open_ended:
            most = counts(out.layout)
            wanted = sorted({*most, *(n + 1 for n in most[1:])}, reverse=True)
    return passes
