# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one walk through the decoder: segments of layers, and a selector's cuts between them.

Stages wait until somebody has to know what comes out of them, and are then run together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vla_prune_ros.vla.choice import Choice
from vla_prune_ros.vla.operations import add
from vla_prune_ros.vla.rules import Note, Rule
from vla_prune_ros.vla.selection import (
    LayerScores,
    PassPlan,
    ScoreRequest,
    TokenLayout,
    TokenSelector,
    TokenState,
)
from vla_prune_ros.vla.side_product import bias_of, side_product
from vla_prune_ros.vla.space import Mark, Rows, Run, Space, Stage, Wanted, directly, unmarked

if TYPE_CHECKING:
    from vla_prune_ros.vla.decoder import Decoder


@dataclass(frozen=True)
class Segment(Stage):
    """Some layers between two cut points.

    Attributes:
        layers: those that are run.
        rows: what enters; `rows.after` is what leaves.
        scores: layer and what is wanted of it.
        cache: number of the cache in `Space.caches`, or None.
        slots: of the cache that are attended.
    """

    name = 'decoder'
    layers: tuple[int, ...]
    rows: Rows
    scores: tuple[tuple[int, Wanted], ...] = ()
    cache: int | None = None
    slots: int = 0

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """Run the layers of a decoder; returns the fields of the scores in turn."""
        rows, layers = self.rows, network.decoder.layers
        x, ids = space.rows(rows), space.ids(rows)
        rope = space.rope[..., ids, :] if rows.cut else space.rope[..., : rows.count, :]
        cache, key_ids = None, ids
        shown, live = space.shown(rows.cut, rows.count)
        if self.cache is not None:
            cache, key_ids = space.caches[self.cache], space.everything[: self.slots]
            shown, live = space.shown(0, self.slots)
        bias = None if shown is None else bias_of(shown, x.dtype)
        wanted, found = dict(self.scores), []
        delta = None
        for index in self.layers:
            layer, want = layers[index], wanted.get(index)  # type: ignore[index]
            x, q, k, v = layer.enter(x, delta, rope)
            if cache is not None:
                k, v = cache.write(index, ids, k, v, self.slots)
            if want is not None:
                of = (space.asked(want.rows, want.n_rows), ids)
                to = (space.asked(want.columns, want.n_columns), key_ids)
                scores = side_product(q[0], k[0], of, to, shown, want.entropy, want.mean)
                found += scores
                if want.mean:
                    space.scores[index] = LayerScores(*scores)
            x, delta = layer.leave(x, q, k, v, bias, live)
        space.put(rows.after.source, add(x, delta))
        return found


@dataclass
class DecoderOutput:
    """Result of a decoder pass.

    Attributes:
        hidden: states after the last layer, before the final norm, [B, m, D].
        ids: absolute ids of these rows, int64 [m]. Where a rule decided and nobody counted, they
            and the states are followed by filling, see `TokenState`.
        entered: absolute ids of the rows that entered the last layer, int64, likewise.
        segments: what was run.
        dense: every token went through every layer.
        results: of the stage behind the last layer.
    """

    hidden: Tensor
    ids: Tensor
    entered: Tensor
    segments: tuple[Segment, ...]
    dense: bool
    results: list[Tensor] = field(default_factory=list)


class _Queue:
    """Stages that nobody had to wait for yet, and where their results go."""

    def __init__(self, network: nn.Module, space: Space, run: Run, mark: Mark) -> None:
        self._network, self._space, self.run, self._mark = network, space, run, mark
        self._waiting: list[tuple[Stage, Callable[[Iterator[Tensor]], object]]] = []

    def add(self, stage: Stage, take: Callable[[Iterator[Tensor]], object]) -> None:
        self._waiting.append((stage, take))
        if not self._space.joins:
            self.flush()

    def flush(self) -> None:
        """Run what waits, as one; its time is booked to all of it together."""
        if not self._waiting:
            return
        stages = tuple(stage for stage, _ in self._waiting)
        found = iter(self.run(self._network, self._space, stages))
        for _, take in self._waiting:
            take(found)
        names = {stage.name for stage in stages}
        self._mark(names.pop() if len(names) == 1 else 'pass')
        self._waiting = []


