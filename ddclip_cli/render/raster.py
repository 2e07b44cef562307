"""Which triangle is seen in each pixel: a watertight rasteriser in torch operations, on any device.

Triangles become rows, rows become pixels (`repeat_interleave` twice); the nearest triangle of a pixel is the smallest
key `inverted depth bits << 32 | triangle` (`scatter_reduce_` with amin). A pixel belongs to the triangle that covers
its centre; of two triangles that share an edge through a centre, exactly one gets it.
"""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = 2**63 - 1
MAX_PIXELS = 4_000_000  # candidates at a time: bounds the memory, whatever the mesh
MAX_TRIANGLES = 100_000  # of several views together, where one mesh is small
_LOW_BITS = 2**32 - 1


def project(points: Tensor, world_to_camera: Tensor, focal: float, size: int) -> Tensor:
    """Points (V, 3) through cameras (F, 3, 4) -> (F, V, 3): x right and y down in pixels, and 1/depth."""
    at = points @ world_to_camera[:, :, :3].mT + world_to_camera[:, None, :, 3]  # (F, V, 3)
    inverse_depth = -1 / at[..., 2]
    scale = focal * size * inverse_depth
    return torch.stack([size / 2 + at[..., 0] * scale, size / 2 - at[..., 1] * scale, inverse_depth], dim=-1)


def rasterize(points: Tensor, faces: Tensor, size: int) -> Tensor:
    """Points (F, V, 3) float32 of `project`, faces (T, 3) int64 -> keys (F, size, size) int64, `EMPTY` for nothing."""
    keys = torch.full((len(points), size * size), EMPTY, dtype=torch.int64, device=points.device)
    together = max(1, MAX_TRIANGLES // max(1, len(faces)))  # views at a time
    for views, part in zip(points.split(together), keys.split(together), strict=True):
        _enter(views[:, faces].flatten(0, 1), len(faces), part.view(-1), size)
    return keys.view(-1, size, size)


def triangle_of(keys: Tensor) -> Tensor:
    """The index of the triangle in each key."""
    return keys & _LOW_BITS


def inverse_depth_of(keys: Tensor) -> Tensor:
    """1/depth in each key, float32; 0 where nothing is."""
    bits = (0x7FFFFFFF - (keys >> 32)).to(torch.int32)
    return bits.view(torch.float32)


def _enter(corners: Tensor, num_faces: int, keys: Tensor, size: int) -> None:
    """Enter the triangles (views * num_faces, 3 corners, xyw) into keys (views * size * size,)."""
    x, y, w = corners.unbind(-1)  # (T, 3) each
    y_first = (y.amin(1) - 0.5).ceil().clamp(0, size)
    height = ((y.amax(1) - 0.5).ceil().clamp(0, size) - y_first).long()
    x_hit = (x.amax(1) - 0.5).ceil() > (x.amin(1) - 0.5).ceil()  # else the box holds no pixel centre
    kept = torch.nonzero((height > 0) & x_hit)[:, 0]
    if not len(kept):
        return
    x, y, w, y_first, height = x[kept], y[kept], w[kept], y_first[kept], height[kept]

    # Rows: one entry for each triangle and each line of pixel centres that crosses it.
    triangle = torch.repeat_interleave(height)  # (R,)
    nth = torch.arange(len(triangle), device=x.device) - (height.cumsum(0) - height)[triangle]
    row = y_first[triangle] + nth
    left = torch.full_like(row, torch.inf)
    right = torch.full_like(row, -torch.inf)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        # From the upper to the lower end, whichever triangle asks: neighbours compute the same crossing.
        swap = (y[:, a] > y[:, b]) | ((y[:, a] == y[:, b]) & (x[:, a] > x[:, b]))
        x_top, x_low = torch.where(swap, x[:, b], x[:, a]), torch.where(swap, x[:, a], x[:, b])
        y_top, y_low = torch.where(swap, y[:, b], y[:, a]), torch.where(swap, y[:, a], y[:, b])
        slope = (x_low - x_top) / (y_low - y_top)
        centre = row + 0.5
        crosses = (y_top[triangle] <= centre) & (centre < y_low[triangle])
        at = x_top[triangle] + (centre - y_top[triangle]) * slope[triangle]
        left = torch.where(crosses, torch.minimum(left, at), left)
        right = torch.where(crosses, torch.maximum(right, at), right)
    x_first = (left - 0.5).ceil().clamp(0, size)
    width = ((right - 0.5).ceil().clamp(0, size) - x_first).clamp(min=0).long()

    # 1/depth is a plane over the screen; slivers are kept inside their own range.
    dx1, dx2, dy1, dy2 = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0], y[:, 1] - y[:, 0], y[:, 2] - y[:, 0]
    dw1, dw2 = w[:, 1] - w[:, 0], w[:, 2] - w[:, 0]
    area = dx1 * dy2 - dx2 * dy1
    area = torch.where(area == 0, torch.full_like(area, torch.inf), area)
    w_x, w_y = (dw1 * dy2 - dw2 * dy1) / area, (dw2 * dx1 - dw1 * dx2) / area
    w_at_first = (
        w[triangle, 0] + (row + 0.5 - y[triangle, 0]) * w_y[triangle] + (x_first + 0.5 - x[triangle, 0]) * w_x[triangle]
    )
    w_least, w_most = w.amin(1), w.amax(1)
    face = kept % num_faces
    origin = (kept // num_faces)[triangle] * size**2 + row.long() * size + x_first.long()

    ends = width.cumsum(0)
    start = 0
    while start < len(width):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, done + MAX_PIXELS, right=True)))
        part = torch.repeat_interleave(width[start:stop]) + start  # (P,) row of each pixel
        along = torch.arange(len(part), device=x.device) - (ends[part] - width[part] - done)
        owner = triangle[part]
        depth = w_at_first[part] + along * w_x[owner]
        depth = torch.minimum(torch.maximum(depth, w_least[owner]), w_most[owner])
        key = (0x7FFFFFFF - depth.view(torch.int32).long()) << 32 | face[owner]
        pixel = origin[part] + along
        keys.scatter_reduce_(0, pixel, key, "amin")
        start = stop
