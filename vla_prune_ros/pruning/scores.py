# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the modes share about scores: whose attention counts, and the best of each view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_prune_ros.vla.operations import in_use
from vla_prune_ros.vla.selection import TokenLayout


def instruction_rows(layout: TokenLayout, template_tokens: int) -> range:
    """Ids of the words of the instruction, with the closing question mark and `Out:`.

    Args:
        layout: the complete sequence.
        template_tokens: boilerplate tokens after BOS.

    Returns:
        The text ids without the boilerplate in front and the blank piece at the end; all text ids
        if nothing would be left.
    """
    text = layout.text
    rows = range(text.start + template_tokens, text.stop - 1)
    return rows or text


def top_per_view(values: Tensor, count: int | Sequence[int]) -> Tensor:
    """Mark the best patches of each view; equal ones in the order of their ids.

    Args:
        values: [views, patches], or [lists, views, patches]: the best of any list; -inf is never
            chosen.
        count: patches wanted of each view, more than there are means all.

    Returns:
        bool [views, patches].
    """
    counts = [count] * values.shape[-2] if isinstance(count, int) else count
    return in_use(values.device).mark_best(values, counts)


def best_ids(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Absolute ids of the best patches of each view, int64; their number is known: no device sync.

    Args:
        values: [views, patches]; equal ones in the order of their ids.
        counts: patches wanted of each view, at most all.
    """
    order = values.argsort(dim=1, descending=True, stable=True)
    patches = values.shape[1]
    best = [
        view[:n] + (1 + i * patches) for i, (view, n) in enumerate(zip(order, counts, strict=True))
    ]
    return torch.cat(best)


def visual_ids(mask: Tensor, count: int | None = None) -> Tensor:
    """Absolute ids of the marked patches, ascending, int64.

    Args:
        mask: bool [views, patches] or [n_visual].
        count: how many are marked; without it, one device sync.
    """
    if count is None:
        return mask.flatten().nonzero().flatten() + 1
    return torch.nonzero_static(mask.flatten(), size=count).flatten() + 1
