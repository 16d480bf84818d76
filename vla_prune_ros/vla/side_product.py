# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Explicit attention of a few rows beside the fused kernel, and the bias that hides keys."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vla_prune_ros.vla.selection import LayerScores


class Ids(NamedTuple):
    """Absolute ids that are asked for.

    Attributes:
        every: int64 [n].
        valid: bool [n], False where there is only room for one; None: all are.
    """

    every: Tensor
    valid: Tensor | None = None


def bias_of(shown: Tensor, dtype: torch.dtype) -> Tensor:
    """What hides keys from everyone, made once for all layers; bool [B, keys] to [B, 1, 1, keys].

    Torch would make it of a bool mask in every layer.
    """
    nothing = torch.zeros(shown.shape, dtype=dtype, device=shown.device)
    return nothing.masked_fill_(~shown, -torch.inf)[:, None, None]


def side_product(
    q: Tensor,
    k: Tensor,
    of: tuple[Ids, Tensor],
    to: tuple[Ids, Tensor],
    shown: Tensor | None = None,
    entropy: bool = False,
    mean: bool = False,
) -> list[Tensor]:
    """Explicit attention of a few rows, beside the fused kernel.

    Args:
        q: rotated queries [heads, m, head_dim].
        k: rotated keys [heads, keys, head_dim].
        of: the rows wanted, and the absolute ids of the queries, ascending, int64 [m].
        to: the columns wanted, and the absolute ids of the keys, ascending, int64 [keys].
        shown: bool [1, keys], False hides a key; None shows all.
        entropy: wanted, too.
        mean: see `ScoreRequest`.

    Returns:
        The fields of `LayerScores`, entropy only if it was requested.
    """
    row_at, row_there = _locate(*of)
    column_at, column_there = _locate(*to)
    logits = q[:, row_at].float() @ k.float().transpose(1, 2) / math.sqrt(q.shape[-1])
    if shown is not None:
        logits = logits.masked_fill(~shown, -torch.inf)
    probs = logits.softmax(-1)  # [heads, rows, keys]
    picked = probs[..., column_at].masked_fill(~(row_there[:, None] & column_there), -torch.inf)
    found = [picked, row_there, column_there]
    if mean:
        received = LayerScores(*found).received()
        found = [received[None, None], row_there.any(0, keepdim=True), column_there]
    if not entropy:
        return found
    each = torch.special.entr(probs).sum(-1).mean(0)  # [rows]
    return [*found, each.masked_fill(~row_there, 0.0).sum() / row_there.sum()]


def _locate(wanted: Ids, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Row of each wanted id among ascending ids (any row if absent), and whether it is there."""
    at = torch.searchsorted(ids, wanted.every).clamp(max=len(ids) - 1)
    there = ids[at] == wanted.every
    return at, there if wanted.valid is None else there & wanted.valid
