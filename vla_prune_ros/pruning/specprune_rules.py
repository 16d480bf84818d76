# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The cuts of SpecPrune as functions of tensors: the same code in every runtime.

Notes of the plan: `deep` float32 [lists, views, patches], scores of the deep layers of the last
query, absent tokens -inf; `dropped` bool [views, patches], tokens that it left without; `current`
and `reference`, uint8 [views, S, S, 3], the pictures that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_prune_ros.pruning.frames import patch_similarity, to_patches
from vla_prune_ros.pruning.importance import Importance, most_important
from vla_prune_ros.pruning.scores import top_per_view
from vla_prune_ros.pruning.specprune_options import Budgets
from vla_prune_ros.vla.rules import Note
from vla_prune_ros.vla.selection import LayerScores

SIZES = 'sizes'  # of the sets, as `Union.names` says


def _importance(point: int, n_visual: int) -> Note:
    return Note(f'importance at {point}', (n_visual,), torch.float32)


@dataclass(frozen=True)
class Union:
    """V_global | V_dynamic | V_local behind the first layers; a `Rule`.

    Attributes:
        point: where it cuts; all layers before it are full.
        shape: views and patches of a view.
        budget: tokens per view of each list.
        local: whether there is V_local.
        recalled: lists of V_global, 0 without.
        mean: V_global is the best by the mean over the lists, not the best of each.
        patch_size: of the pictures that are compared, pixels; 0 without V_dynamic.
        tau: a patch changed if its similarity is below this.
        quotas: tokens of each view that a budget in force admits, or None.
        importance: gathered for the cuts that follow, or None.
    """

    point: int
    shape: tuple[int, int]
    budget: Budgets
    local: bool
    recalled: int
    mean: bool
    patch_size: int
    tau: float
    quotas: tuple[int, ...] | None
    importance: Importance | None
    exact = False

    @property
    def names(self) -> tuple[str, ...]:
        """What the note of the sizes counts."""
        views = tuple(f'kept_view_{view}' for view in range(self.shape[0]))
        return ('local', 'global', 'dynamic', 'returned', *views, 'kept')

    @property
    def leaves(self) -> tuple[Note, ...]:
        """See `Rule`."""
        sizes = Note(SIZES, (len(self.names),), torch.int64)
        if self.importance is None:
            return (sizes,)
        return sizes, _importance(self.point, self.shape[0] * self.shape[1])

    def most(self, before: int) -> int:
        """See `Rule.most`: as many as if no token were in two lists."""
        views, patches = self.shape
        lists = min(1, self.recalled) if self.mean else self.recalled
        each = self.budget.local * self.point * self.local + self.budget.recalled * lists
        each = min(patches, each + self.budget.changed * bool(self.patch_size))
        quotas = [each] * views if self.quotas is None else self.quotas
        return min(before, sum(min(each, quota) for quota in quotas))

    def choose(
        self,
        notes: Mapping[str, Tensor],
        scores: Mapping[int, LayerScores],
        live: Tensor,
        n_live: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Rule.choose`; all tokens are live."""
        nothing = torch.zeros(self.shape, dtype=torch.bool, device=live.device)
        local, recalled, changed = nothing, nothing, nothing
        if self.local:
            received = [scores[i].received().view(self.shape) for i in range(self.point)]
            local = top_per_view(torch.stack(received), self.budget.local)
        if self.recalled:
            recalled = self._recalled(notes['deep'])
        if self.patch_size:
            changed = self._changed(notes['current'], notes['reference'])
        keep = local | recalled | changed
        if self.quotas is not None:  # too few for one token of each list, or for a remainder
            votes = local.float() + recalled.float() + changed.float()
            keep = top_per_view(votes.masked_fill(~keep, -torch.inf), self.quotas)
        sets = torch.stack([local, recalled, changed, keep & notes['dropped']])
        sizes = [sets.flatten(1).sum(1), keep.sum(1), keep.sum().view(1)]
        left = {SIZES: torch.cat(sizes)}
        if self.importance is not None:
            values = torch.zeros(len(live), device=live.device)
            for layer in range(self.point):
                values = self.importance.after(values, scores[layer], len(live))
            left[self.leaves[1].name] = values
        return keep.flatten(), left

    def _changed(self, current: Tensor, reference: Tensor) -> Tensor:
        """V_dynamic: the least similar patches of each view, bool [views, patches]."""
        now, before = (to_patches(image, self.patch_size) for image in (current, reference))
        similarity = patch_similarity(now, before)
        change = (-similarity).masked_fill(similarity >= self.tau, -torch.inf)
        return top_per_view(change, self.budget.changed)

    def _recalled(self, deep: Tensor) -> Tensor:
        """V_global from the deep scores of the last query, bool [views, patches]."""
        if not self.mean:
            return top_per_view(deep, self.budget.recalled)
        # Who was cut between the layers received nothing in the later one.
        mean = deep.clamp(min=0.0).mean(0).masked_fill(deep.isneginf().all(0), -torch.inf)
        return top_per_view(mean, self.budget.recalled)


@dataclass(frozen=True)
class LayerCut:
    """A small cut behind a deeper layer; a `Rule`.

    Attributes:
        layer: behind which it cuts.
        after: point of the cut before it.
        n_visual: visual tokens of the sequence.
        times: cuts that met in this layer.
        share: of the remaining tokens that each of them takes.
        floor: tokens that they leave.
        importance: of the tokens.
    """

    layer: int
    after: int
    n_visual: int
    times: int
    share: float
    floor: int
    importance: Importance
    exact = True

    @property
    def name(self) -> str:
        """Of the note that says how many tokens it left."""
        return f'kept_after_layer_{self.layer}'

    @property
    def leaves(self) -> tuple[Note, ...]:
        """See `Rule`."""
        return Note(self.name, (), torch.int64), _importance(self.layer + 1, self.n_visual)

    def most(self, before: int) -> int:
        """See `Rule.most`."""
        count = before
        for _ in range(self.times):
            count -= max(0, min(int(self.share * count + 1e-9), count - self.floor))
        return count

    def choose(
        self,
        notes: Mapping[str, Tensor],
        scores: Mapping[int, LayerScores],
        live: Tensor,
        n_live: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Rule.choose`; `n_live`: how many are live, where the host knows."""
        before, after = (_importance(k, self.n_visual).name for k in (self.after, self.layer + 1))
        present: int | Tensor = live.sum() if n_live is None else n_live
        values = self.importance.after(notes[before], scores[self.layer], present)
        left = {after: values}
        if isinstance(present, int):
            return most_important(values, live, self.most(present)), left
        left[self.name] = count = self._left(present)
        return most_important(values, live, count), left

    def _left(self, count: Tensor) -> Tensor:
        """As `most`, of a number on the device, int64."""
        for _ in range(self.times):
            goes = (self.share * count.double() + 1e-9).long()
            count = count - torch.minimum(goes, count - self.floor).clamp(min=0)
        return count
