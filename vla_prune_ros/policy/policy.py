# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One observation in, one action chunk out.

`VLAPolicy` owns the model, the pruning mode and the history across control ticks. It is not
thread-safe: one thread makes all calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.policy.aside import Aside
from vla_prune_ros.policy.audit import Latest
from vla_prune_ros.policy.description import describe
from vla_prune_ros.policy.types import ActionChunk, Observation, PolicySettings
from vla_prune_ros.pruning import History, PruningMethod, Tick, make_selector
from vla_prune_ros.pruning.resets import outdated
from vla_prune_ros.runtime.engine import make_engine
from vla_prune_ros.runtime.images import make_images
from vla_prune_ros.runtime.loading import taker
from vla_prune_ros.runtime.pinned import Receiver
from vla_prune_ros.runtime.quantization import quantize
from vla_prune_ros.runtime.timers import StageTimer
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import weights_digest
from vla_prune_ros.vla.processor import Processor

_STAGE_OF = {'assemble': 'decoder'}  # what the model marks -> what is reported


class VLAPolicy(Aside):
    """OpenVLA-OFT with a pruning mode and a history."""

    def __init__(
        self,
        model: OpenVLAOFT,
        processor: Processor,
        pruning: str = 'none',
        cameras: tuple[str, ...] | None = None,
        readout_start: int | None = None,
        max_gap: float = 5.0,
        checkpoint: str | Path | None = None,
        runtime: str = 'auto',
        quantization: str = 'none',
        image_pipeline: str = 'exact',
        jpeg: bool = True,
        **options: Any,
    ) -> None:
        """Put a policy together; `from_pretrained` is the usual way.

        Args:
            model: the network.
            processor: for the same checkpoint.
            pruning: name of the pruning mode.
            cameras: names of the images in an observation, in the order of the training;
                default those of the checkpoint.
            readout_start: see `OpenVLAOFT.read_out`.
            max_gap: seconds between observations after which the history is dropped.
            checkpoint: where the weights came from, for `info`.
            runtime: how the network is run, see `make_engine`.
            quantization: none, int8, fp8 or int4, see `quantize`; changes the model.
            image_pipeline: exact: on the host; device: where the model is.
            jpeg: frames go through JPEG, as those of the published training data did.
            options: options of the pruning mode.

        Raises:
            ValueError: unknown mode, option or setting, or one that does not work here.
        """
        self._pictures = make_images(image_pipeline, processor, model.device, jpeg)
        self.model, self.processor = model, processor
        self.config = model.config
        cameras = self.config.cameras if cameras is None else tuple(cameras)
        if len(cameras) != self.config.n_views:
            raise ValueError(
                f'the checkpoint is for {self.config.n_views} camera(s), '
                f'{", ".join(self.config.cameras)}; cameras are {", ".join(cameras) or "none"}'
            )
        self.quantization, self.image_pipeline = quantization, image_pipeline
        self.jpeg = jpeg
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.history = History()
        self._selector: PruningMethod = make_selector(pruning, model.config, **options)
        self.settings = PolicySettings(
            pruning,
            self._selector.values,
            cameras,
            processor.unnorm_key,
            readout_start,
            max_gap,
        )
        quantize(model, quantization)
        self._engine = make_engine(model, runtime)
        self._home = Receiver(model.device)
        self._sequence = 0
        self._last: Observation | None = None

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        pruning: str = 'none',
        device: torch.device | str = 'cpu',
        dtype: torch.dtype | str = torch.float32,
        unnorm_key: str | None = None,
        variant: str = '',
        quantization: str = 'none',
        **settings: Any,
    ) -> VLAPolicy:
        """Load a checkpoint directory with its tokenizer.

        Args:
            directory: published layout; read only.
            pruning: name of the pruning mode.
            device: where the model runs.
            dtype: of the weights, as torch.dtype or by name ('float32', 'bfloat16').
            unnorm_key: statistics to use; may be left out when there is one set.
            variant: what the files do not say of the checkpoint, see `vla.variant.declared`.
            quantization: see `quantize`; weights are converted while they are read.
            settings: further arguments of `VLAPolicy`, options of the mode included.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file or a setting is not what it must be.
        """
        if isinstance(dtype, str):
            named = getattr(torch, dtype, None)
            if not isinstance(named, torch.dtype) or not named.is_floating_point:
                raise ValueError(f'unknown dtype {dtype!r}; use float32, bfloat16 or float16')
            dtype = named
        take = taker(quantization, dtype, device)
        model = OpenVLAOFT.from_pretrained(directory, dtype, device, variant, take)
        processor = Processor.from_directory(directory, model.config, unnorm_key)
        settings |= {'quantization': quantization}
        return cls(model, processor, pruning, checkpoint=directory, **settings)

    def step(self, observation: Observation) -> ActionChunk:
        """Answer an observation with the next action chunk.

        Any exception empties the history, because a cache may be half written.

        Raises:
            ValueError: the observation is incomplete or malformed.
            RuntimeError: the network produced numbers that are not finite.
        """
        timer = StageTimer(self.model.device)
        try:
            self._reset_if_broken(observation)
            with torch.inference_mode():
                return self._infer(observation, timer)
        except BaseException:
            self.reset('exception')
            raise

    def record_executed(self, actions: np.ndarray) -> None:
        """Tell what the robot really did since the last step.

        Args:
            actions: float64 [k, action_dim] or [action_dim], in the units of the chunk.

        Raises:
            ValueError: wrong width or not finite.
        """
        actions = np.atleast_2d(np.asarray(actions, dtype=np.float64))
        width = self.config.action_dim
        if actions.ndim != 2 or actions.shape[1] != width or not np.isfinite(actions).all():
            raise ValueError(f'executed actions must be finite [k, {width}]')
        self.history.record_executed(actions)

    def prepare(self, images: Mapping[str, np.ndarray]) -> Any:
        """Do now what `observe` would do with these images, except for the history.

        Returns:
            What `observe` takes as `prepared`; None if the mode does not look at such images.
        """
        return self.pictures(images) if self._selector.every_frame else None

    def observe(self, images: Mapping[str, np.ndarray], prepared: Any = None) -> None:
        """Show the camera images of a control step at which no chunk is asked for.

        Call it after `record_executed` of the action that led there. It costs the preprocessing of
        one observation, and nothing if the pruning mode looks at queried frames only.

        Args:
            images: as in an observation.
            prepared: what `prepare` made of the same images, if it was called; or a function that
                gives it, called within a later step if the mode looks at this frame then.

        Raises:
            ValueError: a camera is missing or an image malformed.
        """
        if self._selector.every_frame:
            self.history.observe(self.prepare(images) if prepared is None else prepared)

    @property
    def wants_frames(self) -> bool:
        """Whether the pruning mode looks at frames between queries: see `observe`."""
        return self._selector.every_frame

    @property
    def wants_query(self) -> bool:
        """Whether the pruning mode asks for a query before the running chunk is over."""
        return self._selector.wants_query(self.history)

    def requery_after(self, actions: np.ndarray) -> int:
        """After how many of these next actions `wants_query` will hold; 0 if not before the end.

        Args:
            actions: float64 [n, action_dim], what the robot is about to execute.
        """
        return self._selector.requery_after(self.history, actions)

    def set_pruning(self, mode: str, **options: Any) -> None:
        """Change the pruning mode or its options, from the next step on.

        Empties the history, unless only the budget is another one.

        Raises:
            ValueError: unknown mode or option; the old one stays in force.
        """
        selector = make_selector(mode, self.config, **options)
        own = self.settings
        if (mode, selector.values) == (own.mode, own.options):
            return
        if mode == own.mode and selector.values == {**own.options, 'budget': selector.budget}:
            self.set_budget(selector.budget)
            return
        self._selector = selector
        self.settings = replace(self.settings, mode=mode, options=selector.values)
        self.reset('mode')

    @property
    def budget_kind(self) -> str:
        """What a budget does to the mode in force, see `PruningMethod`."""
        return self._selector.budget_kind

    def set_budget(self, share: float) -> None:
        """Change the budget of the pruning mode, from the next step on; nothing is forgotten.

        Args:
            share: of the visual tokens, 0..1; 0: as the other options of the mode say.

        Raises:
            ValueError: the mode has no budget, or this is none; the old one stays in force.
        """
        self._selector.set_budget(share)
        self.settings = replace(self.settings, options=self._selector.values)

    def reset(self, reason: str = 'reset') -> None:
        """Forget everything across ticks, as at the start of an episode."""
        self.history.reset(reason)
        self._selector.reset()
        self._last = self._latest = None

    def runtime_stats(self) -> dict[str, int | str]:
        """Recorded stages: how many, what they hold in memory, what ran without and why."""
        return self._engine.stats()

    @cached_property
    def sha256(self) -> str:
        """Digest of all weight files in the order of their names; '' without a directory."""
        return '' if self.checkpoint is None else weights_digest(self.checkpoint)

    def info(self) -> dict[str, Any]:
        """Describe what is running: checkpoint, mode, and the meaning of the numbers."""
        return describe(self, self._selector.note)

    def _reset_if_broken(self, observation: Observation) -> None:
        """Drop the history when the observation does not continue the last one."""
        last = self._last
        if last is None:
            return
        if observation.stamp < last.stamp:
            self.reset('clock')
        elif observation.stamp - last.stamp > self.settings.max_gap:
            self.reset('gap')
        elif observation.instruction != last.instruction:
            self.reset('instruction')

    def _infer(self, observation: Observation, timer: StageTimer) -> ActionChunk:
        processor, engine = self.processor, self._engine
        frames = self.pictures(observation.images)
        ids, template_tokens = processor.prompt(observation.instruction)
        proprio = processor.state(observation.proprio)
        timer.mark('preprocess')
        tick = Tick(frames, template_tokens, self.history)
        if cause := outdated(self._selector.opt, tick, self.config.featurizer.patch_size):
            self.reset(cause)
        self._selector.observe(tick)
        timer.mark('select')
        if (rehearsal := self._selector.rehearsal) is not None:
            engine(frames, ids, proprio, rehearsal)
            timer.mark('rehearsal')
        out = engine(
            frames,
            ids,
            proprio,
            self._selector,
            self.settings.readout_start,
            lambda stage: timer.mark(_STAGE_OF.get(stage, stage)),
        )
        numbers = self._selector.numbers
        waiting = {name: n for name, n in numbers.items() if isinstance(n, Tensor)}
        normalised, entered, *counted = self._home(
            out.actions[0].double(), out.entered, *waiting.values()
        )
        kept = entered[(entered > 0) & (entered <= out.layout.n_visual)]
        numbers.update((name, n.item()) for name, n in zip(waiting, counted, strict=True))
        if not np.isfinite(normalised).all():
            raise RuntimeError('the network produced actions that are not finite')
        self._latest = Latest(observation.stamp, out, normalised)
        actions = processor.normaliser.unnormalise_actions(normalised)
        reason, sequence = self.history.reset_reason, self._sequence
        self.history.close_query(frames)
        self._last, self._sequence = observation, sequence + 1
        stats = self._selector.stats()
        if self._selector.budget:
            stats['budget'] = self._selector.budget
        if how := engine.last():
            stats |= {'runtime': how, 'graph_bytes': engine.stats()['graph_bytes']}
        timer.mark('postprocess')
        return ActionChunk(
            actions=actions,
            stamp=observation.stamp,
            kept=kept,
            mode=self.settings.mode,
            timing=timer.finish(),
            sequence=sequence,
            reset_reason=reason,
            n_visual=out.layout.n_visual,
            stats=stats,
            rows=out.rows,
            dense=out.dense,
        )

    def pictures(self, images: Mapping[str, np.ndarray]) -> np.ndarray | Tensor:
        """Policy images uint8 [views, S, S, 3] of camera images, as every query makes them.

        Raises:
            ValueError: a camera is missing or an image malformed.
        """
        missing = [name for name in self.settings.cameras if name not in images]
        if missing:
            raise ValueError(f'the observation lacks the image(s) {", ".join(missing)}')
        return self._pictures([images[name] for name in self.settings.cameras])
