# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one switch between torch and kernels."""

from __future__ import annotations

import logging
import os
from functools import lru_cache

import torch
from torch import nn

from vla_prune_ros.vla.operations import TORCH, Operations

VARIABLE = 'VLA_PRUNE_KERNELS'
_CHOICES = ('auto', 'torch', 'triton')
_log = logging.getLogger(__name__)


def operations_for(device: torch.device) -> Operations:
    """What computes between the products: kernels on a GPU where they work, else torch.

    The environment variable `VLA_PRUNE_KERNELS` forces `torch` or `triton`.

    Raises:
        ValueError: another value, or kernels are forced and do not work.
    """
    choice = os.environ.get(VARIABLE, 'auto')
    if choice not in _CHOICES:
        raise ValueError(f'{VARIABLE}={choice} is not one of {", ".join(_CHOICES)}')
    if choice == 'torch' or (choice == 'auto' and device.type != 'cuda'):
        return TORCH
    found, why = _kernels(device)
    if found is not None:
        return found
    if choice == 'triton':
        raise ValueError(f'{VARIABLE}=triton does not work here: {why}')
    _log.warning('no kernels on %s, torch instead: %s', device, why)
    return TORCH


@lru_cache(maxsize=8)
def _kernels(device: torch.device) -> tuple[Operations | None, str]:
    """The kernels, tried once on a few numbers: they need Triton, a C compiler and a driver."""
    try:
        from vla_prune_ros.runtime.kernels.operations import TritonOperations

        kernels = TritonOperations()
        x = torch.ones(1, 2, 16, device=device)
        with torch.inference_mode():
            found = kernels.swiglu(x.clone(), nn.Identity()).cpu()
            wanted = TORCH.swiglu(x.clone(), nn.Identity()).cpu()
        if not torch.allclose(found, wanted, atol=1e-5):
            return None, 'a kernel gives a wrong result'
    except Exception as error:  # of the compiler, the driver, a missing package: many kinds
        return None, f'{type(error).__name__}: {error}'.splitlines()[0]
    return kernels, ''
