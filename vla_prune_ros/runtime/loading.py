# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Weights into their final form while they are read, so that nothing is in memory twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_prune_ros.runtime.quantization import (
    SmallLinear,
    check_kind,
    fits,
    small_weight,
)
from vla_prune_ros.vla.checkpoint import Taker
from vla_prune_ros.vla.fusing import SideBySide, place_of

_PART = 256  # rows that are wide at a time


def taker(kind: str, dtype: torch.dtype, device: torch.device | str) -> Taker | None:
    """What takes the tensors of a checkpoint over, None where each stays as it is stored.

    Args:
        kind: see `quantize`.
        dtype: of the weights that stay wide.
        device: where they go. On a GPU q, k and v, and gate and up, are laid side by side.

    Raises:
        ValueError: see `check_kind`.
    """
    device = torch.device(device)
    check_kind(kind, device, dtype)
    if kind != 'none':
        return Quantising(kind, dtype, device)
    return SideBySide(dtype, device) if device.type == 'cuda' else None


class Quantising:
    """Makes the layers of `quantize` of the tensors that are read, some rows at a time.

    Every row of a weight, or part of one, has scales of its own, so the result is the same.
    """

    def __init__(self, kind: str, dtype: torch.dtype, device: torch.device) -> None:
        self._kind, self._dtype, self._device = kind, dtype, device
        self._parts: dict[tuple[int, str], tuple[nn.Module, int]] = {}  # layer, first row in it

    @torch.no_grad()
    def __call__(self, model: nn.Module, name: str, stored: Tensor) -> bool:
        """Take a weight of a decoder layer over; False leaves another tensor to the caller."""
        found = place_of(model, name)
        if found is None:
            return False
        block, own = found
        if (id(block), own) not in self._parts and isinstance(getattr(block, own), nn.Linear):
            self._prepare(block, own)
        if (id(block), own) not in self._parts:
            return False  # a norm
        layer, start = self._parts[id(block), own]
        for part in stored.split(_PART):
            wide, rows = part.to(self._device, self._dtype), slice(start, start + len(part))
            start += len(part)
            if isinstance(layer, SmallLinear):
                layer.weight[rows], layer.scales[rows] = small_weight(wide, self._kind)
            else:
                layer.weight[rows] = wide
        return True

    def _prepare(self, block: nn.Module, own: str) -> None:
        """Put one layer in the place of a group, or of a layer that shares its input with none."""
        names = block.GROUP if own in getattr(block, 'GROUP', ()) else (own,)
        linears = [getattr(block, name) for name in names]
        with torch.device('meta'):
            whole = nn.Linear(
                linears[0].in_features, sum(x.out_features for x in linears), bias=False,
                dtype=self._dtype,
            )  # fmt: skip
            layer = whole.requires_grad_(False)
            if fits(whole, self._kind, self._device):
                layer = SmallLinear(whole, self._kind)
        layer = layer.to_empty(device=self._device)
        first = 0
        for name, linear in zip(names, linears, strict=True):
            self._parts[id(block), name] = layer, first
            first += linear.out_features
            if len(names) > 1:
                delattr(block, name)
        setattr(block, 'packed' if len(names) > 1 else own, layer)
