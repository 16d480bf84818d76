# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Published layer numbers and token counts, carried over to models of other sizes.

The methods were published for 32 decoder layers and 256 patches per camera.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

PUBLISHED_LAYERS = 32
PUBLISHED_PATCHES = 256


def scaled_layer(layer: int, depth: int) -> int:
    """Place of a published 0-based layer (or cut point) in a model of `depth` layers.

    Rounded up, so that what needs some full layers before it gets at least that share of them.
    """
    return min(math.ceil(layer * depth / PUBLISHED_LAYERS), depth - 1)


def scaled_count(count: float, patches: int) -> int:
    """A published number of patches of one camera where a camera has `patches`; halves go up."""
    return math.floor(count * patches / PUBLISHED_PATCHES + 0.5)


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Read a list such as `14,31`.

    Raises:
        ValueError: empty, or not whole numbers from 0.
    """
    parts = [part.strip() for part in text.split(',')]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f'option {name}={text!r} is not a list of whole numbers such as 5,10')
    return tuple(int(part) for part in parts)


def scale_layers(
    name: str, printed: Iterable[int], depth: int, first: int, last: int
) -> tuple[int, ...]:
    """Map published layer numbers to a model of `depth` layers, and into first..last.

    Several may meet in one layer; they stay apart in the result.

    Raises:
        ValueError: a number is not a layer of the published model.
    """
    printed = sorted(printed)
    if printed and printed[-1] >= PUBLISHED_LAYERS:
        raise ValueError(
            f'option {name}: {printed[-1]} is not a layer of a {PUBLISHED_LAYERS}-layer model'
        )
    return tuple(min(max(scaled_layer(layer, depth), first), last) for layer in printed)