def walk(
    network: nn.Module,
    space: Space,
    length: int,
    selector: TokenSelector | None = None,
    layout: TokenLayout | None = None,
    run: Run = directly,
    mark: Mark = unmarked,
    before: tuple[Stage, ...] = (),
    behind: Callable[[Rows, int], Stage] | None = None,
) -> DecoderOutput:
    """Run all layers on the sequence in `space.states[0]`; see `Decoder.forward`.

    Args:
        network: has a `decoder`.
        space: holds the sequence, once the stages before it were run.
        length: tokens of the sequence.
        selector: see `Decoder.forward`.
        layout: see there.
        run: how stages are run.
        mark: see there.
        before: stages in front of the first layer.
        behind: makes the stage behind the last one from its rows and the number of live ones, or
            the least there may be.
    """
    decoder: Decoder = network.decoder  # type: ignore[assignment]
    depth, queue = len(decoder.layers), _Queue(network, space, run, mark)
    plan, number = PassPlan(), None
    scores: dict[int, LayerScores] = {}
    segments: list[Segment] = []
    wanted: dict[int, Wanted] = {}
    rules: Mapping[int, Rule] = {}
    notes: tuple[Note, ...] = ()
    for stage in before:
        queue.add(stage, lambda _: None)
    if selector is not None:
        if not getattr(selector, 'plans_ahead', False):
            queue.flush()
        mark('decoder')
        plan = selector.begin(layout, space.states[0][0, :length])
        mark('select')
        check_plan(plan, layout, depth)
        if plan.varies:
            queue.flush()
            queue.run = directly
        wanted = space.ask(plan.scores, layout)
        if plan.cache is not None:
            number = space.adopt(plan.cache)
        if space.joins:
            rules, notes = plan.rules, _put(space, plan.notes if plan.rules else {})
    full = length if layout is None else space.room(length, layout, layout.n_visual, True)
    rows, ids = Rows(full), space.everything[:length]
    entered, position, dense, cuts = ids, 0, not plan.skip_layers, 0
    live: int | None = length  # None: only the device knows

    for bound in sorted({*plan.points, depth}):
        if bound > position:
            layers = tuple(i for i in range(position, bound) if i not in plan.skip_layers)
            if plan.cache is not None:
                plan.cache.book(layers, live)
            asked = tuple((i, wanted[i]) for i in layers if i in wanted)
            slots = 0 if number is None else full
            segments.append(Segment(layers, rows, asked, number, slots))
            queue.add(segments[-1], _into(scores, {i: plan.scores[i] for i, _ in asked}))
            dense = dense and live == length
            entered, position, rows = ids, bound, rows.after
        if bound not in plan.points:
            continue
        if bound in rules:
            cuts += 1
            choice = Choice(rules[bound], notes, layout.n_visual, rows, cuts)
            live, rows = _decided(queue, space, choice, live, layout, plan.counted, bound)
            ids = space.ids(rows)[:live]
            continue
        if plan.blind:
            state = TokenState(layout, ids, space.states[0][0, :0], {})
        else:
            queue.flush()
            state = TokenState(layout, ids, space.rows(rows)[0, : len(ids)], scores)
        kept = selector.select(bound, state)
        mark('select')
        if kept is None:
            continue
        check_kept(kept, ids, layout)
        visual = len(kept) - (layout.length - layout.n_visual)
        most = plan.most.get(bound, visual)
        if bound in plan.rules:  # where nobody counts they are as many rows as it says
            most = plan.rules[bound].most(len(ids) - (layout.length - layout.n_visual))
        if most < visual:
            raise ValueError(f'a selector left {visual} visual tokens and promised {most} at most')
        exact = plan.repeats or bound in plan.most
        if not exact:  # what follows is another work for every count
            queue.flush()
        cuts += 1
        rows = replace(
            rows, count=space.room(len(kept), layout, most, exact), cut=cuts, picked=True
        )
        space.cut(cuts, torch.searchsorted(ids, kept), kept, rows.count)
        ids, live = kept, len(kept)
    results: list[Tensor] = []
    if behind is not None:
        least = layout.length - layout.n_visual if live is None else live
        queue.add(behind(rows, least), results.extend)
    queue.flush()
    hidden = space.rows(rows)[:, : len(ids)]
    if selector is not None:
        mark('decoder')
        left = space.notes if rules else {}
        selector.end(TokenState(layout, ids, hidden[0], scores, left))
        mark('select')
    return DecoderOutput(hidden, ids, entered, tuple(segments), dense, results)


