"""All textures of a scene in one tensor with their mip levels, sampled for any mixture of points at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddclip_cli.render.scene import Texture, Wrap
from ddclip_cli.render.tone import to_linear

MAX_TEXELS = 2**24  # of a scene's largest levels; more are reduced to fit


@dataclass(frozen=True)
class Atlas:
    """Textures on a device. A texture's levels halve until one texel is left; level l of texture t begins at
    `offset[t] + l`'s own start in `texels`."""

    texels: Tensor  # (N, 4) float32 linear RGBA
    start: Tensor  # (textures, levels) int64 into texels
    size: Tensor  # (textures, 2) int64 width and height of level 0
    last: Tensor  # (textures,) float32, the number of the last level
    wrap: Tensor  # (textures, 2) int64 of Wrap, across and up
    nearest: Tensor  # (textures,) bool: sharp texels instead of a mixture
    repeats: bool  # whether all textures repeat
    sharp: bool  # whether any texture is sharp

    @classmethod
    def of(cls, textures: Sequence[Texture], device: str | torch.device) -> Atlas:
        total = sum(texture.picture.shape[0] * texture.picture.shape[1] for texture in textures)
        halvings = 0
        while total >> 2 * halvings > MAX_TEXELS:
            halvings += 1
        curve = torch.from_numpy(to_linear(np.arange(256) / 255)).float()
        levels, starts, sizes, count = [], [], [], 0
        pyramids: dict[int, tuple[list[int], tuple[int, int]]] = {}  # one picture may be wrapped in several ways
        for texture in textures:
            if id(texture.picture) not in pyramids:
                picture = _linear(texture.picture, curve)
                for _ in range(halvings):
                    picture = _halve(picture)
                size, begin = (picture.shape[2], picture.shape[1]), []
                while True:
                    levels.append(picture.permute(1, 2, 0).reshape(-1, 4))
                    begin.append(count)
                    count += len(levels[-1])
                    if picture.shape[1:] == (1, 1):
                        break
                    picture = _halve(picture)
                pyramids[id(texture.picture)] = begin, size
            begin, size = pyramids[id(texture.picture)]
            starts.append(begin)
            sizes.append(size)
        most = max(map(len, starts), default=1)
        padded = [begin + begin[-1:] * (most - len(begin)) for begin in starts]
        return cls(
            texels=torch.cat(levels or [torch.ones(1, 4)]).to(device),
            start=torch.tensor(padded, dtype=torch.int64, device=device).view(-1, most),
            size=torch.tensor(sizes, dtype=torch.int64, device=device).view(-1, 2),
            last=torch.tensor([len(begin) - 1.0 for begin in starts], device=device),
            wrap=torch.tensor([texture.wrap for texture in textures], dtype=torch.int64, device=device).view(-1, 2),
            nearest=torch.tensor([texture.nearest for texture in textures], dtype=torch.bool, device=device),
            repeats=all(texture.wrap == (Wrap.REPEAT, Wrap.REPEAT) for texture in textures),
            sharp=any(texture.nearest for texture in textures),
        )

    def sample(self, texture: Tensor, uv: Tensor, density: Tensor) -> Tensor:
        """Linear RGBA (4, P) of textures (P,) at coordinates (2, P); v runs up.

        `density` (P,) is how much of the texture's area, in [0, 1]^2, one sample covers: it chooses between the
        levels, of which two are mixed, bilinear each.
        """
        width, height = (sides.index_select(0, texture) for sides in self.size.T)
        level = 0.5 * torch.log2((density * (width * height)).clamp(min=1))
        level = torch.minimum(level, self.last.index_select(0, texture))
        lower = level.floor()
        colour = self._bilinear(texture, (width, height), uv, lower.long())
        mixed = torch.nonzero(level > lower)[:, 0]
        if len(mixed):
            texture, lower, share, width, height = (
                a.index_select(0, mixed) for a in (texture, lower, level - lower, width, height)
            )
            upper = self._bilinear(texture, (width, height), uv.index_select(1, mixed), lower.long() + 1)
            colour = colour.index_copy(0, mixed, torch.lerp(colour.index_select(0, mixed), upper, share[:, None]))
        return colour.T

    def _bilinear(self, texture: Tensor, size: tuple[Tensor, Tensor], uv: Tensor, level: Tensor) -> Tensor:
        """(P, 4)."""
        start = self.start.view(-1).index_select(0, texture * self.start.shape[1] + level)
        columns, rows = ((length >> level).clamp_(min=1) for length in size)
        x, y = uv[0] * columns, (1 - uv[1]) * rows
        if self.sharp:
            nearest = self.nearest.index_select(0, texture)
            x, y = (torch.where(nearest, a.floor() + 0.5, a) for a in (x, y))
        x, y = x - 0.5, y - 0.5
        x0, y0 = x.floor(), y.floor()
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        wrap_x, wrap_y = (None, None) if self.repeats else (kind.index_select(0, texture) for kind in self.wrap.T)
        left, right = (_wrapped(x0.long() + step, columns, wrap_x) for step in (0, 1))
        top, bottom = (start + _wrapped(y0.long() + step, rows, wrap_y) * columns for step in (0, 1))
        above, below = (
            torch.lerp(self.texels.index_select(0, row + left), self.texels.index_select(0, row + right), fx)
            for row in (top, bottom)
        )
        return torch.lerp(above, below, fy)


def _wrapped(position: Tensor, length: Tensor, wrap: Tensor | None) -> Tensor:
    """Texel numbers outside [0, length) brought inside; `wrap` None repeats everywhere."""
    repeated = position % length
    if wrap is None:
        return repeated
    clamped = torch.minimum(position.clamp(min=0), length - 1)
    there = position % (2 * length)
    mirrored = torch.minimum(there, 2 * length - 1 - there)
    return torch.where(wrap == Wrap.REPEAT, repeated, torch.where(wrap == Wrap.CLAMP, clamped, mirrored))


def _linear(picture: np.ndarray, curve: Tensor) -> Tensor:
    """(H, W, 3 or 4) uint8 sRGB -> (4, H, W) float32 linear."""
    values = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).long()
    linear = torch.ones(4, *values.shape[1:])
    for channel in range(3):
        linear[channel] = curve.index_select(0, values[channel].flatten()).view(values.shape[1:])
    if len(values) == 4:
        linear[3] = values[3] / 255
    return linear


def _halve(picture: Tensor) -> Tensor:
    """(4, H, W) -> half of each side, rounded down, at least 1: every texel a mean."""
    height, width = (max(1, side // 2) for side in picture.shape[1:])
    return F.adaptive_avg_pool2d(picture, (height, width))
