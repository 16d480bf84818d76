# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded stages by their value, within limits; what cannot be recorded runs eagerly."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vla_prune_ros.runtime.capture import Graph, GraphBackend
from vla_prune_ros.vla.walk import Space, Stage

_log = logging.getLogger(__name__)
_Key = tuple[nn.Module, Space, Stage]


class Stages:
    """The recorded stages, least recently used first, within a limit of number and memory.

    Attributes:
        backend: records them.
        captures, replays, fallbacks, evicted: counts since the start.
        last_fallback: why a stage last ran eagerly.
        said: what the stages of the current pass did, the most expensive one wins.
    """

    def __init__(
        self, backend: Callable[[], GraphBackend], max_graphs: int, max_bytes: int
    ) -> None:
        self._make_backend, self.backend = backend, backend()
        self.max_graphs, self.max_bytes = max_graphs, max_bytes
        self._graphs: OrderedDict[_Key, Graph] = OrderedDict()
        self._refused: dict[_Key, str] = {}
        self.captures = self.replays = self.fallbacks = self.evicted = 0
        self.last_fallback = self.said = ''
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, network: nn.Module, space: Space, stage: Stage) -> list[Tensor]:
        """Replay a stage, or record it, or run it eagerly; returns its results.

        The three together are the key, because they are all that the work sees.

        Args:
            network: what the stage works with.
            space: its tensors, which stay in place.
            stage: everything else.
        """
        key = network, space, stage
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            self.replays += 1
            graph.replay()
            return graph.outputs
        refused = self._refused.get(key, '')
        if not refused:
            try:
                graph = self.backend.capture(
                    lambda: stage.work(network, space), stage.written(space)
                )
            except RuntimeError as error:  # out of memory is one, too
                refused = self._refused[key] = str(error).splitlines()[0]
                _log.warning('%s runs without a graph: %s', stage, refused)
                self._drop()  # a recording that broke off may have spoilt the pool of all
        if graph is None:
            self.fallbacks += 1
            self.last_fallback = refused
            self.said = f'plain: {refused}'
            return stage.work(network, space)
        self.captures += 1
        if not self.said:
            self.said = 'capture'
        _log.info('recorded %s', stage)
        self._graphs[key] = graph
        self._bound()
        return graph.outputs

    def clear(self) -> None:
        """Forget every recording and every failure, and give their memory back."""
        self._refused.clear()
        self._drop()

    def _drop(self) -> None:
        self.evicted += len(self._graphs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # nothing may be under way in what is freed
        self._graphs.clear()
        self.backend = self._make_backend()
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
        self._bytes = self.backend.used_bytes()
        if self._bytes > self.max_bytes:
            # The pool is one: it gets smaller only when all of it goes.
            _log.warning('graphs exceed %d MB and are recorded anew', self.max_bytes >> 20)
            self._drop()
