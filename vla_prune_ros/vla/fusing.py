# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One matrix product for several layers that share their input, without new parameters.

Layers that share their input are named by the `GROUP` of the block that they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def lay_side_by_side(linears: Sequence[nn.Linear]) -> None:
    """Move the weights of some layers into one block of memory, so that one product serves all.

    They stay parameters of their own, with their names; see `as_one_matrix`. Where they are
    neighbours already they do not move, as recorded work knows their addresses.
    """
    with torch.no_grad():
        if as_one_matrix(linears) is not None:
            return
    whole = torch.cat([linear.weight.detach() for linear in linears])
    parts = whole.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight = nn.Parameter(part, requires_grad=linear.weight.requires_grad)


class SideBySide:
    """Lays weights side by side while a checkpoint is loaded, so that they are never there twice.

    One of the takers of `checkpoint.load_weights`; the result is that of `Decoder.fuse`.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        self._dtype, self._device = dtype, device

    @torch.no_grad()
    def __call__(self, model: nn.Module, name: str, stored: Tensor) -> bool:
        """Take a weight of a group over; False leaves another tensor to the caller."""
        found = place_of(model, name)
        if found is None or found[1] not in getattr(found[0], 'GROUP', ()):
            return False
        block, own = found
        linears = [getattr(block, other) for other in block.GROUP]
        if linears[0].weight.is_meta:
            sizes = [linear.out_features for linear in linears]
            whole = torch.empty(
                sum(sizes), linears[0].in_features, dtype=self._dtype, device=self._device
            )
            for linear, part in zip(linears, whole.split(sizes), strict=True):
                linear.weight = nn.Parameter(part)
        getattr(block, own).weight.copy_(stored)
        return True


def place_of(model: nn.Module, name: str) -> tuple[Any, str] | None:
    """Block and name of the layer whose weight a parameter of a decoder layer is."""
    parent, _, leaf = name.rpartition('.')
    if leaf != 'weight' or not name.startswith('decoder.layers.'):
        return None
    block, _, own = parent.rpartition('.')
    return model.get_submodule(block), own


def as_one_matrix(linears: Sequence[nn.Linear]) -> Tensor | None:
    """View neighbouring weights as one matrix [sum of out, in], without copying.

    Returns:
        The matrix, or None where they are not neighbours, have biases, are wrapped (LoRA,
        quantised), a gradient is wanted, or a compiler looks on, which knows no addresses.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    first = linears[0].weight if type(linears[0]) is nn.Linear else None
    if type(first) is not nn.Parameter or not first.is_contiguous():
        return None
    base, rows = first.untyped_storage().data_ptr(), 0
    start, row_bytes = first.data_ptr(), first.shape[1] * first.element_size()
    for linear in linears:
        weight = linear.weight if type(linear) is nn.Linear and linear.bias is None else None
        if (
            type(weight) is not nn.Parameter
            or weight.dtype != first.dtype
            or weight.shape[1:] != first.shape[1:]
            or weight.data_ptr() != start + rows * row_bytes
            or weight.untyped_storage().data_ptr() != base
        ):
            return None
        rows += len(weight)
    return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))
