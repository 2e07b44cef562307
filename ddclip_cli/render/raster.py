"""Which triangle is seen in each pixel: a watertight rasteriser in torch operations, on any device.

Triangles become rows, rows become pixels (`repeat_interleave` twice); the nearest triangle of a pixel is the smallest
key `inverted depth bits << 32 | triangle` (`scatter_reduce_` with amin). A pixel belongs to the triangle that covers
its centre; of two triangles that share an edge through a centre, exactly one gets it.

`index_select` rather than brackets: on a processor it gathers several times faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

EMPTY = 2**63 - 1
BATCH = {"cpu": 2**17, "cuda": 2**22}
"""Triangles, rows or pixels at a time: what stays in a processor's cache, or keeps a GPU busy. Bounds the memory."""

MAX_CANDIDATES = 3e10  # pixels of all triangles of all views together: some minutes on one core

Accept = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(pixel, triangle, key), (P,) int64 each -> (P,) bool: which candidates to enter."""


class TooManyLayers(Exception):
    """Triangles that cover each other so often that drawing them would take hours."""

    def __init__(self) -> None:
        super().__init__("its triangles lie in too many layers to be drawn: simplify it")


def batch_size(device: torch.device) -> int:
    return BATCH.get(device.type, BATCH["cpu"])


def project(points: Tensor, world_to_camera: Tensor, focal: float, size: int) -> Tensor:
    """Points (3, V) through cameras (F, 3, 4) -> (F, 3, V): x right and y down in pixels, and 1/depth."""
    at = world_to_camera[:, :, :3] @ points + world_to_camera[:, :, 3:]  # (F, 3, V)
    inverse_depth = -1 / at[:, 2]
    scale = focal * size * inverse_depth
    return torch.stack([size / 2 + at[:, 0] * scale, size / 2 - at[:, 1] * scale, inverse_depth], dim=1)


def rasterize(
    points: Tensor,
    faces: Tensor,
    size: int,
    *,
    numbers: Tensor | None = None,
    into: Tensor | None = None,
    accept: Accept | None = None,
) -> Tensor:
    """Points (F, 3, V) float32 of `project`, faces (3, T) int64 -> keys (F, size, size) int64, `EMPTY` for nothing.

    `numbers` (T,) are the triangles' numbers in the keys (default: their positions in `faces`), `into` are keys that
    hold triangles already, and `accept` decides which candidates count; pixels are numbered through all views.
    """
    num_views, _, num_points = points.shape
    num_faces, device = faces.shape[1], points.device
    keys = into
    if keys is None:
        keys = torch.full((num_views, size, size), EMPTY, dtype=torch.int64, device=device)
    if numbers is None:
        numbers = torch.arange(num_faces, device=device)
    canvas = _Canvas(keys, size, accept)
    together = max(1, canvas.batch // max(1, num_faces))  # views at a time: many where the mesh is small
    for first in range(0, num_views, together):
        several = points[first : first + together]
        xyw = several.transpose(0, 1).reshape(3, -1)  # (3, views * V)
        cells = _cells(xyw, size)
        offsets = torch.arange(len(several), device=device)[:, None] * num_points
        for start in range(0, num_faces, canvas.batch):
            some = faces[:, start : start + canvas.batch]
            corners = [(offsets + corner).flatten() if len(several) > 1 else corner for corner in some]
            hit = _hits(cells, corners)
            corners = [corner.index_select(0, hit) for corner in corners]
            view, face = (hit // some.shape[1], hit % some.shape[1]) if len(several) > 1 else (0, hit)
            x, y, w = (torch.stack([values.index_select(0, corner) for corner in corners]) for values in xyw)
            canvas.enter(x, y, w, numbers.index_select(0, start + face), (first + view) * size**2)
    return keys


def triangle_of(keys: Tensor) -> Tensor:
    """The number of the triangle in each key."""
    return keys & (2**32 - 1)


def inverse_depth_of(keys: Tensor) -> Tensor:
    """1/depth in each key, float32; 0 where nothing is."""
    bits = (0x7FFFFFFF - (keys >> 32)).to(torch.int32)
    return bits.view(torch.float32)


def _cells(xyw: Tensor, size: int) -> Tensor:
    """Between which pixel centres each point lies, in both directions, as one int32."""
    column, row = ((a - 0.5).ceil_().clamp_(0, size).to(torch.int32) for a in xyw[:2])
    return row << 16 | column


def _hits(cells: Tensor, corners: list[Tensor]) -> Tensor:
    """Positions of the triangles whose box holds a pixel centre: most of a fine mesh lie between them."""
    a, b, c = (cells.index_select(0, corner) for corner in corners)
    differ = (a ^ b) | (a ^ c)
    return torch.nonzero((differ & 0xFFFF).bool() & (differ >> 16).bool())[:, 0]


class _Canvas:
    """Keys into which triangles are entered."""

    def __init__(self, keys: Tensor, size: int, accept: Accept | None) -> None:
        self.keys, self.size, self.accept = keys.view(-1), size, accept
        self.batch = batch_size(keys.device)
        self.candidates = 0

    def enter(self, x: Tensor, y: Tensor, w: Tensor, triangle: Tensor, origin: Tensor | int) -> None:
        """Triangles (T,) with corners (3, T), in the views whose first pixel is `origin`."""
        first = (y.amin(0) - 0.5).ceil().clamp(0, self.size).long()
        height = (y.amax(0) - 0.5).ceil().clamp(0, self.size).long() - first
        start = origin + first * self.size
        for part in _batches(height, self.batch):
            corners = x[:, part], y[:, part], w[:, part]
            self._enter_rows(*corners, triangle[part], start[part], first[part], height[part])

    def _enter_rows(
        self, x: Tensor, y: Tensor, w: Tensor, triangle: Tensor, start: Tensor, first: Tensor, height: Tensor
    ) -> None:
        owner, nth = _repeat(height)  # (R,): one for each triangle and each line of pixel centres that crosses it

        def per_row(values: Tensor) -> Tensor:
            return values.index_select(0, owner)

        centre = per_row(first) + nth + 0.5
        left = torch.full_like(centre, torch.inf)
        right = torch.full_like(centre, -torch.inf)
        for a, b in ((0, 1), (1, 2), (2, 0)):
            # From the upper to the lower end, whichever triangle asks: neighbours compute the same crossing.
            swap = (y[a] > y[b]) | ((y[a] == y[b]) & (x[a] > x[b]))
            x_top, x_low = torch.where(swap, x[b], x[a]), torch.where(swap, x[a], x[b])
            y_top, y_low = torch.where(swap, y[b], y[a]), torch.where(swap, y[a], y[b])
            slope = (x_low - x_top) / (y_low - y_top)
            top = per_row(y_top)
            crosses = (top <= centre) & (centre < per_row(y_low))
            at = per_row(x_top) + (centre - top) * per_row(slope)
            left = torch.where(crosses, torch.minimum(left, at), left)
            right = torch.where(crosses, torch.maximum(right, at), right)
        x_first = (left - 0.5).ceil().clamp(0, self.size)
        width = ((right - 0.5).ceil().clamp(0, self.size) - x_first).clamp(min=0).long()

        # 1/depth is a plane over the screen; slivers are kept inside their own range.
        dx1, dx2, dy1, dy2 = x[1] - x[0], x[2] - x[0], y[1] - y[0], y[2] - y[0]
        dw1, dw2 = w[1] - w[0], w[2] - w[0]
        area = dx1 * dy2 - dx2 * dy1
        area = torch.where(area == 0, torch.inf, area)
        w_x, w_y = (dw1 * dy2 - dw2 * dy1) / area, (dw2 * dx1 - dw1 * dx2) / area
        self.candidates += int(width.sum())
        if self.candidates > MAX_CANDIDATES:
            raise TooManyLayers
        w_x_row = per_row(w_x)
        w_first = per_row(w[0]) + (centre - per_row(y[0])) * per_row(w_y) + (x_first + 0.5 - per_row(x[0])) * w_x_row
        least, most = per_row(w.amin(0)), per_row(w.amax(0))
        triangle = per_row(triangle)
        start = per_row(start) + nth * self.size + x_first.long()
        for part in _batches(width, self.batch):
            row, along = _repeat(width[part])  # (P,)
            depth = w_first[part].index_select(0, row) + along * w_x_row[part].index_select(0, row)
            depth = torch.maximum(depth, least[part].index_select(0, row))
            depth = torch.minimum(depth, most[part].index_select(0, row))
            self._enter_pixels(start[part].index_select(0, row) + along, triangle[part].index_select(0, row), depth)

    def _enter_pixels(self, pixel: Tensor, triangle: Tensor, depth: Tensor) -> None:
        key = (0x7FFFFFFF - depth.view(torch.int32).long()) << 32 | triangle
        if self.accept is not None:
            kept = torch.nonzero(self.accept(pixel, triangle, key))[:, 0]
            pixel, key = pixel.index_select(0, kept), key.index_select(0, kept)
        self.keys.scatter_reduce_(0, pixel, key, "amin")


def _batches(amounts: Tensor, most: int) -> Iterator[slice]:
    """Runs of items whose amounts add up to at most `most`, or of one item."""
    if not len(amounts):
        return
    ends = amounts.cumsum(0)
    start, done, total = 0, 0, int(ends[-1])
    while start < len(amounts):
        stop = len(amounts)
        if total - done > most:
            stop = max(start + 1, int(torch.searchsorted(ends, done + most, right=True)))
        yield slice(start, stop)
        start, done = stop, int(ends[stop - 1])


def _repeat(amounts: Tensor) -> tuple[Tensor, Tensor]:
    """The item of each of its repetitions, and the how-manieth of it each one is."""
    item = torch.repeat_interleave(amounts)
    nth = torch.arange(len(item), device=item.device) - (amounts.cumsum(0) - amounts).index_select(0, item)
    return item, nth
