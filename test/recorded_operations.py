# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for CUDA graphs, to test on any device what records and replays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vla_prune_ros.runtime.capture import Graph, Work, checked, copy, nbytes


class RecordedOperations:
    """Notes the operations of the work and replays them one by one.

    Like a graph it is blind to Python between the operations, keeps every tensor at its address,
    and refuses what would wait for the device or depend on values. It is as slow as eager code.
    """

    name = 'recorded operations'

    def __init__(self, device: torch.device | None = None) -> None:
        self._graphs: WeakSet[_Recording] = WeakSet()

    def capture(self, work: Work, written: Sequence[Tensor] = ()) -> Graph:
        """See `GraphBackend.capture`."""

        def record(outputs: list[Tensor]) -> _Recording:
            recording = _Recording(outputs)
            with recording:
                copy(outputs, work())
            return recording

        recording = checked(record, list(work()), written)
        self._graphs.add(recording)
        return recording

    def used_bytes(self) -> int:
        """See `GraphBackend.used_bytes`."""
        return sum(graph.own_bytes for graph in self._graphs)


_aten = torch.ops.aten
# What copies to the host, waits for the device, or has an output whose shape depends on values.
_REFUSED = {
    _aten._local_scalar_dense, _aten.item, _aten.is_nonzero, _aten.equal, _aten.nonzero,
    _aten.masked_select, _aten._unique2, _aten.unique_dim, _aten.unique_consecutive,
    _aten.bincount, _aten.lift_fresh, _aten.allclose, _aten.repeat_interleave,
}  # fmt: skip


class _Recording(TorchDispatchMode):
    def __init__(self, outputs: list[Tensor]) -> None:
        super().__init__()
        self.outputs = outputs
        self.own_bytes = nbytes(outputs)
        self._tape: list[tuple[Any, tuple, dict, list[tuple[int, Tensor]]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if needs_host(func, args):
            raise RuntimeError(f'{func} needs the host and cannot be part of a graph')
        out = func(*args, **kwargs)
        known = {_storage(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        fresh = [
            (place, tensor)
            for place, tensor in enumerate(tree_flatten(out)[0])
            if isinstance(tensor, Tensor) and _storage(tensor) not in known
        ]
        self.own_bytes += nbytes([tensor for _, tensor in fresh])
        self._tape.append((func, args, kwargs, fresh))
        return out

    def replay(self) -> None:
        """See `Graph.replay`."""
        for func, args, kwargs, fresh in self._tape:
            out = tree_flatten(func(*args, **kwargs))[0]
            for place, tensor in fresh:  # views and in-place results are where they were
                tensor.copy_(out[place])


def needs_host(func: Any, args: tuple) -> bool:
    """Whether an operation makes the host wait for a GPU, or asks the host for data."""
    if func.overloadpacket in _REFUSED:
        return True
    if func.overloadpacket not in (_aten.index, _aten.index_put, _aten.index_put_):
        return False
    return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
