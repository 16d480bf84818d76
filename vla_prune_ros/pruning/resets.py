# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""When a mode with memory had better forget it: options that all such modes have, off by default.

What each finds, and what it does for success, is measured in doc/shifts.md.
"""

from __future__ import annotations

from typing import Any

from vla_prune_ros.pruning.base import Option, Tick
from vla_prune_ros.pruning.frames import patch_similarity, to_patches

RESETS = (
    Option(
        'reset_change', float, 0.0,
        'forget earlier queries when this share of all patches changed since the last; 0: never',
        0.0, 1.0,
    ),
    Option('reset_grip', bool, False, 'forget earlier queries when the gripper opened or closed'),
)  # fmt: skip
CHANGED = 0.95  # cosine of raw pixels below which a patch changed
_SLOT = 'gripper'


def outdated(options: Any, tick: Tick, patch_size: int) -> str:
    """Why the history is no use for this query: 'scene', 'grip' or ''.

    Args:
        options: those of a mode, with `RESETS` if it remembers anything.
        tick: of the query; what the gripper was told last is kept in its history.
        patch_size: side of a patch in pixels.
    """
    history, reason = tick.history, ''
    if not hasattr(options, 'reset_change'):
        return reason
    if options.reset_change and changed_share(tick, patch_size) >= options.reset_change:
        reason = 'scene'
    if options.reset_grip:
        told = [bool(action[-1] > 0.5) for action in history.executed]
        before = history.slots.get(_SLOT, told[0] if told else None)
        if any(now != before for now in told):
            reason = reason or 'grip'
        if told:
            history.slots[_SLOT] = told[-1]
    return reason


def changed_share(tick: Tick, patch_size: int) -> float:
    """Share of the patches of all views that changed since the last query; 0 without one."""
    last = next((frame for frame in reversed(tick.history.frames) if frame.queried), None)
    if last is None or len(last.images) != len(tick.frames):
        return 0.0
    now, before = (to_patches(images, patch_size) for images in (tick.frames, last.images))
    return float((patch_similarity(now, before.to(now.device)) < CHANGED).float().mean())
