# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Record a piece of device work once, run it again without Python: CUDA graphs.

The work reads and writes tensors that outlive it, always at the same addresses, and returns
tensors. A backend copies what it returned into buffers of its own, outside the memory that graphs
share; so graphs may be replayed in any order, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor

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

        def record(outputs: list[Tensor]) -> _CudaGraph:
            graph = torch.cuda.CUDAGraph()
            with (
                torch.cuda.stream(current),  # back to it even where a recording breaks off
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode='thread_local'
                ),
            ):
                copy(outputs, work())
            return _CudaGraph(graph, outputs)

        recording = checked(record, results, written)
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
        return pool + sum(nbytes(graph.outputs) for graph in self._graphs)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: list[Tensor]) -> None:
        self._graph, self.outputs = graph, outputs

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._graph.replay()


def nbytes(tensors: Sequence[Tensor]) -> int:
    """Memory of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def copy(outputs: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    """Copy results into the buffers of a recording."""
    for output, result in zip(outputs, results, strict=True):
        output.copy_(result)


def checked(
    record: Callable[[list[Tensor]], Graph], results: Sequence[Tensor], written: Sequence[Tensor]
) -> Graph:
    """Record work that was just run, and replay it once to see that it does the same again.

    So work that depends on what Python counts is found, and a library that cannot be recorded.
    That a recording is found by another work's key is not seen here; see `Stages.run`.

    Args:
        record: records into buffers for the results.
        results: what the work returned.
        written: what it wrote beside that.

    Raises:
        RuntimeError: the recording does not reproduce the work; rounding may differ.
    """
    expected = [*results, *(tensor.clone() for tensor in written)]
    recording = record([torch.empty_like(result) for result in results])
    found = [*recording.outputs, *written]
    for tensor in found:
        tensor.zero_()
    recording.replay()
    if not all(_same(a, b) for a, b in zip(expected, found, strict=True)):
        raise RuntimeError('a recording does not reproduce the work it was made from')
    return recording


def _same(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    a, b = a.float(), b.float()
    finite = a.isfinite()
    scale = a[finite].abs().max() if finite.any() else 0.0
    return torch.equal(finite, b.isfinite()) and not bool(
        ((a - b)[finite].abs() > 0.03 * scale + 1e-6).any()
    )
