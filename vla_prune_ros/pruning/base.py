# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every pruning mode is: a token selector with declared options."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from vla_prune_ros.pruning.budget import BudgetKind, budget_tokens
from vla_prune_ros.pruning.history import History
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, TokenLayout, TokenSelector, TokenState


@dataclass(frozen=True)
class Option:
    """One option of a mode; ROS parameters and command lines are generated from it.

    Attributes:
        name: lower_snake.
        type: bool, int, float or str.
        default: value in force when nothing is said.
        description: one line, with the unit.
        min: smallest number allowed.
        max: largest number allowed.
        choices: strings allowed, empty for any.
    """

    name: str
    type: type[Any]
    default: bool | int | float | str
    description: str
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> bool | int | float | str:
        """Read a value from a command line.

        Raises:
            ValueError: not of the option's type or out of range.
        """
        try:
            value = {'true': True, 'false': False}[text] if self.type is bool else self.type(text)
        except (KeyError, ValueError):
            raise ValueError(
                f'option {self.name} needs {self.type.__name__}, not {text!r}'
            ) from None
        return self.check(value)

    def check(self, value: Any) -> bool | int | float | str:
        """Return the value in the option's type.

        Raises:
            ValueError: wrong type or out of range.
        """
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not self.type:
            raise ValueError(f'option {self.name} needs {self.type.__name__}, not {value!r}')
        if self.choices and value not in self.choices:
            raise ValueError(
                f'option {self.name}={value!r} is not one of {", ".join(self.choices)}'
            )
        # Written so that NaN fails.
        if self.min is not None and not value >= self.min:
            raise ValueError(f'option {self.name}={value} is below {self.min}')
        if self.max is not None and not value <= self.max:
            raise ValueError(f'option {self.name}={value} is above {self.max}')
        return value


@dataclass(frozen=True)
class Tick:
    """What a mode may look at before a pass.

    Attributes:
        frames: current policy images, uint8 [views, S, S, 3], of numpy or on the model's device;
            not yet in the history.
        template_tokens: boilerplate tokens after BOS, in front of the instruction's words.
        history: state across ticks; the mode's own part is `history.slots`.
    """

    frames: np.ndarray | Tensor
    template_tokens: int
    history: History


BUDGET = Option(
    'budget', float, 0.0,
    'share of the visual tokens that the last layer computes; 0: as the other options say',
    0.0, 1.0,
)  # fmt: skip
KEEP = Option('keep', float, 0.25, 'share of all patches kept, if budget is 0', 0.0, 1.0)


class PruningMethod:
    """Base of all modes; as it stands it keeps every token.

    What a mode carries from one inference to the next belongs into `tick.history.slots`, which is
    emptied at every reset. Attributes of the object itself live within one pass.

    `budget_kind` says what a budget in force does to the visual tokens that the last layer
    computes: exact: always that number; bound: never more; none: the mode has no budget (nor the
    option). The first `dense_queries` after a reset are complete whatever it says; within `cycle`
    queries after them every count occurs that does not depend on the data.

    `plans_ahead`: see `TokenSelector`.

    `follows_motion`: what it does also depends on how fast the robot moves.

    `note` says what a reader of results must know about the mode on this checkpoint; often ''.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    budget_kind: BudgetKind = 'none'
    dense_queries: int = 0
    cycle: int = 1
    plans_ahead: bool = False
    every_frame: bool = False  # reads the frames between two queries, too
    follows_motion: bool = False
    note: str = ''

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        """Check the option values and keep them as `self.opt`.

        Raises:
            ValueError: unknown option or bad value; the message lists the valid options.
        """
        known = {option.name: option for option in self.options}
        if unknown := sorted(values.keys() - known.keys()):
            valid = ', '.join(known) or 'none'
            raise ValueError(
                f'pruning mode {self.name!r} has no option {", ".join(unknown)}; '
                f'valid options: {valid}'
            )
        self.config = config
        self.opt = SimpleNamespace(
            **{name: o.check(values.get(name, o.default)) for name, o in known.items()}
        )

    @property
    def values(self) -> dict[str, Any]:
        """Option values in force."""
        return dict(vars(self.opt))

    @property
    def budget(self) -> float:
        """Share of the visual tokens, 0..1; 0 where the mode's own options decide."""
        return getattr(self.opt, BUDGET.name, BUDGET.default)

    def set_budget(self, share: float) -> None:
        """Change the budget from the next pass on; nothing is forgotten.

        Args:
            share: see `budget`.

        Raises:
            ValueError: the mode has no budget, or this is none; the old one stays.
        """
        if self.budget_kind == 'none':
            raise ValueError(f'pruning mode {self.name!r} has no budget')
        self.opt.budget = BUDGET.check(share)

    def _without_budget(self, reason: str) -> None:
        """Say that these options leave no room for a budget.

        Raises:
            ValueError: they come with one.
        """
        self.budget_kind = 'none'
        if self.budget:
            raise ValueError(f'option budget: {reason}')

    def most_tokens(self, layout: TokenLayout) -> int:
        """Most visual tokens that the last layer may compute; all if no budget is in force."""
        n = layout.n_visual
        return budget_tokens(self.budget, n) if self.budget else n

    def share_kept(self, layout: TokenLayout) -> int:
        """Patches of all cameras that a mode with the option `KEEP` computes."""
        if self.budget:
            return self.most_tokens(layout)
        return max(1, round(self.opt.keep * layout.n_visual))

    def sizes(self, layout: TokenLayout) -> list[dict[int, int]]:
        """Every `PassPlan.most` that occurs without a budget; [] for a mode without."""
        return []

    @property
    def rehearsal(self) -> TokenSelector | None:
        """Selector of a pass to run and to forget before the real one; None for no such pass."""
        return None

    def observe(self, tick: Tick) -> None:
        """See the frames and the history before a pass."""

    def wants_query(self, history: History) -> bool:
        """Whether the rest of the running chunk should be dropped for a new query."""
        return False

    def requery_after(self, history: History, actions: np.ndarray) -> int:
        """After how many of these next actions `wants_query` will hold; 0 if they are all played.

        Args:
            history: as a query left it.
            actions: float64 [n, action_dim], those the robot is about to execute.
        """
        return 0

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Plan a pass over the assembled sequence [n, D]."""
        return PassPlan()

    def select(self, point: int, tokens: TokenState) -> Tensor | None:
        """Return the absolute ids that stay live at a cut point, or None for all."""
        return None

    def end(self, tokens: TokenState) -> None:
        """See the state after the last layer."""

    def reset(self) -> None:
        """Forget what is left of earlier passes; the history is emptied by its owner."""

    @property
    def numbers(self) -> dict[str, Any]:
        """What `stats` is made of; scalars on the device may be replaced by what they hold.

        So they can come home together with the actions, else `stats` waits for them.
        """
        return {}

    def stats(self) -> dict[str, bool | int | float | str]:
        """Numbers about the last pass, for the statistics topic."""
        return {}
