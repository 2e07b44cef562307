"""From uint8 views to the normalised pixels of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Crop = Literal["none", "center", "random"]


def to_pixels(
    views: Tensor,
    *,
    image_size: int,
    crop: Crop,
    generator: torch.Generator | None = None,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """(..., 3, H, W) uint8 -> (..., 3, S, S) float32, normalised with `mean` and `std`; S is `image_size`.

    "center" and "random" keep a square of 13/14 of the short side (208 of 224), which is then resized to S (bilinear,
    antialiased): in the middle, or at one random position for the whole tensor, drawn from `generator`.
    "none" keeps the whole picture, and squeezes one that is not square.
    """
    height, width = views.shape[-2:]
    if crop != "none":
        side = max(1, min(height, width) * 13 // 14)
        if crop == "center":
            top, left = (height - side) // 2, (width - side) // 2
        elif crop == "random":
            top = int(torch.randint(height - side + 1, (), generator=generator))
            left = int(torch.randint(width - side + 1, (), generator=generator))
        else:
            raise ValueError(f"crop is 'none', 'center' or 'random', not {crop!r}")
        views = crop_at(views, top, left, side)
    return normalise(resize(views, image_size), mean, std)


def crop_at(views: Tensor, top: int, left: int, side: int) -> Tensor:
    """(..., H, W) -> (..., side, side)"""
    return views[..., top : top + side, left : left + side]


def resize(views: Tensor, image_size: int) -> Tensor:
    """(..., 3, H, W) uint8 -> (..., 3, S, S) float32 in [0, 1]; pictures of that size already stay as they are."""
    unit = views.float() / 255
    if unit.shape[-2:] == (image_size, image_size):
        return unit
    flat = unit.reshape(-1, *unit.shape[-3:])  # (..., 3, H, W) -> (N, 3, H, W)
    flat = F.interpolate(flat, size=(image_size, image_size), mode="bilinear", align_corners=False, antialias=True)
    return flat.reshape(*unit.shape[:-2], image_size, image_size)


def normalise(unit: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> the same with mean 0 and deviation 1 a channel."""
    centre = torch.tensor(mean, dtype=unit.dtype, device=unit.device)[:, None, None]
    spread = torch.tensor(std, dtype=unit.dtype, device=unit.device)[:, None, None]
    return (unit - centre) / spread
