# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Ways to run the network: plain torch, recorded stages, compiled layers. All give one result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vla_prune_ros.runtime.attention import order_for, pinned, shapes_of
from vla_prune_ros.runtime.capture import CudaGraphs, GraphBackend
from vla_prune_ros.runtime.fast import operations_for
from vla_prune_ros.runtime.stages import Stages
from vla_prune_ros.runtime.workspace import See, StaticSlots, Workspace
from vla_prune_ros.vla.model import OFTNetwork, OFTOutput
from vla_prune_ros.vla.operations import TORCH, use
from vla_prune_ros.vla.processor import PixelScale
from vla_prune_ros.vla.selection import TokenSelector
from vla_prune_ros.vla.space import Mark, unmarked

RUNTIMES = ('auto', 'plain', 'graphs', 'compile')
PROMPT = 64  # tokens of a prompt that there is room for at first, or twice as many, and so on
# Type of device -> what can record work on it.
BACKENDS: dict[str, Callable[[torch.device], GraphBackend]] = {'cuda': CudaGraphs}


class PlainEngine:
    """Runs the network as it stands over policy images."""

    def __init__(self, model: OFTNetwork) -> None:
        self.model = model
        self._scale = PixelScale(model.device)
        self._attention = order_for(model.device, model.dtype, shapes_of(model.config))
        self._ids: tuple[Tensor, Tensor] | None = None  # latest prompt, on the host and the device

    @torch.inference_mode()
    def __call__(
        self,
        frames: np.ndarray | Tensor,
        input_ids: Tensor,
        proprio: np.ndarray | None,
        selector: TokenSelector | None = None,
        readout_start: int | None = None,
        mark: Mark = unmarked,
    ) -> OFTOutput:
        """Run a pass; the result is valid until the next one.

        Args:
            frames: policy images uint8 [views, S, S, 3], of numpy or on the device.
            input_ids: int64 [1, L], on the CPU.
            proprio: normalised state [proprio_dim]; None for a model that takes none.
            selector: see `OFTNetwork.forward`.
            readout_start: see `OFTNetwork.read_out`.
            mark: see `OFTNetwork.forward`.
        """
        device = self.model.device
        if self._ids is None or self._ids[0] is not input_ids:
            self._ids = (input_ids, input_ids.to(device))
        state = None
        if proprio is not None:
            state = torch.from_numpy(np.asarray(proprio)).to(device, torch.float32)[None]
        pixels = self._scale(torch.as_tensor(frames).to(device))
        with pinned(self._attention):
            return self.model(pixels, self._ids[1], state, selector, readout_start, mark=mark)

    @torch.inference_mode()
    def again(
        self, out: OFTOutput, selector: TokenSelector, readout_start: int | None = None
    ) -> OFTOutput:
        """Decode the sequence of the latest pass once more, with another selector.

        Args:
            out: what that pass returned.
            selector: as in a pass.
            readout_start: as in a pass.
        """
        space = self.model.decoder.space(out.embeddings)
        with pinned(self._attention):
            return self.model.act(space, out.layout, selector, readout_start)

    def last(self) -> str:
        """How the latest pass ran, '' for plain."""
        return ''

    def stats(self) -> dict[str, int | str]:
        """Counts since the start."""
        return {'runtime': 'plain'}


