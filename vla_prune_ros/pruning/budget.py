# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One notion of a budget: the visual tokens that the last layer of a query may compute.

A budget is asked for as a share of all visual tokens. It comes in eight classes, so that few
shapes are recorded; at the published sizes (512 tokens) they are multiples of 32 rows, and at
every size they are edges of the buckets that varying counts are filled up to.
"""

from __future__ import annotations

from typing import Literal

STEPS = 16
CLASSES = tuple(steps / STEPS for steps in (1, 2, 3, 4, 6, 8, 12, 16))

BudgetKind = Literal['exact', 'bound', 'none']


def budget_class(share: float) -> float:
    """The largest class that a share holds; the smallest one for less."""
    return max((c for c in CLASSES if c <= share + 1e-9), default=CLASSES[0])


def bucket_step(n_visual: int) -> int:
    """Visual tokens by which buckets and classes grow."""
    return max(1, n_visual // STEPS)


def budget_tokens(share: float, n_visual: int) -> int:
    """Visual tokens of all cameras that a share above 0 stands for, 1..n_visual."""
    held = budget_class(share)
    return n_visual if held == 1.0 else min(n_visual, round(held * STEPS) * bucket_step(n_visual))


def camera_quotas(total: int, views: int, patches: int, first_share: float = 0.0) -> list[int]:
    """Share a budget out between the cameras; what one cannot hold goes to the next.

    Args:
        total: patches to keep, at most views * patches.
        views: cameras.
        patches: patches of each camera.
        first_share: of the first camera; 0 for equal shares.
    """
    counts: list[int] = []
    for view in range(views):
        left, cameras = total - sum(counts), views - view
        wanted = -(-left // cameras)
        if view == 0 and first_share and views > 1:
            wanted = int(first_share * total + 0.5)
        room_after = (cameras - 1) * patches
        counts.append(min(patches, max(wanted, left - room_after)))
    return counts
