"""Closed solids from which the sample objects are put together. Y is up; every surface faces outward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Point = Sequence[float] | np.ndarray
Points = Sequence[Point] | np.ndarray


@dataclass(frozen=True)
class Solid:
    """A closed triangle mesh: `vertices` (V, 3) float64, `faces` (T, 3) int64. Its methods return a changed copy."""

    vertices: np.ndarray
    faces: np.ndarray

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Solid:
        return Solid(self.vertices + np.array([x, y, z]), self.faces)

    def scaled(self, x: float = 1.0, y: float = 1.0, z: float = 1.0) -> Solid:
        return _outward(self.vertices * (x, y, z), self.faces)

    def turned(self, axis: str, degrees: float) -> Solid:
        """Rotate about "x", "y" or "z" through the origin, counter-clockwise seen from the tip of the axis."""
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        vertices = self.vertices.copy()
        vertices[:, i] = cos * self.vertices[:, i] - sin * self.vertices[:, j]
        vertices[:, j] = sin * self.vertices[:, i] + cos * self.vertices[:, j]
        return Solid(vertices, self.faces)


def box(x: float, y: float, z: float, *, top: float | Point = 1.0) -> Solid:
    """A box centred at the origin; `top` scales its upper face, in x and z."""
    square = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) * (x / 2, z / 2)
    return loft(square, square * top, y)


def loft(bottom: np.ndarray, top: np.ndarray, height: float) -> Solid:
    """Join two polygons (n, 2) in x and z, one at -height/2 and the other at height/2."""
    n = len(bottom)
    lower = np.insert(np.asarray(bottom, float), 1, -height / 2, axis=1)
    upper = np.insert(np.asarray(top, float), 1, height / 2, axis=1)
    cap = _triangles(np.asarray(top, float))
    return _outward(np.concatenate([lower, upper]), np.concatenate([_bands(2, n), cap[:, ::-1], cap + n]))


def extrusion(polygon: Points, depth: float) -> Solid:
    """A simple polygon (n, 2) in x and y, `depth` thick along z, centred there."""
    flat = np.array(polygon, float)
    return loft(flat * (1, -1), flat * (1, -1), depth).turned("x", 90)


def lathe(profile: Points, segments: int = 16, *, ribs: tuple[int, float] = (0, 0.0)) -> Solid:
    """Turn points (radius, y) about the y axis.

    A profile that leaves the axis and does not return to it is closed from its last point to its first.
    `ribs` = (count, depth) makes the radius wave around the axis.
    """
    points = np.array(profile, float)  # (P, 2)
    angle = np.arange(segments) * 2 * np.pi / segments
    wave = 1 + ribs[1] * np.cos(ribs[0] * angle)
    ring = np.stack([np.cos(angle) * wave, np.ones(segments), -np.sin(angle) * wave], axis=1)  # (S, 3)
    vertices = (points[:, None, [0, 1, 0]] * ring).reshape(-1, 3)  # (P, S, 3) -> (P*S, 3)
    on_axis = points[:, 0] < 1e-9
    faces = _bands(len(points), segments, closed=not (on_axis[0] and on_axis[-1]))
    # A ring of radius 0 is one vertex, so that the surface is smooth there.
    faces = np.where(on_axis[faces // segments], faces // segments * segments, faces)
    return _outward(vertices, faces)


def sphere(radius: float, segments: int = 16) -> Solid:
    rings = segments // 2
    angle = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)
    radii = np.cos(angle)
    radii[[0, -1]] = 0
    return lathe(np.stack([radii, np.sin(angle)], axis=1) * radius, segments)


def cylinder(radius: float, height: float, *, top: float | None = None, segments: int = 16) -> Solid:
    """A cylinder about the y axis, centred; a cone or a part of one where the `top` radius differs."""
    top = radius if top is None else top
    profile = [(0, -height / 2), (radius, -height / 2), (top, height / 2), (0, height / 2)]
    return lathe(profile if top > 0 else profile[:3], segments)


def torus(radius: float, thickness: float, segments: int = 24, sides: int = 10) -> Solid:
    """A ring about the y axis; `thickness` is the radius of its tube."""
    angle = np.arange(sides) * 2 * np.pi / sides
    return lathe(np.stack([radius + thickness * np.cos(angle), thickness * np.sin(angle)], axis=1), segments)


def tube(path: Points, radius: float | Sequence[float], segments: int = 8) -> Solid:
    """A round bar along points (P, 3); one radius, or one for each point."""
    points = np.array(path, float)
    radii = np.broadcast_to(np.asarray(radius, float), len(points))
    tangents = np.gradient(points, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    # The direction farthest from the whole path keeps the rings from twisting.
    helper = np.eye(3)[np.argmin(np.abs(tangents).max(axis=0))]
    side = np.cross(tangents, helper)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(tangents, side)
    angle = np.arange(segments) * 2 * np.pi / segments
    ring = np.cos(angle)[:, None] * side[:, None] + np.sin(angle)[:, None] * other[:, None]  # (P, S, 3)
    vertices = (points[:, None] + radii[:, None, None] * ring).reshape(-1, 3)
    first, last = len(vertices), len(vertices) + 1
    a, b = np.arange(segments), np.roll(np.arange(segments), -1)
    end = (len(points) - 1) * segments
    caps = np.concatenate(
        [np.stack([b, a, np.full_like(a, first)], 1), np.stack([a + end, b + end, np.full_like(a, last)], 1)]
    )
    return _outward(np.concatenate([vertices, points[[0, -1]]]), np.concatenate([_bands(len(points), segments), caps]))


def arc(radius: float, start: float, end: float, steps: int = 8) -> np.ndarray:
    """Points (steps, 3) of a circle in x and y about the origin, between two angles in degrees."""
    angle = np.radians(np.linspace(start, end, steps))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(steps)], axis=1)


def pyramids(polygon: Points, depth: float) -> Solid:
    """Two pyramids back to back on a star-shaped polygon (n, 2) in x and y; the tips are at z = +-depth/2."""
    n = len(polygon)
    vertices = np.concatenate(
        [np.pad(np.array(polygon, float), ((0, 0), (0, 1))), [(0, 0, depth / 2), (0, 0, -depth / 2)]]
    )
    a, b = np.arange(n), np.roll(np.arange(n), -1)
    return _outward(
        vertices, np.concatenate([np.stack([a, b, np.full(n, n)], 1), np.stack([b, a, np.full(n, n + 1)], 1)])
    )


def _bands(rings: int, segments: int, *, closed: bool = False) -> np.ndarray:
    """Triangles (T, 3) between consecutive rings of vertices, and from the last to the first if closed."""
    a = np.arange(rings if closed else rings - 1)[:, None] * segments
    upper = (a + segments) % (rings * segments)
    i, j = np.arange(segments), np.roll(np.arange(segments), -1)
    quads = np.stack([a + i, a + j, upper + j, upper + i], axis=-1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _triangles(polygon: np.ndarray) -> np.ndarray:
    """Cut a simple polygon (n, 2) into triangles (n-2, 3), in its own order, by clipping ears."""

    def turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    x, y = polygon.T
    sign = np.sign(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    left, found = list(range(len(polygon))), []
    while len(left) > 3:
        for k in range(len(left)):
            ear = left[k - 1], left[k], left[(k + 1) % len(left)]
            a, b, c = polygon[list(ear)]
            others = [polygon[i] for i in left if i not in ear]
            inside = any(min(sign * turn(a, b, p), sign * turn(b, c, p), sign * turn(c, a, p)) >= 0 for p in others)
            if sign * turn(a, b, c) > 0 and not inside:
                break
        found.append(ear)
        left.remove(ear[1])
    return np.array([*found, left])


def _outward(vertices: np.ndarray, faces: np.ndarray) -> Solid:
    """Drop triangles without area and make the surface face outward, which is where its signed volume is positive."""
    corners = vertices[faces]  # (T, 3, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    volume = np.sum(corners[:, 0] * normals)
    faces = faces[np.linalg.norm(normals, axis=1) > 1e-12]
    return Solid(vertices, faces if volume >= 0 else faces[:, ::-1])