class GraphEngine(PlainEngine):
    """The network in pieces of fixed shape, each recorded once and then replayed; batch 1."""

    def __init__(
        self,
        model: OFTNetwork,
        name: str = 'graphs',
        max_graphs: int = 512,
        max_bytes: int = 2 << 30,
    ) -> None:
        """Prepare; the buffers are made at the first pass.

        Args:
            model: in its final place and type.
            name: of the runtime, for the statistics.
            max_graphs: most stages kept; the least recently used one goes.
            max_bytes: memory of recordings at which all of them go.
        """
        backend = BACKENDS[model.device.type]
        super().__init__(model)
        self.name = name
        self.stages = Stages(lambda: backend(model.device), max_graphs, max_bytes)
        self._space: Workspace | None = None
        self._slots = StaticSlots()

    @torch.inference_mode()
    def __call__(
        self,
        frames: np.ndarray | Tensor,
        input_ids: Tensor,
        proprio: np.ndarray | None,
        selector: TokenSelector | None = None,
        readout_start: int | None = None,
        mark: Mark = unmarked,
    ) -> OFTOutput:
        """As `PlainEngine`; waits for the device only where a selector must know a count."""
        length = input_ids.shape[1]
        space = self.workspace(len(frames), length)
        self.stages.begin()
        space.load(frames, proprio)
        space.set_text(input_ids)
        with pinned(self._attention):
            return self.model.act(
                space,
                space.layout(length),
                selector,
                readout_start,
                mark,
                self.stages.run,
                before=(See(),),
            )

    @torch.inference_mode()
    def again(
        self, out: OFTOutput, selector: TokenSelector, readout_start: int | None = None
    ) -> OFTOutput:
        """See `PlainEngine.again`; the sequence is still where it was assembled."""
        assert self._space is not None  # of that pass
        space, run = self._space, self.stages.run
        self.stages.begin()
        with pinned(self._attention):
            return self.model.act(space, out.layout, selector, readout_start, unmarked, run)

    def record(self, at_once: bool) -> None:
        """Whether a pass records what it lacks; else it runs that eagerly, until `catch_up`."""
        self.stages.open = at_once

    @torch.inference_mode()
    def catch_up(self) -> bool:
        """Record something that the latest pass lacked; False if there is nothing.

        To be called where nobody waits for the next pass.
        """
        with pinned(self._attention):
            return self.stages.catch_up()

    def last(self) -> str:
        """See `PlainEngine.last`."""
        return self.stages.said or 'replay'

    def stats(self) -> dict[str, int | str]:
        """See `PlainEngine.stats`."""
        stages = self.stages
        return {
            'runtime': self.name,
            'kernels': self.model.decoder.layers[0].ops.name,
            'attention': self._attention[0].name.lower() if self._attention else '',
            'backend': stages.backend.name,
            'graphs': len(stages),
            'captures': stages.captures,
            'replays': stages.replays,
            'fallbacks': stages.fallbacks,
            'evicted': stages.evicted,
            'last_fallback': stages.last_fallback,
            'graph_bytes': stages.used_bytes + self._slots.used_bytes(),
            'graph_limit_bytes': stages.max_bytes,
        }

    def workspace(self, n_views: int, prompt_length: int) -> Workspace:
        """The space in force, or a larger one that takes its place, and that of all recordings."""
        space = self._space
        if space is None or space.n_views != n_views or prompt_length > space.prompt_capacity:
            self.stages.clear()  # recordings know the addresses
            capacity = PROMPT
            while capacity < prompt_length:
                capacity *= 2
            space = self._space = Workspace(self.model, n_views, capacity, self._slots)
        return space


def make_engine(model: OFTNetwork, runtime: str = 'auto') -> PlainEngine:
    """Choose how to run a model that is in its final place and type.

    Args:
        model: on a GPU it is changed: weights that share an input are laid side by side, and with
            compile they become one, so that it can no longer be saved.
        runtime: plain; graphs: recorded stages, as CUDA graphs; compile: layers through
            torch.compile, on a GPU inside graphs; auto: graphs on a GPU, else plain.

    Raises:
        ValueError: unknown runtime, or one that this device does not have.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f'unknown runtime {runtime!r}; valid: {", ".join(RUNTIMES)}')
    kind = model.device.type
    if runtime == 'graphs' and kind not in BACKENDS:
        raise ValueError(f'runtime graphs needs a CUDA device, not {kind}; use auto or plain')
    if runtime == 'compile':
        compile_layers(model)
    elif kind == 'cuda':
        model.decoder.fuse()
    use(model, TORCH if runtime == 'compile' else operations_for(model.device))
    if runtime == 'graphs' or (kind == 'cuda' and runtime != 'plain'):
        return GraphEngine(model, 'compile' if runtime == 'compile' else 'graphs')
    return PlainEngine(model)


def compile_layers(model: OFTNetwork) -> None:
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
        if 'run' not in vars(block):
            block.run = torch.compile(block.run)
    for layer in model.decoder.layers:
        if 'enter' in vars(layer):  # by another policy on the same model
            continue
        layer.enter, layer.leave = torch.compile(layer.enter), torch.compile(layer.leave)
