# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The tensors of a pass, and what a stage of it is.

What a stage computes follows from the weights, from the tensors of a `Space`, and from one frozen
value, the `Stage`. It sees nothing else, so it may be run directly, or recorded and found again by
that value: two equal stages do the same. How many rows are live, which tokens they are and whose
attention is wanted are numbers in the space; a stage knows only how many there may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vla_prune_ros.vla.rules import Note
from vla_prune_ros.vla.selection import LayerScores, ScoreRequest, SlotCache, TokenLayout
from vla_prune_ros.vla.side_product import Ids


@dataclass(frozen=True)
class Rows:
    """Which rows a stage works on.

    Attributes:
        count: rows, live ones and the filling behind them.
        source: where they are in `Space.states`.
        cut: number of the cut that left them, 0: the complete sequence; see `Space.cuts`.
        picked: only those rows of the source that the cut names, else the first.
    """

    count: int
    source: int = 0
    cut: int = 0
    picked: bool = False

    @property
    def after(self) -> Rows:
        """The same rows behind a segment, in a place of their own: no stage spoils its input."""
        return replace(self, source=self.source + 1, picked=False)


@dataclass(frozen=True)
class Wanted:
    """A score request without its ids, which are in the space.

    Attributes:
        rows: number of the query ids, see `Space.ask`.
        n_rows: how many there may be.
        columns: number of the key ids.
        n_columns: how many there may be.
        entropy: see `ScoreRequest`.
        mean: see there.
    """

    rows: int
    n_rows: int
    columns: int
    n_columns: int
    entropy: bool
    mean: bool


@dataclass
class Live:
    """The live rows behind a cut.

    Attributes:
        at: their rows in what was cut, int64 [rows].
        ids: their absolute ids, ascending, int64 [rows].
        count: int32 [1], how many they are where filling comes behind them, else None.
    """

    at: Tensor
    ids: Tensor
    count: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """A piece of a pass. All fields are hashable; together they are the key of a recording.

    Attributes:
        name: to which its time is booked.
    """

    name: ClassVar[str] = ''

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """Compute; must not wait for the device, and may be run again on the same tensors."""
        raise NotImplementedError

    def written(self, space: Space) -> list[Tensor]:
        """Tensors of a static space that the work writes beside its results."""
        return []


Run = Callable[[nn.Module, 'Space', tuple[Stage, ...]], list[Tensor]]
Mark = Callable[[str], None]


def directly(network: nn.Module, space: Space, stages: tuple[Stage, ...]) -> list[Tensor]:
    """Run stages without recording; returns their results in turn."""
    return [result for stage in stages for result in stage.work(network, space)]


def unmarked(stage: str) -> None:
    """Take no time of a stage."""


class Space:
    """The tensors of a pass that stages read and write; here they are new in each pass.

    Attributes:
        joins: stages are run together where nothing has to be known between them.
        states: the assembled sequence [B, n, D] at 0, and what each segment left.
        rope: see `rope_table`.
        key_mask: bool [B, n], False hides a key from everyone (padding), or None.
        everything: 0, 1, 2, ...
        cuts: the live rows behind each cut of the pass; at 0 those of the sequence.
        caches: slot caches by number.
        notes: of the pass, see `PassPlan`.
        scores: of layers that were run since the last cut, if only the mean is requested.
    """

    joins = False

    def __init__(self, sequence: Tensor, rope: Tensor, key_mask: Tensor | None = None) -> None:
        self.states: dict[int, Tensor] = {0: sequence}
        self.rope, self.key_mask = rope, key_mask
        self.everything = torch.arange(sequence.shape[1], device=sequence.device)
        self.cuts = {0: Live(self.everything, self.everything)}
        self.caches: dict[int, SlotCache] = {}
        self.notes: dict[str, Tensor] = {}
        self.scores: dict[int, LayerScores] = {}
        self._asked: list[range] = []

    def put(self, place: int, x: Tensor) -> None:
        """Leave the states of a segment in a place."""
        self.states[place] = x

    def cut(self, number: int, at: Tensor, ids: Tensor, count: int) -> None:
        """Name the rows that stay, by their place in the source and by their absolute ids."""
        self.cuts[number] = Live(at, ids)

    def room(self, live: int, layout: TokenLayout, most: int, exact: bool) -> int:
        """Rows to compute where a cut left `live` tokens.

        Args:
            live: number of tokens.
            layout: the complete sequence; with all of its tokens, rows of a pass without cuts.
            most: visual tokens that may be left in passes like this one.
            exact: it is the same number in all of them.
        """
        return live

    def stay(self, number: int) -> Tensor:
        """Which rows of its source a cut keeps: room for a rule's answer, bool [rows].

        Only where stages are joined.
        """
        raise NotImplementedError

    def note(self, note: Note) -> Tensor:
        """Room for a note in this pass; only where stages are joined."""
        raise NotImplementedError

    def adopt(self, cache: SlotCache) -> int:
        """Take a cache in and return its number."""
        self.caches = {0: cache}
        return 0

    def ask(self, requests: Mapping[int, ScoreRequest], layout: TokenLayout) -> dict[int, Wanted]:
        """Take in the ids of which scores are wanted in this pass."""
        self._asked = [*dict.fromkeys(r for q in requests.values() for r in (q.rows, q.columns))]
        number = {ids: i for i, ids in enumerate(self._asked)}
        return {
            layer: Wanted(
                number[q.rows],
                self.room_for(q.rows, layout),
                number[q.columns],
                self.room_for(q.columns, layout),
                q.entropy,
                q.mean,
            )
            for layer, q in requests.items()
        }

    def room_for(self, ids: range, layout: TokenLayout) -> int:
        """How many ids a recorded request may have where it has these."""
        return len(ids)

    def asked(self, number: int, count: int) -> Ids:
        """Ids of a request by their number, see `ask`."""
        ids = self._asked[number]
        every = torch.arange(ids.start, ids.stop, ids.step, device=self.everything.device)
        return Ids(every)

    def rows(self, rows: Rows) -> Tensor:
        """States of some rows, [B, count, D]; only then are `ids` and `shown` about those."""
        source = self.states[rows.source]
        at = self.cuts[rows.cut].at
        return source[:, at[: rows.count]] if rows.picked else source[:, : rows.count]

    def ids(self, rows: Rows) -> Tensor:
        """Absolute ids of some rows, int64 [count]; those of filling are no token's."""
        return self.cuts[rows.cut].ids[: rows.count]

    def shown(self, cut: int, count: int) -> tuple[Tensor | None, Tensor | None]:
        """Which of the first rows behind a cut are there, bool [B, count], and their number.

        Returns:
            The mask, None if all are there; int32 [1] where it hides all rows from that one on
            and no more, else None.
        """
        live = self.cuts[cut].count
        if live is None:
            return self.key_mask, None
        return (self.everything[:count] < live)[None], live
