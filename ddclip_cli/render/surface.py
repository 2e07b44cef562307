"""A scene on the device of the renderer: what a point of a triangle looks like before light falls on it.

Values of points are columns, (3, P), and vertex arrays are (3, V): a processor works through such rows fastest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddclip_cli.render.scene import Alpha, Scene, Texture
from ddclip_cli.render.textures import Atlas

CLEAR, SOLID = 1 / 255, 250 / 255
"""Alphas of a blended surface below and above which it is taken as not there, and as opaque."""


@dataclass(frozen=True)
class Hits:
    """Points of triangles that samples of a view fall on."""

    triangle: Tensor  # (P,)
    corners: Tensor  # (3, P) vertices of each triangle
    weights: Tensor  # (3, P) of the corners, perspective-correct
    covered: Tensor  # (P,) share of the triangle's area that one sample covers

    @classmethod
    def of(cls, triangle: Tensor, corners: Tensor, points: list[Tensor], x: Tensor, y: Tensor) -> Hits:
        """Where samples at x, y (P,) fall on triangles (P,) whose corners are at `points`, (3 xyw, P) a corner."""
        dx, dy = [point[0] - x for point in points], [point[1] - y for point in points]
        opposite = torch.stack([dx[i] * dy[j] - dx[j] * dy[i] for i, j in ((1, 2), (2, 0), (0, 1))])
        w = torch.stack([point[2] for point in points])
        area = opposite.sum(0)
        area = torch.where(area == 0, 1.0, area)
        weights = (opposite / area).clamp_(min=0).mul_(w)
        depth = weights.sum(0).clamp_(min=1e-20)  # 1/depth of the point
        # d(weights) / d(x, y): perspective makes what is near larger.
        covered = w.prod(0) / (depth.clamp(min=1e-10) ** 3 * area.abs())
        weights = torch.where(depth > 1e-20, weights / depth, 1 / 3)
        return cls(triangle, corners, weights, covered)

    def mix(self, values: Tensor) -> Tensor:
        """Vertex values (K, V) at the points, (K, P)."""
        a, b, c = (values.index_select(1, corner) for corner in self.corners)
        return a * self.weights[0] + b * self.weights[1] + c * self.weights[2]

    def some(self, which: Tensor) -> Hits:
        """Those at positions (S,)."""
        return Hits(*(part.index_select(-1, which) for part in vars(self).values()))


class Surface:
    """The triangles, materials and textures of a scene."""

    def __init__(self, scene: Scene, device: str | torch.device) -> None:
        def columns(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array.T)).to(device)

        def optional(array: np.ndarray | None) -> Tensor | None:
            return None if array is None else columns(array)

        def of_materials(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            values = torch.tensor([getattr(material, name) for material in scene.materials], dtype=dtype)
            return values.movedim(0, -1).contiguous().to(device)

        textures: dict[Texture, int] = {}

        def numbers(name: str) -> Tensor:
            """The texture of each material, -1 for none."""
            used = [getattr(material, name) for material in scene.materials]
            found = [-1 if texture is None else textures.setdefault(texture, len(textures)) for texture in used]
            return torch.tensor(found, device=device)

        self.vertices, self.faces = columns(scene.vertices), columns(scene.faces)  # (3, V), (3, T)
        self.material = torch.from_numpy(scene.material).to(device)  # (T,)
        self.normals, self.colours = optional(scene.normals), optional(scene.colours)
        self.uv, self.emissive_uv = optional(scene.uv), optional(scene.emissive_uv)
        self.factor, self.emissive = of_materials("factor"), of_materials("emissive")  # (4, M), (3, M)
        self.cutoff, self.unlit = of_materials("cutoff"), of_materials("unlit", torch.bool)
        self.alpha = of_materials("alpha", torch.int64)
        self.texture, self.emissive_texture = numbers("texture"), numbers("emissive_texture")
        self.atlas = Atlas.of(list(textures), device)
        kind = self.alpha.index_select(0, self.material)
        numbers_of = {alpha: torch.nonzero(kind == alpha)[:, 0] for alpha in Alpha}
        self.triangles = {alpha: (some, self.faces.index_select(1, some)) for alpha, some in numbers_of.items()}
        """By what alpha means: numbers (T,) and faces (3, T)."""

    def colour(self, hits: Hits) -> Tensor:
        """Linear RGBA (4, P)."""
        material = self.material.index_select(0, hits.triangle)
        colour = self.factor.index_select(1, material)
        if self.colours is not None:
            colour *= hits.mix(self.colours)
        return self._textured(colour, self.texture.index_select(0, material), self.uv, hits)

    def emission(self, hits: Hits) -> Tensor:
        """Linear RGB (3, P) that the points send out by themselves."""
        material = self.material.index_select(0, hits.triangle)
        glow = self.emissive.index_select(1, material)
        return self._textured(glow, self.emissive_texture.index_select(0, material), self.emissive_uv, hits)

    def is_unlit(self, hits: Hits) -> Tensor:
        return self.unlit.index_select(0, self.material.index_select(0, hits.triangle))

    def is_solid(self, hits: Hits) -> Tensor:
        """(P,) bool: whether points of masked and blended surfaces hide what is behind them."""
        material = self.material.index_select(0, hits.triangle)
        masked = self.alpha.index_select(0, material) == Alpha.MASK
        return self.colour(hits)[3] >= torch.where(masked, self.cutoff.index_select(0, material), SOLID)

    def _textured(self, colour: Tensor, texture: Tensor, uv: Tensor | None, hits: Hits) -> Tensor:
        """Colour (3 or 4, P) times the textures (P,) where there are some."""
        if uv is None or not len(self.atlas.size):
            return colour
        painted = torch.nonzero(texture >= 0)[:, 0]
        if len(painted) < len(texture):
            hits, texture = hits.some(painted), texture.index_select(0, painted)
        a, b, c = (uv.index_select(1, corner) for corner in hits.corners)
        (ub, vb), (uc, vc) = b - a, c - a
        density = (ub * vc - vb * uc).abs() * hits.covered
        texels = self.atlas.sample(texture, hits.mix(uv), density)[: len(colour)]
        if len(painted) == colour.shape[1]:
            return colour * texels
        return colour.index_copy(1, painted, colour.index_select(1, painted) * texels)
