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
from vla_prune_ros.runtime.workspace import Joined, Workspace
from vla_prune_ros.vla.space import Stage

_log = logging.getLogger(__name__)
_Key = tuple[nn.Module, Workspace, Joined]
UNKNOWN = 'not recorded beforehand'


class Stages:
    """The recorded stages, least recently used first, within a limit of number and memory.

    Attributes:
        backend: records them.
        captures, replays, fallbacks, evicted: counts since the start.
        last_fallback: why a stage last ran eagerly.
        said: what the stages of the current pass did, the most expensive one wins.
        open: what is not there is recorded when it is met; else it runs eagerly until `catch_up`.
    """

    def __init__(
        self, backend: Callable[[], GraphBackend], max_graphs: int, max_bytes: int
    ) -> None:
        self._make_backend, self.backend = backend, backend()
        self.max_graphs, self.max_bytes = max_graphs, max_bytes
        self._graphs: OrderedDict[_Key, Graph] = OrderedDict()
        self._refused: dict[_Key, str] = {}
        self._missing: dict[_Key, None] = {}
        self.captures = self.replays = self.fallbacks = self.evicted = 0
        self.last_fallback = self.said = ''
        self._bytes, self.open = 0, True

    def __len__(self) -> int:
        return len(self._graphs)

    def begin(self) -> None:
        """A pass begins; what earlier ones left in the space is no longer to be recorded."""
        self.said = ''
        self._missing.clear()

    def run(self, network: nn.Module, space: Workspace, stages: tuple[Stage, ...]) -> list[Tensor]:
        """Replay stages, or record them, or run them eagerly; returns their results.

        The three together are the key, because they are all that the work sees.

        Args:
            network: what the stages work with.
            space: their tensors, which stay in place.
            stages: everything else.
        """
        joined = Joined(stages)
        key = network, space, joined
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            self.replays += 1
            graph.replay()
            found = graph.outputs
        else:
            found = self._record(key) if self.open else None
            if found is None:
                found = self._eagerly(key)
        if (rows := joined.last) is not None:
            space.states[rows.source] = space.place(rows.source)
        return found

    def catch_up(self) -> bool:
        """Record one of the stages that the latest pass lacked; False if there is none.

        The space must be as that pass left it: the work is repeated on it.
        """
        while self._missing:
            key, _ = self._missing.popitem()
            if key not in self._graphs and self._record(key) is not None:
                return True
        return False

    def _record(self, key: _Key) -> list[Tensor] | None:
        """Record stages; None if that fails, or failed before."""
        if key in self._refused:
            return None
        network, space, joined = key
        try:
            graph = self.backend.capture(
                lambda: joined.work(network, space), joined.written(space)
            )
        except RuntimeError as error:  # out of memory is one, too
            self._refused[key] = str(error).splitlines()[0]
            _log.warning('%s runs without a graph: %s', joined, self._refused[key])
            self._drop()  # a recording that broke off may have spoilt the pool of all
            return None
        self.captures += 1
        if not self.said:
            self.said = 'capture'
        _log.info('recorded %s', joined)
        self._graphs[key] = graph
        self._bound()
        return graph.outputs

    def _eagerly(self, key: _Key) -> list[Tensor]:
        network, space, joined = key
        if key not in self._refused:
            self._missing[key] = None
        self.fallbacks += 1
        self.last_fallback = self._refused.get(key, UNKNOWN)
        self.said = f'plain: {self.last_fallback}'
        return joined.work(network, space)

    def clear(self) -> None:
        """Forget every recording and every failure, and give their memory back."""
        self._refused.clear()
        self._missing.clear()
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
