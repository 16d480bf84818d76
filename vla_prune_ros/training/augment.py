# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Random crops and colours of training pictures, as OpenVLA-OFT's loader makes them.

Sources: dlimp_openvla `augmentations.py`, openvla-oft `rlds/dataset.py` and TensorFlow's image
operations: crop of 90 % area, brightness, contrast, saturation, hue, in this order, clipped after
each, back to bytes by truncating x * 255.5. With the authors' draws 1 to 10 of 150,528 values
differ, by one level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla_prune_ros.vla.pictures import CROP_AREA

CROPS = ('diagonal', 'free')
SIDE = CROP_AREA**0.5  # of the crop, as a share of the picture's
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.2, 0.2, 0.2, 0.05  # largest change to either side


def draw(
    count: int, views: int, generator: torch.Generator, crop: str = 'free', colour: bool = True
) -> Tensor:
    """Draw the changes of `count` samples, each view for itself.

    Args:
        count: samples.
        views: pictures of each.
        generator: on the CPU.
        crop: 'diagonal' as released, where one seed makes both offsets equal, or 'free'.
        colour: whether colours change.

    Returns:
        float32 [count, views, 6]: offsets of the crop in x and y (share of the side), change of
        brightness, factors of contrast and saturation, change of hue (turns).
    """
    share = torch.rand(count, views, 6, generator=generator)  # as many draws, whatever is used
    if crop == 'diagonal':
        share[..., 1] = share[..., 0]
    offset = share[..., :2] * (1.0 - SIDE)
    spread = torch.tensor([_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE])
    change = (2.0 * share[..., 2:] - 1.0) * (spread if colour else 0.0)
    return torch.cat([offset, change + torch.tensor([0.0, 1.0, 1.0, 0.0])], dim=-1)


def augment(images: Tensor, draws: Tensor) -> Tensor:
    """Change pictures; uint8 [N, S, S, 3] and draws [N, 6] to uint8 [N, S, S, 3]."""
    x = random_crop(images, draws[:, :2]).clamp_(0.0, 1.0)
    brightness, contrast, saturation, hue = draws[:, 2:, None, None].unbind(1)
    x = (x + brightness[..., None]).clamp_(0.0, 1.0)
    mean = x.mean((1, 2), keepdim=True)
    x = ((x - mean) * contrast[..., None] + mean).clamp_(0.0, 1.0)
    h, s, v = _to_hsv(x)
    x = _from_hsv(h, (s * saturation).clamp_(0.0, 1.0), v).clamp_(0.0, 1.0)
    h, s, v = _to_hsv(x)
    x = _from_hsv((h + hue) % 1.0, s, v).clamp_(0.0, 1.0)
    return x.mul_(255.5).to(torch.uint8)


def random_crop(images: Tensor, offset: Tensor) -> Tensor:
    """Crop 90 % of the area and scale back, bilinear.

    Args:
        images: uint8 [N, S, S, 3].
        offset: of the upper left corner, x and y as shares of the side, float32 [N, 2]; in the
            middle, at (1 - SIDE) / 2, the crop is the policy's own.

    Returns:
        float32 [N, S, S, 3] in 0..1; output pixel i samples the input at offset * (S-1) + SIDE * i
    """
    count, size = images.shape[:2]
    steps = torch.arange(size, dtype=torch.float32, device=images.device) * SIDE
    at = offset.to(torch.float32)[..., None] * (size - 1) + steps  # [N, 2, S]
    low = at.floor()
    fraction = (at - low)[..., None]
    high = at.ceil().clamp(max=size - 1).long()
    low = low.long()
    pictures = torch.arange(count, device=images.device)[:, None]
    x = images.transpose(1, 2).float() * (1 / 255)  # [N, columns, rows, 3]
    for axis in (0, 1):  # columns, then rows
        lower = x[pictures, low[:, axis]]
        x = lower + (x[pictures, high[:, axis]] - lower) * fraction[:, axis, :, None]
        x = x.transpose(1, 2)
    return x.transpose(1, 2).contiguous()


def _to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r, g, b = x.unbind(-1)
    v, low = x.amax(-1), x.amin(-1)
    span = v - low
    s = torch.where(v > 0, span / v, 0.0)
    sixth = torch.where(span > 0, 1.0 / (6.0 * span), 0.0)
    h = torch.where(
        r == v,
        sixth * (g - b),
        torch.where(g == v, sixth * (b - r) + 2.0 / 6.0, sixth * (r - g) + 4.0 / 6.0),
    )
    return torch.where(h < 0, h + 1.0, h), s, v


def _from_hsv(h: Tensor, s: Tensor, v: Tensor) -> Tensor:
    turned = h * 6.0
    chroma = v * s
    red = ((turned - 3.0).abs() - 1.0).clamp(0.0, 1.0)
    green = (2.0 - (turned - 2.0).abs()).clamp(0.0, 1.0)
    blue = (2.0 - (turned - 4.0).abs()).clamp(0.0, 1.0)
    low = v - chroma
    return torch.stack([red * chroma + low, green * chroma + low, blue * chroma + low], dim=-1)
