# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Record a piece of device work once, run it again without Python: CUDA graphs and a stand-in.

The work reads and writes tensors that outlive it, always at the same addresses, and returns
tensors. A backend copies what it returned into buffers of its own, outside the memory that graphs
share; so graphs may be replayed in any order, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

Work = Callable[[], Sequence[Tensor]]


class Graph(Protocol):
    """Recorded work.

    Attributes:
        outputs: buffers that hold the results after each replay.
    """

    outputs: list[Tensor]

    def replay(self) -> None:
        """Run the work on what is in its buffers now."""


class GraphBackend(Protocol):
    """Something that can record work."""

    name: str

    def capture(self, work: Work, written: Sequence[Tensor] = ()) -> Graph:
        """Run the work for real, record it, and replay it once; the outputs hold the results.

        Args:
            work: see above; may be run several times.
            written: what it writes beside its results, compared like these.

        Raises:
            RuntimeError: the work waits for the device or does something else that cannot be
                recorded, or the recording does not reproduce it.
        """

    def used_bytes(self) -> int:
        """Memory that the recordings hold."""


class CudaGraphs:
    """CUDA graphs that share one memory pool."""

    name = 'cuda'

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._graphs: WeakSet[_CudaGraph] = WeakSet()

    def capture(self, work: Work, written: Sequence[Tensor] = ()) -> Graph:
        """See `GraphBackend.capture`."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # warm-up: libraries set themselves up here
            results = list(work())
        current.wait_stream(self._stream)
        expected = [*results, *(tensor.clone() for tensor in written)]
        outputs = [torch.empty_like(result) for result in results]
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(current),  # back to it even where a recording breaks off
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode='thread_local'
            ),
        ):
            _copy(outputs, work())
        recording = _CudaGraph(graph, outputs)
        _clear([*outputs, *written])
        recording.replay()
        _compare(expected, [*outputs, *written])
        self._graphs.add(recording)
        return recording

    def used_bytes(self) -> int:
        """See `GraphBackend.used_bytes`."""
        segments = torch.cuda.memory_snapshot(include_traces=False)
        pool = sum(
            segment['total_size']
            for segment in segments
            if tuple(segment.get('segment_pool_id', ())) == tuple(self._pool)
        )
        return pool + sum(_bytes(graph.outputs) for graph in self._graphs)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: list[Tensor]) -> None:
        self._graph, self.outputs = graph, outputs

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._graph.replay()


class RecordedOperations:
    """Stand-in for CUDA graphs on any device: the operations of the work, replayed one by one.

    Like a graph it is blind to Python between the operations, keeps every tensor at its address,
    and refuses what would wait for the device or depend on values. It is as slow as eager code.
    """

    name = 'recorded operations'

    def __init__(self) -> None:
        self._graphs: WeakSet[_Recording] = WeakSet()

    def capture(self, work: Work, written: Sequence[Tensor] = ()) -> Graph:
        """See `GraphBackend.capture`."""
        results = list(work())
        expected = [*results, *(tensor.clone() for tensor in written)]
        outputs = [torch.empty_like(result) for result in results]
        recording = _Recording(outputs)
        with recording:
            _copy(outputs, work())
        _clear([*outputs, *written])
        recording.replay()
        _compare(expected, [*outputs, *written])
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
        self.own_bytes = _bytes(outputs)
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
        self.own_bytes += _bytes([tensor for _, tensor in fresh])
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


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _copy(outputs: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    for output, result in zip(outputs, results, strict=True):
        output.copy_(result)


def _clear(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        tensor.zero_()


def _compare(expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Fail unless a recording gave what the work gave; library choices may differ by rounding."""
    for a, b in zip(expected, found, strict=True):
        if not a.is_floating_point():
            same = torch.equal(a, b)
        else:
            a, b = a.float(), b.float()
            finite = a.isfinite()
            scale = a[finite].abs().max() if finite.any() else 0.0
            same = torch.equal(finite, b.isfinite()) and not bool(
                ((a - b)[finite].abs() > 0.03 * scale + 1e-6).any()
            )
        if not same:
            raise RuntimeError('a recording does not reproduce the work it was made from')
