# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Ways to run the network: plain torch, recorded stages, compiled layers. All give one result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.runtime.capture import CudaGraphs, GraphBackend, RecordedOperations
from vla_prune_ros.runtime.static_pass import StaticModel
from vla_prune_ros.vla.model import OFTOutput, OpenVLAOFT
from vla_prune_ros.vla.processor import PixelScale
from vla_prune_ros.vla.selection import TokenSelector

RUNTIMES = ('auto', 'plain', 'graphs', 'compile')


class Engine(Protocol):
    """Runs a pass over policy images; see `StaticModel.__call__` for the arguments."""

    def __call__(
        self,
        frames: np.ndarray | Tensor,
        input_ids: Tensor,
        proprio: np.ndarray,
        selector: TokenSelector | None = None,
        readout_start: int | None = None,
        mark: Callable[[str], None] = ...,
    ) -> OFTOutput:
        """Run a pass; the result is valid until the next one."""

    def last(self) -> str:
        """How the latest pass ran, '' for plain."""

    def stats(self) -> dict[str, int | str]:
        """Counts since the start."""


class PlainEngine:
    """The network as it stands."""

    def __init__(self, model: OpenVLAOFT) -> None:
        self.model = model
        self._scale = PixelScale(model.device)
        self._ids: tuple[Tensor, Tensor] | None = None  # latest prompt, on the host and the device

    @torch.inference_mode()
    def __call__(
        self,
        frames: np.ndarray | Tensor,
        input_ids: Tensor,
        proprio: np.ndarray,
        selector: TokenSelector | None = None,
        readout_start: int | None = None,
        mark: Callable[[str], None] = lambda stage: None,
    ) -> OFTOutput:
        """See `StaticModel.__call__`."""
        device = self.model.device
        if self._ids is None or self._ids[0] is not input_ids:
            self._ids = (input_ids, input_ids.to(device))
        state = torch.from_numpy(np.asarray(proprio)).to(device, torch.float32)[None]
        pixels = self._scale(torch.as_tensor(frames).to(device))
        return self.model(pixels, self._ids[1], state, selector, readout_start, mark=mark)

    def last(self) -> str:
        """See `Engine.last`."""
        return ''

    def stats(self) -> dict[str, int | str]:
        """See `Engine.stats`."""
        return {'runtime': 'plain'}


class GraphEngine(StaticModel):
    """Recorded stages, on a GPU as CUDA graphs."""

    def __init__(self, model: OpenVLAOFT, name: str = 'graphs', **limits: int) -> None:
        super().__init__(model, lambda: _backend(model.device), **limits)
        self.name = name

    def last(self) -> str:
        """See `Engine.last`."""
        return self.stages.said or 'replay'

    def stats(self) -> dict[str, int | str]:
        """See `Engine.stats`."""
        return {
            'runtime': self.name,
            'backend': _backend_name(self.model.device),
            **super().stats(),
        }


def make_engine(model: OpenVLAOFT, runtime: str = 'auto') -> Engine:
    """Choose how to run a model that is in its final place and type.

    Args:
        model: on a GPU it is changed: weights that share an input are laid side by side, and with
            compile they become one, so that it can no longer be saved.
        runtime: plain; graphs: recorded stages, CUDA graphs on a GPU; compile: layers through
            torch.compile, on a GPU inside graphs; auto: graphs on a GPU, else plain.

    Raises:
        ValueError: unknown runtime.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f'unknown runtime {runtime!r}; valid: {", ".join(RUNTIMES)}')
    on_gpu = model.device.type == 'cuda'
    if on_gpu and runtime != 'compile':
        model.decoder.fuse()
    if runtime == 'compile':
        compile_layers(model)
    if on_gpu and runtime != 'plain':
        return GraphEngine(model, 'compile' if runtime == 'compile' else 'graphs')
    return GraphEngine(model) if runtime == 'graphs' else PlainEngine(model)


def compile_layers(model: OpenVLAOFT) -> None:
    """Put the blocks of the towers and the halves of the decoder layers through `torch.compile`.

    The compiler runs in the first passes, and again for new numbers of rows until it has seen
    that they vary.
    """
    torch._dynamo.config.recompile_limit = 64  # shapes and masks; beyond it runs eager code
    torch._dynamo.config.accumulated_recompile_limit = 4096  # counts all layers together
    if model.device.type == 'cuda' and not model.decoder.packed:
        model.decoder.pack()
    backbone = model.vision_backbone
    for block in (*backbone.featurizer.blocks, *backbone.fused_featurizer.blocks):
        block.compile()
    for layer in model.decoder.layers:
        if 'qkv' in vars(layer):  # by another policy on the same model
            continue
        layer.qkv, layer.finish = torch.compile(layer.qkv), torch.compile(layer.finish)


def _backend(device: torch.device) -> GraphBackend:
    return CudaGraphs(device) if device.type == 'cuda' else RecordedOperations()


def _backend_name(device: torch.device) -> str:
    return CudaGraphs.name if device.type == 'cuda' else RecordedOperations.name
