# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Passes of a policy outside of its history: to warm up, measure and audit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.policy.audit import Deviation, Latest, Stoppable
from vla_prune_ros.policy.types import SOME_INSTRUCTION, PolicySettings
from vla_prune_ros.policy.warm_up import record_sizes
from vla_prune_ros.pruning import make_selector
from vla_prune_ros.runtime.engine import GraphEngine, PlainEngine
from vla_prune_ros.vla import OFTOutput
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.processor import Processor
from vla_prune_ros.vla.selection import TokenSelector


class Aside:
    """Base of `VLAPolicy`: no pass of these leaves a trace in what the policy says later."""

    config: OpenVLAConfig
    processor: Processor
    settings: PolicySettings
    _engine: PlainEngine
    _latest: Latest | None = None  # the pass that an audit compares

    def warm_up(
        self,
        n_views: int | None = None,
        instruction: str | None = None,
        budgets: Sequence[float] = (),
    ) -> None:
        """Run one dense pass on black images; neither history nor selector takes part.

        A runtime that records then records all that the pruning mode, with the budgets, and an
        audit of it can need, for every length of prompt that there is room for, and from then on
        nothing by itself: see `catch_up`.

        Args:
            n_views: number of cameras; default those of the settings.
            instruction: one that will be asked for; there is room for those as long as it.
            budgets: shares that will be asked for, too, such as `pruning.CLASSES`.
        """
        size, views = self.config.image_size, n_views or len(self.settings.cameras)
        frames, engine = np.zeros((views, size, size, 3), np.uint8), self._engine
        if not isinstance(engine, GraphEngine):
            self.rehearse(frames, None, instruction)
            return
        ids, template_tokens = self.processor.prompt(instruction or SOME_INSTRUCTION)
        start, depth = self.settings.readout_start, self.config.llama.n_layers
        engine.record(True)
        try:
            space = engine.workspace(views, ids.shape[1])
            for length in reversed(space.prompt_classes(template_tokens + 2)):
                prompt = torch.full((1, length), self.config.eos_id)
                run = partial(self.rehearse, instruction=prompt)
                out = run(frames)
                engine.again(out, Stoppable(depth, lambda: False), start)
                record_sizes(
                    run,
                    make_selector(self.settings.mode, self.config, **self.settings.options),
                    template_tokens,
                    frames.shape,
                    budgets,
                )
        finally:
            engine.record(False)

    def catch_up(self) -> bool:
        """Record one piece that the latest pass had to run without a recording.

        After a warm-up nothing is recorded while a chunk is waited for: what is new, because the
        mode changed, runs slower until this was called. It takes about as long as three passes, so
        call it where there is time, until it says False.

        Returns:
            Whether something was recorded; there may be more.
        """
        engine = self._engine
        return isinstance(engine, GraphEngine) and engine.catch_up()

    def rehearse(
        self,
        frames: np.ndarray | Tensor,
        selector: TokenSelector | None = None,
        instruction: str | Tensor | None = None,
    ) -> OFTOutput:
        """Run a pass outside of the history; the result is valid until the next one.

        Args:
            frames: policy images, see `pictures`.
            selector: one of the caller's; None keeps every token.
            instruction: text, or the ids of a prompt [1, L]; None for a prompt of 32 tokens.
        """
        self._latest = None
        ids = torch.full((1, 32), self.config.eos_id)
        if isinstance(instruction, str):
            ids, _ = self.processor.prompt(instruction)
        elif instruction is not None:
            ids = instruction
        proprio = np.zeros(self.config.proprio_dim) if self.config.use_proprio else None
        out = self._engine(frames, ids, proprio, selector, self.settings.readout_start)
        out.actions.cpu()  # until the device has done it
        return out

    def audit(
        self, give_up: Callable[[], bool] = lambda: False, steps: int = 0
    ) -> Deviation | None:
        """What pruning changed in the latest chunk: its observation once more, dense.

        Neither history nor selector takes part, so later chunks are what they would have been.

        Args:
            give_up: asked between the stages of the pass; True ends it.
            steps: how many actions of the chunk are executed; 0: all.

        Returns:
            None if it was given up, or if there was no chunk since the last reset.
        """
        if self._latest is None:
            return None
        return self._latest.audit(self._engine, self.settings.readout_start, give_up, steps)
