"""Polygons as triangles, for formats that keep them."""

from __future__ import annotations

import numpy as np


def fans(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Polygons of `counts` (N,) corners, listed one after the other -> triangles of corner numbers (T, 3), and the
    polygon (T,) of each: a fan from its first corner, which is right for convex ones.
    """
    counts = np.asarray(counts, dtype=np.int64)
    triangles = np.maximum(counts - 2, 0)
    polygon = np.repeat(np.arange(len(counts)), triangles)
    nth = np.arange(len(polygon)) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    first = (np.cumsum(counts) - counts)[polygon]
    return np.stack([first, first + nth + 1, first + nth + 2], axis=1), polygon
