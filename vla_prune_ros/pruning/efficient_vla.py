# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""EfficientVLA: unimportant layers are left out, and few patches stay after the first layers.

Source: EfficientVLA (arXiv 2506.10100); no code was released. Of its three parts the cached
features of a diffusion head do not apply to the L1 head, and the compression of the remaining
MLPs, which the published speed-ups include, is not part of this mode.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_prune_ros.pruning.base import BUDGET, Option, PruningMethod
from vla_prune_ros.pruning.budget import camera_quotas
from vla_prune_ros.pruning.layer_importance import VARIANTS, LayerImportance, file_beside
from vla_prune_ros.pruning.scaling import (
    PUBLISHED_LAYERS,
    PUBLISHED_PATCHES,
    scaled_count,
    scaled_layer,
)
from vla_prune_ros.vla.checkpoint import weights_digest
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.selection import PassPlan, ScoreRequest, TokenLayout, TokenState

# Layers left out of 32, patches kept of 2 x 256.
PRESETS = {
    'default': (4, 112),
    'paper_28_56': (4, 56),
    'paper': (10, 112),
    'paper_22_56': (10, 56),
    'tokens_only': (0, 112),
    'layers_only': (4, 512),
}
_SELECT_AFTER, _KEY_TOKENS = 2, 4  # published: full layers before the cut, key tokens of 256
_COMMAND = 'python -m vla_prune_ros calibrate'
_MISSING_PARTS = 'without the head cache and the MLP compression of the published numbers'


