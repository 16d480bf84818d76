# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the arguments of the verb `replay` ask for: tracks, their modes and checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_prune_ros.evaluation.rollouts import Entry

GOLDEN, RECORDED = 'golden', 'recorded'


class UsageError(ValueError):
    """Arguments that do not make sense; the text says why."""


class ReplayError(RuntimeError):
    """A replay that cannot be done as asked; the text says why and what to do."""


def chosen_tracks(
    args: argparse.Namespace, checkpoint: str, has_recorded: bool
) -> dict[str, Entry | None]:
    """Track -> mode with options and checkpoint; None: as recorded. The reference comes first.

    Raises:
        UsageError: an unknown mode or option, or one that this bag cannot give.
    """
    from vla_prune_ros.evaluation.entries import (
        assign_checkpoints,
        embedded_checkpoints,
        make_entries,
    )

    every = [RECORDED] if has_recorded else []
    text = args.modes or ','.join([*every, 'all'] if args.update_golden else every or ['none'])
    names = [name for name in text.split(',') if name]
    if RECORDED in names and not has_recorded:
        raise UsageError(f'{args.bag} holds no recorded run; name modes')
    modes = [name for name in names if name != RECORDED]
    compared = args.compare
    if compared not in (GOLDEN, RECORDED, *modes) and 'all' not in modes:
        modes = [compared, *modes]
    try:
        text = 'all' if 'all' in modes else ','.join(dict.fromkeys(modes))
        entries = make_entries(text, args.option, control='off') if modes else []
        defaults = {} if checkpoint else embedded_checkpoints('tabletop')[1]
        entries = assign_checkpoints(entries, args.checkpoint_for, defaults)
    except ValueError as error:
        raise UsageError(str(error)) from error
    chosen: dict[str, Entry | None] = {RECORDED: None} if RECORDED in names else {}
    chosen |= {entry.name: entry for entry in entries}
    if compared != GOLDEN and compared not in chosen:
        raise UsageError(f'--compare {compared}: neither golden nor a mode')
    if compared in chosen:
        chosen = {compared: chosen[compared], **chosen}
    return chosen


def chosen_switches(texts: Sequence[str]) -> list[tuple[int, str, dict]]:
    """(tick, mode, options) from `TICK=MODE`.

    Raises:
        UsageError: another form, or an unknown mode.
    """
    from vla_prune_ros.evaluation.entries import make_entries

    switches = []
    for text in texts:
        tick, _, mode = text.partition('=')
        try:
            (entry,) = make_entries(mode, control='off')
            switches.append((int(tick), mode, dict(entry.options)))
        except ValueError as error:
            raise UsageError(f'--switch {text!r} is not TICK=MODE: {error}') from error
    return switches
