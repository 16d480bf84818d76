# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded stages by name, within limits; what cannot be recorded runs eagerly."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from vla_prune_ros.runtime.capture import Graph, GraphBackend, Work

_log = logging.getLogger(__name__)


class Stages:
    """The recorded stages, least recently used first, within a limit of number and memory.

    Attributes:
        captures, replays, fallbacks, evicted: counts since the start.
        last_fallback: why a stage last ran eagerly.
        said: what the stages of the current pass did, the most expensive one wins.
    """

    def __init__(
        self, backend: Callable[[], GraphBackend], max_graphs: int, max_bytes: int
    ) -> None:
        self._make_backend, self._backend = backend, backend()
        self.max_graphs, self.max_bytes = max_graphs, max_bytes
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._refused: dict[Hashable, str] = {}
        self.captures = self.replays = self.fallbacks = self.evicted = 0
        self.last_fallback = self.said = ''
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def run(
        self, key: Hashable, work: Work, written: Sequence[Tensor] = (), refuse: str = ''
    ) -> list[Tensor]:
        """Replay the stage of a key, or record it, or run it eagerly; returns its results.

        Args:
            key: says everything that Python decides in the work.
            work: the stage.
            written: static buffers that it writes.
            refuse: why it must not be recorded; '' if it may.
        """
        graph = None if refuse else self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            self.replays += 1
            graph.replay()
            return graph.outputs
        refuse = refuse or self._refused.get(key, '')
        if not refuse:
            try:
                graph = self._backend.capture(work, written)
            except RuntimeError as error:  # out of memory is one, too
                refuse = self._refused[key] = str(error).splitlines()[0]
                _log.warning('stage %s runs without a graph: %s', key, refuse)
        if graph is None:
            self.fallbacks += 1
            self.last_fallback = refuse
            self.said = f'plain: {refuse}'
            return list(work())
        self.captures += 1
        if not self.said:
            self.said = 'capture'
        _log.info('recorded stage %s', key)
        self._graphs[key] = graph
        self._bound()
        return graph.outputs

    def clear(self) -> None:
        """Forget every recording and give its memory back."""
        self.evicted += len(self._graphs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # nothing may be under way in what is freed
        self._graphs.clear()
        self._refused.clear()
        self._backend = self._make_backend()
        self._bytes = 0

    @property
    def used_bytes(self) -> int:
        """Memory of all recordings, after the latest of them."""
        return self._bytes

    def _bound(self) -> None:
        if len(self._graphs) > self.max_graphs:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._graphs.popitem(last=False)
            self.evicted += 1
        self._bytes = self._backend.used_bytes()
        if self._bytes > self.max_bytes:
            # The pool is one: it gets smaller only when all of it goes.
            _log.warning('graphs exceed %d MB and are recorded anew', self.max_bytes >> 20)
            self.clear()
