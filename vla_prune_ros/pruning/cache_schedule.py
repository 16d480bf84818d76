# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How large a share of VLA-Cache's candidates is reused in each layer.

A share holds from its layer on until the next one. Only shares above all earlier ones count,
since a row that was dropped has no state to go on with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from vla_prune_ros.pruning.scaling import scaled_layer
from vla_prune_ros.vla.selection import LayerScores

PUBLISHED_STAGES = {2: 0.5, 6: 0.7, 9: 0.8, 11: 0.9}  # of 32 layers
_GROWTH = 0.55  # damps every increase between two layers in the released schedule
_TINY = 1e-10  # of the released code


def parse_stages(text: str, depth: int) -> dict[int, float]:
    """Read 'LAYER:SHARE,...'; empty text means the published stages, scaled to the depth.

    Published layers that fall together keep the largest share.

    Raises:
        ValueError: malformed, a layer the model does not have, or a share outside 0..1.
    """
    if not text:
        # Shares ascend, so the largest stays where two layers fall together.
        stages = {scaled_layer(layer, depth): share for layer, share in PUBLISHED_STAGES.items()}
        return {layer: share for layer, share in stages.items() if layer > 0}
    try:
        pairs = [part.split(':') for part in text.split(',')]
        stages = {int(layer): float(share) for layer, share in pairs}
    except ValueError:
        raise ValueError(
            f"option stages={text!r} is not of the form 'LAYER:SHARE,...', such as '1:0.5,2:0.9'"
        ) from None
    if not all(0 < layer < depth and 0 <= share <= 1 for layer, share in stages.items()):
        raise ValueError(f'option stages={text!r} needs layers 1..{depth - 1} and shares 0..1')
    return stages


def entropy_shares(entropy: Sequence[float], gain: float) -> dict[int, float]:
    """Share of the paper: alpha_l = min(k' * sum of R_j up to l, 1).

    R_l = (E_(l-1) - E_l) / E_(l-1). Clamped at 0 as well, since the sum may be negative.

    Args:
        entropy: mean attention entropy of each layer in the previous inference, nats.
        gain: k', which the paper does not give.
    """
    drops = [
        (before - after) / before if before > 0 else 0.0 for before, after in pairwise(entropy)
    ]
    return {
        layer: min(max(gain * total, 0.0), 1.0)
        for layer, total in enumerate(accumulate(drops), start=1)
    }


def released_shares(entropy: Sequence[float], stages: Mapping[int, float]) -> dict[int, float]:
    """Share of the released code at the layers of `stages`.

    r_l = 1 - (E_l - E_min) / (E_max - E_min), and every increase from layer to layer is damped.
    Equal entropies say nothing: then nothing is reused.
    """
    low, span = min(entropy), max(entropy) - min(entropy)
    if span == 0:
        return dict.fromkeys(stages, 0.0)
    shares: list[float] = []
    for value in entropy:
        share = 1.0 - (value - low) / span
        if shares and share > shares[-1]:
            share = shares[-1] + _GROWTH * (share - shares[-1])
        shares.append(share)
    return {layer: shares[layer] for layer in stages}


def released_entropy(scores: LayerScores) -> Tensor:
    """Entropy of a layer's attention as released: that of the map averaged over the heads.

    Args:
        scores: of all rows and all columns.

    Returns:
        Mean over the live rows in nats, scalar.
    """
    attention = scores.probs.mean(0).masked_fill(~scores.row_present[:, None], 0.0)
    attention = attention / (attention.sum(-1, keepdim=True) + _TINY)
    each = -(attention * (attention + _TINY).log()).sum(-1)
    return each.sum() / scores.row_present.sum()
