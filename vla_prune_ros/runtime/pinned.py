# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays on their way to a device, without waiting for them, and back, waiting once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Sender:
    """Copies arrays of one shape to a device through page-locked memory.

    The copy is asynchronous. The memory is written again only when the last copy from it is over.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self._cuda = torch.device(device).type == 'cuda'
        self._host = torch.empty(shape, dtype=dtype, pin_memory=self._cuda)
        self._device = device
        self._sent = torch.cuda.Event() if self._cuda else None

    def send(self, array: np.ndarray, to: Tensor | None = None) -> Tensor:
        """Copy an array into a tensor on the device, a new one if none is given."""
        if self._sent is not None:
            self._sent.synchronize()  # returns at once if nothing was ever sent
        self._host.numpy()[...] = array
        if to is None:
            to = torch.empty(self._host.shape, dtype=self._host.dtype, device=self._device)
        to.copy_(self._host, non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device))
        return to


class Receiver:
    """Brings tensors from a device home in one copy, through page-locked memory on a GPU."""

    def __init__(self, device: torch.device | str) -> None:
        self._cuda = torch.device(device).type == 'cuda'
        self._host = torch.empty(0, dtype=torch.uint8)

    def __call__(self, *tensors: Tensor) -> list[np.ndarray]:
        """Wait for tensors of that device and return copies on the host."""
        # Copies, as one element of any stride counts as contiguous and cannot be viewed as bytes.
        each = [t.flatten().clone(memory_format=torch.contiguous_format) for t in tensors]
        flat = torch.cat([tensor.view(torch.uint8) for tensor in each])
        if len(flat) > len(self._host):
            self._host = torch.empty(2 * len(flat), dtype=torch.uint8, pin_memory=self._cuda)
        self._host[: len(flat)].copy_(flat, non_blocking=True)
        if self._cuda:
            torch.cuda.current_stream(flat.device).synchronize()
        found, at, here = [], 0, self._host.numpy()
        for tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            own = torch.empty(tensor.shape, dtype=tensor.dtype).numpy()
            own.reshape(-1).view(np.uint8)[:] = here[at : at + size]
            found.append(own)
            at += size
        return found