def _put(space: Space, given: Mapping[str, Tensor]) -> tuple[Note, ...]:
    """Put the notes of a plan into their places; returns what these are."""
    space.notes = {}
    notes = tuple(Note(name, tuple(t.shape), t.dtype) for name, t in given.items())
    for note in notes:
        space.note(note).copy_(given[note.name])
    return notes


def _decided(
    queue: _Queue,
    space: Space,
    choice: Choice,
    live: int | None,
    layout: TokenLayout,
    counted: Mapping[int, int | None],
    point: int,
) -> tuple[int | None, Rows]:
    """Let a rule decide; returns how many rows are live behind it, if that is known, and these."""
    rule, rows, others = choice.rule, choice.rows, layout.length - layout.n_visual
    spare = space.room(layout.length, layout, layout.n_visual, True) - layout.n_visual
    before, count = rows.count - spare, []
    choice.written(space)  # all of it is there before it is recorded
    queue.add(choice, lambda found: count.append(next(found)))
    most, exact = min(before, rule.most(before)), True
    live = others + rule.most(live - others) if rule.exact and live is not None else None
    if point in counted:
        queue.flush()
        visual = counted[point]
        most = int(count[0]) - others if visual is None else visual
        exact, live = False, others + most
    room = space.room(others + most, layout, most, exact)
    return live, replace(rows, count=room, cut=choice.number, picked=True)


def _into(
    scores: dict[int, LayerScores], requests: Mapping[int, ScoreRequest]
) -> Callable[[Iterator[Tensor]], None]:
    """What takes the results of a segment, without what only had room beside them."""

    def take(found: Iterator[Tensor]) -> None:
        for layer, request in requests.items():
            probs, rows, columns, *entropy = islice(found, 3 + request.entropy)
            n, m = 1 if request.mean else len(request.rows), len(request.columns)
            scores[layer] = LayerScores(probs[:, :n, :m], rows[:n], columns[:m], *entropy)

    return take


def check_plan(plan: PassPlan, layout: TokenLayout, depth: int) -> None:
    """Check what a selector wants.

    Raises:
        ValueError: cuts, scores, layers or cache do not go together or with this model.
    """
    if plan.points and not 0 <= min(plan.points) <= max(plan.points) <= depth:
        raise ValueError(f'cut points {sorted(plan.points)} are not within 0..{depth}')
    layers = {*plan.scores, *plan.skip_layers}
    if layers and not 0 <= min(layers) <= max(layers) < depth:
        raise ValueError(f'layers {sorted(layers)} are not within 0..{depth - 1}')
    if unscored := sorted({*plan.scores} & plan.skip_layers):
        raise ValueError(f'scores are requested from skipped layers {unscored}')
    if plan.rules and (plan.rules.keys() != plan.points or plan.cache is not None):
        raise ValueError('rules decide at all cut points or none, and not with a cache')
    if not plan.counted.keys() <= plan.rules.keys():
        raise ValueError(f'no rule decides at {sorted(plan.counted)}, so there is none to count')
    if plan.cache is not None and plan.cache.length != layout.length:
        raise ValueError(
            f'the cache has {plan.cache.length} slots, the sequence {layout.length} tokens'
        )


def check_kept(kept: Tensor, ids: Tensor, layout: TokenLayout) -> None:
    """Check a selector's answer; values only on the CPU, where looking costs no device sync.

    Raises:
        ValueError: not int64, not ascending, not live, or a protected token is missing.
    """
    if kept.dtype != torch.int64 or kept.ndim != 1 or kept.device != ids.device:
        raise ValueError('a selector returns absolute ids as a vector of int64 on its device')
    if len(kept) > len(ids) or len(kept) < layout.length - layout.n_visual:
        raise ValueError(f'a selector returned {len(kept)} ids of {len(ids)} live tokens')
    if kept.device.type != 'cpu':
        return
    if bool((kept.diff() <= 0).any()):
        raise ValueError('a selector must return ascending ids without duplicates')
    if not bool(torch.isin(kept, ids).all()):
        raise ValueError('a selector returned ids that are not live')
    if int((kept >= layout.proprio).sum()) + int(kept[0] == 0) != layout.length - layout.n_visual:
        raise ValueError('a selector dropped a protected token')
