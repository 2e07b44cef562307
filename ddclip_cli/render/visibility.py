"""What a camera sees of a surface: the nearest point that hides what is behind, and what one sees through before it."""

from __future__ import annotations

import torch
from torch import Tensor

from ddclip_cli.render.raster import EMPTY, rasterize
from ddclip_cli.render.scene import Alpha
from ddclip_cli.render.surface import CLEAR, Hits, Surface

MAX_LAYERS = 8  # of see-through surfaces, one behind the other


def hits_at(surface: Surface, points: Tensor, size: int, pixel: Tensor, triangle: Tensor) -> Hits:
    """Where the centres of pixels (P,), numbered through all views, fall on triangles (P,); points as of `project`."""
    views, _, vertices = points.shape
    view, position = (pixel // size**2, pixel % size**2) if views > 1 else (0, pixel)
    x, y = position % size + 0.5, position // size + 0.5
    corners = surface.faces.index_select(1, triangle)
    flat = points.transpose(0, 1).reshape(3, -1)
    return Hits.of(triangle, corners, [flat.index_select(1, at) for at in corners + view * vertices], x, y)


def nearest_solid(surface: Surface, points: Tensor, size: int) -> Tensor:
    """Keys (F, size, size) of what hides everything behind it; masks are asked point by point."""

    def there(pixel: Tensor, triangle: Tensor, key: Tensor) -> Tensor:
        return surface.is_solid(hits_at(surface, points, size, pixel, triangle))

    numbers, faces = surface.triangles[Alpha.OPAQUE]
    keys = rasterize(points, faces, size, numbers=numbers)
    for kind in (Alpha.MASK, Alpha.BLEND):
        numbers, faces = surface.triangles[kind]
        rasterize(points, faces, size, numbers=numbers, into=keys, accept=there)
    return keys


def see_through(surface: Surface, points: Tensor, size: int, solid: Tensor) -> list[Tensor]:
    """Keys of the see-through points before `solid`, layer by layer from the camera on (depth peeling)."""
    numbers, faces = surface.triangles[Alpha.BLEND]
    layers: list[Tensor] = []
    behind, before = torch.zeros_like(solid).view(-1), solid.view(-1)

    def there(pixel: Tensor, triangle: Tensor, key: Tensor) -> Tensor:
        between = (key > behind.index_select(0, pixel)) & (key < before.index_select(0, pixel))
        inside = torch.nonzero(between)[:, 0]
        hits = hits_at(surface, points, size, pixel.index_select(0, inside), triangle.index_select(0, inside))
        return between.index_copy(0, inside, surface.colour(hits)[3] > CLEAR)

    while len(numbers) and len(layers) < MAX_LAYERS:
        layer = rasterize(points, faces, size, numbers=numbers, accept=there)
        if bool((layer == EMPTY).all()):
            break
        layers.append(layer)
        behind = layer.view(-1)
    return layers
