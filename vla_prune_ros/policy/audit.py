# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What pruning changed: the same observation once more, dense, outside of the history.

The shadow pass decodes the sequence that the real pass assembled, so the towers are not run again,
and it stops between any two of its stages when something better is to be done. The deviation is
the mean absolute difference of the normalised actions, per group of dimensions.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.pruning import CLASSES
from vla_prune_ros.runtime.engine import PlainEngine
from vla_prune_ros.vla import OFTOutput
from vla_prune_ros.vla.selection import PassPlan, TokenLayout, TokenState

STAGES = 8  # of a shadow pass, between which it can be given up
SMOOTHING = 0.5  # weight of the newest chunk
GAPS = 8  # pauses between a chunk and the next request that are remembered
RETRY = 16  # chunks after which a shadow pass is tried although there seems to be no time
RESPONSES = ('class', 'dense')
_ARM = {'translation': slice(0, 3), 'rotation': slice(3, 6), 'gripper': slice(6, 7)}


class GivenUp(Exception):  # noqa: N818 -- not an error
    """The shadow pass was ended for something more important."""


class Stoppable:
    """Keeps every token, and looks between the layers whether to go on."""

    plans_ahead = True

    def __init__(self, depth: int, give_up: Callable[[], bool]) -> None:
        """Prepare.

        Args:
            depth: decoder layers.
            give_up: asked between stages.
        """
        step = -(-depth // STAGES)
        self._points, self._give_up = frozenset(range(0, depth, step)), give_up

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """See `TokenSelector.begin`."""
        return PassPlan(self._points, repeats=True)

    def select(self, point: int, tokens: TokenState) -> None:
        """See `TokenSelector.select`; raises GivenUp."""
        if tokens.ids.is_cuda:  # else everything would be under way before it is asked again
            torch.cuda.current_stream(tokens.ids.device).synchronize()
        if self._give_up():
            raise GivenUp

    def end(self, tokens: TokenState) -> None:
        """See `TokenSelector.end`."""


@dataclass(frozen=True)
class Deviation:
    """How far a chunk is from the dense one of the same observation, in normalised actions.

    Attributes:
        stamp: of the observation, s.
        groups: mean absolute difference by group of dimensions; of an arm: translation, rotation,
            gripper.
        overall: over all dimensions.
    """

    stamp: float
    groups: Mapping[str, float]
    overall: float


def deviation(stamp: float, ours: np.ndarray, dense: np.ndarray, steps: int = 0) -> Deviation:
    """Compare two chunks.

    Args:
        stamp: of the observation.
        ours: normalised actions [chunk_len, action_dim].
        dense: those of the dense pass.
        steps: actions that are executed; 0: all.
    """
    apart = np.abs(ours - dense)[: steps or None].mean(0)
    groups = _ARM if len(apart) == 7 else {'actions': slice(None)}
    means = {name: float(apart[dims].mean()) for name, dims in groups.items()}
    return Deviation(stamp, means, float(apart.mean()))


@dataclass(frozen=True)
class Latest:
    """What an audit needs of the latest pass.

    Attributes:
        stamp: of its observation, s.
        out: what the engine returned.
        actions: float64 [chunk_len, action_dim], normalised.
    """

    stamp: float
    out: OFTOutput
    actions: np.ndarray

    def audit(
        self,
        engine: PlainEngine,
        readout_start: int | None = None,
        give_up: Callable[[], bool] = lambda: False,
        steps: int = 0,
    ) -> Deviation | None:
        """Run the shadow pass and compare; see `VLAPolicy.audit`."""
        if self.out.dense:
            return deviation(self.stamp, self.actions, self.actions, steps)
        depth = len(engine.model.decoder.layers)
        try:
            dense = engine.again(self.out, Stoppable(depth, give_up), readout_start)
        except GivenUp:
            return None
        actions = dense.actions[0].double().cpu().numpy()
        return deviation(self.stamp, self.actions, actions, steps)


class Watch:
    """The deviation over time, and what it asks for.

    Attributes:
        latest: the newest deviation, None before the first.
        smoothed: exponential mean of the overall ones since the reset; NaN before the first.
        floor: smallest share of the visual tokens wanted for now; 0: whatever.
        count: deviations so far.
    """

    def __init__(self, threshold: float = 0.0, response: str = 'class') -> None:
        """Prepare.

        Args:
            threshold: smoothed deviation above which more tokens are wanted; 0: never.
            response: class: one class more with every chunk above the threshold, one less with
                every chunk below half of it; dense: all tokens until it is below half.

        Raises:
            ValueError: unknown response.
        """
        if response not in RESPONSES:
            raise ValueError(f'response {response!r} is not one of {", ".join(RESPONSES)}')
        self.threshold, self.response = threshold, response
        self.latest: Deviation | None = None
        self.count = 0
        self.reset()

    def reset(self) -> None:
        """Start anew, as the history does."""
        self.smoothed, self.floor = float('nan'), 0.0

    def take(self, found: Deviation, share: float) -> None:
        """Take in a deviation.

        Args:
            found: of the newest chunk.
            share: of the visual tokens that were computed for it.
        """
        first = np.isnan(self.smoothed)
        self.smoothed = (
            found.overall if first else SMOOTHING * found.overall + (1 - SMOOTHING) * self.smoothed
        )
        self.latest, self.count = found, self.count + 1
        if not self.threshold:
            return
        if self.smoothed > self.threshold:
            above = bisect_right(CLASSES, share + 1e-9)
            more = CLASSES[min(above, len(CLASSES) - 1)]
            self.floor = 1.0 if self.response == 'dense' else max(self.floor, more)
        elif self.smoothed < self.threshold / 2:
            below = bisect_left(CLASSES, self.floor - 1e-9) - 1
            less = CLASSES[below] if below >= 0 else 0.0
            self.floor = 0.0 if self.response == 'dense' else less


class IdleTime:
    """Whether a shadow pass would be over before the next request; times in s, as arguments."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=GAPS)
        self._answered: float | None = None
        self._need = 0.0
        self._skipped = 0

    def asked(self, now: float) -> None:
        """A request came."""
        if self._answered is not None:
            self._gaps.append(now - self._answered)
            self._answered = None

    def answered(self, now: float) -> None:
        """Its chunk left."""
        self._answered = now

    def took(self, seconds: float) -> None:
        """A shadow pass was completed."""
        self._need, self._skipped = seconds, 0

    def fits(self, now: float) -> bool:
        """Whether to begin a shadow pass now; now and then also where it seems too long."""
        since = 0.0 if self._answered is None else now - self._answered
        if not self._gaps or since + self._need <= float(np.median(self._gaps)):
            return True
        self._skipped += 1
        if self._skipped < RETRY:
            return False
        self._skipped = 0
        return True