class EfficientVLA(PruningMethod):
    """Leaves out layers of low importance; keeps key, task and diverse patches of each camera."""

    name = 'efficient_vla'
    summary = 'EfficientVLA: fewer layers, and a fixed number of key, task and diverse patches'
    budget_kind = 'exact'
    plans_ahead = True
    options = (
        BUDGET,
        Option('preset', str, 'default', 'where options are -1', choices=(*PRESETS,)),
        Option('skip', int, -1, 'layers left out; -1: by preset, scaled, rounded down', -1),
        Option('layers', str, '', 'layers to leave out, "I,J,..."; empty: by importance'),
        Option(
            'calibration', str, '', 'JSON file of the importance of layers; empty: the one beside '
            'the checkpoint, and without one the layers before the last are left out',
        ),
        Option('force', bool, False, 'use the importance measured on other weights or suites'),
        Option('variant', str, 'all', 'tokens that importance is averaged over', choices=VARIANTS),
        Option('suite', str, '', 'suite that must have been measured; empty: any of the weights'),
        Option('skip_early', bool, False, 'the first layers (2 of 32, scaled) may be left out'),
        Option('keep', int, -1, 'patches kept of all cameras; -1: by preset, scaled', -1),
        Option('select_after', int, -1, 'layers before the cut; -1: 2 of 32, scaled', -1),
        Option('key_tokens', int, -1, 'key patches per camera; -1: 4 of 256, scaled', -1),
        Option('task_share', float, 0.5, 'of what is kept beside key patches, by score', 0.0, 1.0),
        Option('per_camera', bool, True, 'choose within each camera, not among all patches'),
        Option('quota', float, 0.0, 'share of the first camera; 0: equal shares', 0.0, 1.0),
    )  # fmt: skip

    def __init__(self, config: OpenVLAConfig, **values: Any) -> None:
        super().__init__(config, **values)
        opt, depth = self.opt, config.llama.n_layers
        skip, self._keep = PRESETS[opt.preset]
        early = max(1, scaled_layer(_SELECT_AFTER, depth))
        self.select_after = early if opt.select_after == -1 else opt.select_after
        if not 1 <= self.select_after <= depth:
            raise ValueError(f'option select_after={opt.select_after} is not within 1..{depth}')
        if self.select_after == depth:
            self._without_budget('a cut behind the last layer spares nothing (select_after)')
        self.key_tokens = opt.key_tokens
        if opt.key_tokens == -1:
            self.key_tokens = max(1, scaled_count(_KEY_TOKENS, config.patches_per_view))
        if self.key_tokens < 1 or opt.keep == 0:
            raise ValueError('options key_tokens and keep must be at least 1')
        # Rounded down: a preset never costs a shallow model a larger share of its layers.
        n_skip = opt.skip if opt.skip >= 0 else skip * depth // PUBLISHED_LAYERS
        free = range(0 if opt.skip_early else min(early, depth), depth)
        self.note = _MISSING_PARTS
        self.skipped, self.layers_by = self._choose_layers(n_skip, free)
        kept_before = set(range(self.select_after)) - self.skipped
        if not kept_before:
            raise ValueError(
                f'skip {n_skip} leaves no layer before the cut after {self.select_after} layers'
            )
        self.score_layer = max(kept_before)
        self._parts = {'key': 0, 'task': 0, 'diverse': 0}

    def begin(self, layout: TokenLayout, embeddings: Tensor) -> PassPlan:
        """Plan the cut; without one when every patch is kept."""
        self._parts = {'key': 0, 'task': 0, 'diverse': 0}
        if self.kept_tokens(layout) == layout.n_visual:
            return PassPlan(skip_layers=self.skipped)
        return PassPlan(
            points=frozenset({self.select_after}),
            scores={self.score_layer: ScoreRequest(layout.visual, layout.text)},
            skip_layers=self.skipped,
            repeats=True,
        )

    def select(self, point: int, tokens: TokenState) -> Tensor:
        """Return the chosen patches and everything protected."""
        layout = tokens.layout
        scores = tokens.scores[self.score_layer].given()  # [n_visual], what patches give to text
        states = tokens.hidden[layout.visual.start : layout.visual.stop]
        total, views = self.kept_tokens(layout), layout.n_views
        if self.opt.per_camera:
            counts = camera_quotas(total, views, layout.patches_per_view, self.opt.quota)
        else:
            counts, views = [total], 1
        kept = []
        for view, count in enumerate(counts):
            rows = slice(view * layout.n_visual // views, (view + 1) * layout.n_visual // views)
            key = self.key_tokens * layout.n_views // views
            parts = choose_patches(scores[rows], states[rows], count, key, self.opt.task_share)
            for name, part in zip(self._parts, parts, strict=True):
                self._parts[name] += len(part)
            kept.append(torch.cat(parts) + rows.start)
        return layout.keep(layout.visual.start + torch.cat(kept))

    def kept_tokens(self, layout: TokenLayout) -> int:
        """Patches kept of all cameras."""
        if self.budget:
            return self.most_tokens(layout)
        keep, n = self.opt.keep, layout.n_visual
        if keep == -1:
            keep = max(1, math.floor(self._keep * n / (2 * PUBLISHED_PATCHES) + 0.5))
        return min(keep, n)

    def stats(self) -> dict[str, bool | int | float | str]:
        """Return what was left out, why, and how many patches each rule chose."""
        skipped = ','.join(map(str, sorted(self.skipped)))
        return {
            'preset': self.opt.preset,
            'skipped_layers': skipped,
            'layers_by': self.layers_by,
            **self._parts,
        }

    def _choose_layers(self, n: int, free: range) -> tuple[frozenset[int], str]:
        """Return the layers to leave out and where the choice came from."""
        depth = self.config.llama.n_layers
        if self.opt.layers:
            return self._listed_layers(free), 'list'
        if n > len(free) or n == depth:
            raise ValueError(
                f'option skip={n}: at most {min(len(free), depth - 1)} of {depth} layers can go'
            )
        if n == 0:
            return frozenset(), 'none'
        measured = self._measured()
        if measured is not None:
            order = [layer for layer in measured.order(self.opt.variant) if layer in free]
            return frozenset(order[:n]), 'calibration'
        # Without a measurement: deep layers change least, all but the last (arXiv 2403.17887).
        chosen = frozenset(range(max(free.start, depth - 1 - n), depth)[:n])
        command = f'{_COMMAND} {self.config.source or "CHECKPOINT"}'
        self.note += f'; layers left out by a rule, not by their importance ({command})'
        warnings.warn(
            'mode efficient_vla leaves out the layers before the last, because the importance of '
            f'the layers of these weights was not measured; do it once: {command}',
            stacklevel=4,
        )
        return chosen, 'rule'

    def _listed_layers(self, free: range) -> frozenset[int]:
        text, depth = self.opt.layers, self.config.llama.n_layers
        try:
            listed = frozenset(int(part) for part in text.split(','))
        except ValueError:
            raise ValueError(f"option layers={text!r} is not a list such as '12,17'") from None
        if outside := sorted(listed - set(range(depth))):
            raise ValueError(f'option layers: {outside} are not within 0..{depth - 1}')
        if early := sorted(listed - set(free)):
            raise ValueError(
                f'option layers: the selection needs the first layers {early}; skip_early=true '
                'leaves them out all the same'
            )
        if len(listed) == depth:
            raise ValueError('option layers leaves no layer')
        return listed

    def _measured(self) -> LayerImportance | None:
        """Load the importance of the layers, or None where nothing was asked for or found.

        Raises:
            ValueError: the file asked for is missing, or it belongs to something else.
        """
        source = self.config.source
        if self.opt.calibration:
            path = Path(self.opt.calibration)
            if not path.is_file():
                raise ValueError(
                    f'option calibration: there is no file {path}; make it with '
                    f'{_COMMAND} {source or "CHECKPOINT"} --out {path}'
                )
        elif source is None or not (path := file_beside(source)).is_file():
            return None
        measured = LayerImportance.load(path)
        layers, depth = len(measured.importance['all']), self.config.llama.n_layers
        if layers != depth:
            raise ValueError(f'{path} is about {layers} layers, the model has {depth}')
        if not self.opt.force and (reason := self._mismatch(measured)):
            raise ValueError(
                f'{path} {reason}; measure again with {_COMMAND} {source or "CHECKPOINT"}, or use '
                'it all the same with force=true'
            )
        return measured

    def _mismatch(self, measured: LayerImportance) -> str:
        """Why a measurement does not belong to these weights and this suite, or ''."""
        source, suites = self.config.source, self.config.norm_stats
        if source is None:
            return 'cannot be compared with weights that were not read from a directory'
        if measured.sha256 != weights_digest(source):
            return f'was measured on other weights than those in {source}'
        wanted = [self.opt.suite] if self.opt.suite else [*suites]
        if wanted and measured.suite not in wanted:
            return f'was measured on suite {measured.suite!r}, not on {" or ".join(wanted)}'
        return ''


def choose_patches(
    scores: Tensor, states: Tensor, keep: int, key: int, task_share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose key patches, task patches, and the patches that differ most from the key ones.

    Scores are not scaled to 0..1 as in the paper, since only their order counts.

    Args:
        scores: attention from each patch to the words [n].
        states: state of each patch where they are compared [n, D].
        keep: number to choose, 0 to n.
        key: how many of them are key patches, at least 1.
        task_share: share of the others that is chosen by score, rounded down.

    Returns:
        Rows 0..n-1 of the three kinds, disjoint, int64.
    """
    order = scores.argsort(descending=True, stable=True)
    if keep == 0:
        return order[:0], order[:0], order[:0]
    key = min(key, keep)
    by_score = key + math.floor(task_share * (keep - key))
    rest = order[by_score:]
    direction = F.normalize(states.float(), dim=-1)
    likeness = (direction[rest] @ direction[order[:key]].T).amax(1)  # to the nearest key patch
    diverse = rest[likeness.argsort(stable=True)[: keep - by_score]]
    return order[:key], order[key:by_score], diverse
