# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Decoder weights in 8 bits, through torchao (`requirements/quantization.txt`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vla_prune_ros.vla import OpenVLAOFT

QUANTIZATIONS = ('none', 'int8', 'fp8')


def quantize(model: OpenVLAOFT, kind: str) -> None:
    """Replace the weights of the decoder layers, in place. Towers, projectors and head stay.

    Args:
        model: in its final place and type; afterwards it cannot be saved or trained.
        kind: none; int8: weights and activations in 8 bit integers, the latter by row at run time;
            fp8: the same in float8 e4m3, on GPUs from compute capability 8.9 on.

    Raises:
        ValueError: unknown kind, torchao is missing, or the device cannot do it.
    """
    if kind not in QUANTIZATIONS:
        raise ValueError(f'unknown quantization {kind!r}; valid: {", ".join(QUANTIZATIONS)}')
    if kind == 'none':
        return
    device = model.device
    if kind == 'fp8':
        if device.type != 'cuda' or torch.cuda.get_device_capability(device) < (8, 9):
            raise ValueError(
                f'quantization fp8 needs a GPU of compute capability 8.9 or higher, not {device}; '
                'use int8 or none'
            )
        if model.dtype != torch.bfloat16:
            raise ValueError('quantization fp8 needs dtype bfloat16')
    config = _config(kind)
    if not model.decoder.packed:
        model.decoder.pack()
    from torchao.quantization import quantize_

    quantize_(model.decoder.layers, config, filter_fn=lambda module, _: type(module) is nn.Linear)


def _config(kind: str) -> Any:
    try:
        import torchao.quantization as ao
    except ImportError as error:
        raise ValueError(
            f'quantization {kind} needs torchao (pip install -r requirements/quantization.txt)'
        ) from error
    if kind == 'int8':
        return ao.Int8DynamicActivationInt8WeightConfig()
    return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())
