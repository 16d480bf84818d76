# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A tiny model, a pruning mode and a history, driven tick by tick; models of several sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from tiny import inputs, tiny_config

from vla_prune_ros.pruning import History, Tick, make_selector
from vla_prune_ros.vla import OFTOutput, OpenVLAOFT
from vla_prune_ros.vla.config import LlamaConfig, OpenVLAConfig, TowerConfig
from vla_prune_ros.vla.processor import pixel_values
from vla_prune_ros.vla.selection import PassPlan, SelectorProxy

TEMPLATE_TOKENS = 4


def configs() -> dict[str, OpenVLAConfig]:
    """Models of different depth, width, grid and number of heads."""
    return {
        'grid 4, 4 layers': tiny_config(),
        'grid 5, 7 layers': tiny_config(
            featurizer=TowerConfig(24, 3, 2, 48, 14, 70, reg_tokens=1, class_token=True),
            fused_featurizer=TowerConfig(16, 2, 2, 31, 14, 70),
            llama=LlamaConfig(48, 7, 3, 64, 300),
        ),
    }


SIZES = tuple(configs())


@cache
def model(size: str) -> OpenVLAOFT:
    """A random model of one of the sizes."""
    torch.manual_seed(1)
    return OpenVLAOFT(configs()[size]).eval()


def deep_config(depth: int = 32, **changes) -> OpenVLAConfig:
    """A model as deep as the published one, still tiny."""
    return tiny_config(llama=LlamaConfig(32, depth, 4, 40, 256), **changes)


@cache
def deep_model() -> OpenVLAOFT:
    """A model of published depth with 36 patches per view."""
    torch.manual_seed(3)
    towers = {
        name: replace(getattr(tiny_config(), name), image_size=84)
        for name in ('featurizer', 'fused_featurizer')
    }
    return OpenVLAOFT(deep_config(**towers)).eval()


def frames(config: OpenVLAConfig, seed: int, views: int = 2) -> np.ndarray:
    """Random policy images, uint8 [views, S, S, 3]."""
    shape = (views, config.image_size, config.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def moves(steps: int, xyz=(0.0, 0.0, 0.0), rotation=(0.0, 0.0, 0.0)) -> np.ndarray:
    """The same action several times, float64 [steps, 7]."""
    return np.tile([*xyz, *rotation, 1.0], (steps, 1))


@dataclass
class Trace:
    """What a selector was asked and answered in one pass."""

    plan: PassPlan = field(default_factory=PassPlan)
    cuts: dict[int, list[int]] = field(default_factory=dict)
    scores: dict[int, torch.Tensor] = field(default_factory=dict)
    at_end: list[int] = field(default_factory=list)


class Watch(SelectorProxy):
    """Notes what a selector was asked and answered."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.trace = Trace()

    def begin(self, layout, embeddings):
        self.trace.plan = self.inner.begin(layout, embeddings)
        return self.trace.plan

    def select(self, point, tokens):
        kept = self.inner.select(point, tokens)
        self.trace.cuts[point] = (tokens.ids if kept is None else kept).tolist()
        return kept

    def end(self, tokens):
        self.inner.end(tokens)
        self.trace.scores = {k: s.received() for k, s in tokens.scores.items()}
        self.trace.at_end = tokens.ids.tolist()


class Rig:
    """A mode in the place it has in the policy, without camera frames and text."""

    def __init__(self, net: OpenVLAOFT, mode: str, views: int = 2, length: int = 12, **options):
        self.model, self.views, self.length = net, views, length
        self.selector = make_selector(mode, net.config, **options)
        self.history = History()
        self.trace = Trace()

    def tick(self, seed: int = 0, actions=None, images=None, before=()) -> OFTOutput:
        """Execute actions, observe the frames `before`, then query with a frame."""
        if actions is not None:
            for action in actions:
                self.history.record_executed(action[None])
        for earlier in before:
            self.history.observe(earlier)
        images = frames(self.model.config, seed, self.views) if images is None else images
        _, ids, proprio = inputs(self.model.config, 0, self.length, views=self.views)
        pixels = pixel_values(images)
        self.selector.observe(Tick(images, TEMPLATE_TOKENS, self.history))
        watch = Watch(self.selector)
        with torch.inference_mode():
            if self.selector.rehearsal is not None:
                self.model(pixels, ids, proprio, self.selector.rehearsal)
            out = self.model(pixels, ids, proprio, watch)
        self.history.close_query(images)
        self.trace = watch.trace
        return out

    def dense(self, seed: int = 0, images=None) -> OFTOutput:
        """The same query without a selector."""
        images = frames(self.model.config, seed, self.views) if images is None else images
        _, ids, proprio = inputs(self.model.config, 0, self.length, views=self.views)
        with torch.inference_mode():
            return self.model(pixel_values(images), ids, proprio)

    def reset(self) -> None:
        """As the policy resets."""
        self.history.reset('reset')
        self.selector.reset()


def visual(rig: Rig, point: int) -> set[int]:
    """Visual ids that a cut of the last pass left."""
    n = rig.views * rig.model.config.patches_per_view
    return {i for i in rig.trace.cuts[point] if 1 <= i <= n}
