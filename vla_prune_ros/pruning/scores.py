# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the modes share about scores: whose attention counts, and the best of each view."""

from __future__ import annotations

import torch
from torch import Tensor

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


def top_per_view(values: Tensor, count: int) -> Tensor:
    """Mark the best patches of each view; equal ones in the order of their ids.

    Args:
        values: [views, patches]; -inf is never chosen.
        count: patches wanted per view, more than there are means all.

    Returns:
        bool [views, patches].
    """
    best = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, best, True) & (
        values > -torch.inf
    )


def visual_ids(mask: Tensor) -> Tensor:
    """Absolute ids of the marked patches, ascending, int64; mask bool [views, patches].

    Looks at the data: one device sync.
    """
    return mask.flatten().nonzero().flatten() + 1
