# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A cut that is decided among the stages of a pass, where nobody looks on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla_prune_ros.vla.rules import Note, Rule
from vla_prune_ros.vla.space import Rows, Space, Stage


@dataclass(frozen=True)
class Choice(Stage):
    """What a rule says of the rows behind some layers.

    Attributes:
        rule: decides.
        notes: those of the plan, which it reads.
        n_visual: visual tokens of the complete sequence; all others stay.
        rows: those that are there.
        number: of the cut.
    """

    name = 'select'
    rule: Rule
    notes: tuple[Note, ...]
    n_visual: int
    rows: Rows
    number: int

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """Mark the rows that stay, leave the rule's notes; returns how many stay, int64 [1]."""
        ids, (shown, _) = space.ids(self.rows), space.shown(self.rows.cut, self.rows.count)
        there = torch.ones_like(ids, dtype=torch.bool) if shown is None else shown[0]
        # The place of a visual token among them, from 1; 0: another one, or filling.
        place = ids.masked_fill(~there | (ids > self.n_visual), 0)
        live = there.new_zeros(self.n_visual + 1).index_fill_(0, place, True)
        keep, left = self.rule.choose(space.notes, space.scores, live[1:])
        stay = nn.functional.pad(keep, (1, 0), value=True)[place] & there
        own = space.stay(self.number).zero_()
        own[: len(stay)].copy_(stay)
        for note in self.rule.leaves:
            space.notes[note.name].copy_(left[note.name])
        return [stay.sum(0, keepdim=True)]

    def written(self, space: Space) -> list[Tensor]:
        """See `Stage.written`."""
        return [space.stay(self.number), *(space.note(note) for note in self.rule.leaves)]
