# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Auxiliary losses from the simulator's state; their weights are dropped after training.

A tiny policy that starts from nothing does not find the instructed block from an L1 loss on
actions alone. These losses ask for what a pretrained backbone brings along: where each object is
(which patch, and its place in the image, from that patch's embedding) and which one is meant
(from the first read-out state).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_OBJECTS = 5  # four blocks and the plate
_LENGTH_UNIT = 0.1  # m


class Grounding(nn.Module):
    """Heads and losses for object patches, places in the image, the target and distances."""

    def __init__(self, hidden_size: int, grid: int, image_size: int) -> None:
        super().__init__()
        self.grid, self.patch = grid, image_size / grid
        self.scale = hidden_size**-0.5
        self.objects = nn.Parameter(torch.randn(N_OBJECTS, hidden_size))
        self.place = nn.Linear(hidden_size, 4)
        self.target_query = nn.Linear(hidden_size, hidden_size)
        self.target_key = nn.Linear(hidden_size, hidden_size)
        self.relative = nn.Linear(hidden_size, 6)

    def forward(
        self,
        visual: Tensor,
        first_state: Tensor,
        object_pixels: Tensor,
        target: Tensor,
        relative: Tensor,
    ) -> dict[str, Tensor]:
        """The four losses.

        visual: projected patches [B, V*P, D] as they enter the decoder; first_state: first
        read-out state [B, D]; object_pixels: [B, V, 5, 2] (NaN out of view); target: index of
        the instructed block [B]; relative: [B, 6] m.
        """
        batch, views = object_pixels.shape[:2]
        visual = visual.unflatten(1, (views, -1))  # [B, V, P, D]
        cell = torch.floor((object_pixels + 0.5) / self.patch)  # column, row; NaN stays NaN
        seen = ((cell >= 0) & (cell < self.grid)).all(-1)  # [B, V, 5]
        cell = torch.nan_to_num(cell).clamp(0, self.grid - 1)
        patch = (cell[..., 1] * self.grid + cell[..., 0]).long()  # [B, V, 5]

        logits = torch.einsum('od,bvpd->bvop', self.objects, visual) * self.scale
        where = F.cross_entropy(logits[seen], patch[seen])

        centre = (cell + 0.5) * self.patch - 0.5
        inside = (object_pixels - centre) / self.patch  # -0.5..0.5
        coarse = (cell + 0.5) / self.grid * 2 - 1  # -1..1: column, row
        index = patch[..., None].expand(-1, -1, -1, visual.shape[-1])
        place = self.place(visual.gather(2, index))  # [B, V, 5, 4]
        place = F.l1_loss(place[seen], torch.cat([inside, coarse], dim=-1)[seen])

        query = self.target_query(first_state)  # [B, D]
        logits = torch.einsum('bd,bvpd->bvp', query, self.target_key(visual)) * self.scale
        pick = target[:, None, None].expand(batch, views, 1)
        meant, visible = patch.gather(2, pick)[..., 0], seen.gather(2, pick)[..., 0]
        which = F.cross_entropy(logits[visible], meant[visible])

        distance = F.l1_loss(self.relative(first_state), relative / _LENGTH_UNIT)
        return {'where': where, 'place': place, 'which': which, 'distance': distance}


WEIGHTS = {'where': 0.05, 'place': 0.4, 'which': 0.1, 'distance': 0.2}


def grounding_loss(losses: dict[str, Tensor]) -> Tensor:
    """Weighted sum of the four losses."""
    return sum(WEIGHTS[name] * loss for name, loss in losses.items())
