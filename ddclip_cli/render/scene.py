"""What is drawn: the triangles of an object with their materials, the same whatever file they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from ddclip_cli.errors import UserError
from ddclip_cli.render.tone import GREY

NEARLY_ONE = 250 / 255  # exporters leave alphas of almost one


class Wrap(IntEnum):
    """What a texture is outside [0, 1]."""

    REPEAT = 0
    CLAMP = 1
    MIRROR = 2


class Alpha(IntEnum):
    """What alpha means: nothing, whether a point is there at all, or how much of it covers what lies behind."""

    OPAQUE = 0
    MASK = 1
    BLEND = 2


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture and how it is laid on."""

    picture: np.ndarray  # (H, W, 3 or 4) uint8 sRGB, straight alpha
    wrap: tuple[Wrap, Wrap] = (Wrap.REPEAT, Wrap.REPEAT)  # across, up
    nearest: bool = False
    """Sharp texels instead of a mixture."""

    @property
    def least_alpha(self) -> float:
        return self.picture[..., 3].min() / 255 if self.picture.shape[2] == 4 else 1.0


@dataclass(frozen=True, eq=False)
class Material:
    """A matte surface: colours are linear, and textures multiply them."""

    factor: Sequence[float] = (GREY, GREY, GREY, 1.0)
    """RGBA."""
    texture: Texture | None = None
    emissive: Sequence[float] = (0.0, 0.0, 0.0)
    emissive_texture: Texture | None = None
    alpha: Alpha = Alpha.OPAQUE
    cutoff: float = 0.5
    """Alpha from which a masked point is there."""
    unlit: bool = False
    """The colour is what is seen, whatever the light."""


WHITE = Material(factor=(1.0, 1.0, 1.0, 1.0))
"""For what has colours of its own."""


@dataclass(frozen=True, eq=False)
class Part:
    """Triangles of one material, in the axes of the file. Vertex arrays may be absent."""

    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (T, 3) integers
    material: Material = field(default_factory=Material)
    normals: np.ndarray | None = None  # (V, 3); zero where the face's own is meant
    colours: np.ndarray | None = None  # (V, 4) linear RGBA
    uv: np.ndarray | None = None  # (V, 2), v runs up
    emissive_uv: np.ndarray | None = None  # (V, 2)


@dataclass(frozen=True, eq=False)
class Scene:
    """Triangles of an object: bounding box centred on the origin, longest side 1, z up."""

    vertices: np.ndarray  # (V, 3) float32
    faces: np.ndarray  # (T, 3) int64
    material: np.ndarray  # (T,) int64 into materials
    materials: Sequence[Material]
    normals: np.ndarray | None = None  # (V, 3) float32 unit length, or zero where the face's own is meant
    colours: np.ndarray | None = None  # (V, 4) float32
    uv: np.ndarray | None = None  # (V, 2) float32
    emissive_uv: np.ndarray | None = None  # (V, 2) float32


def join(parts: Sequence[Part], *, y_up: bool, name: str) -> Scene:
    """The scene of all parts. Raises UserError if they have no triangles, no extent, or an infinite one."""
    parts = [_with_coordinates(part) for part in parts if len(part.faces)]
    if not parts:
        raise UserError(f"{name}: holds no triangles")
    vertices = np.concatenate([np.asarray(part.vertices, dtype=np.float64) for part in parts])
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    faces = np.concatenate([part.faces.astype(np.int64) + offset for part, offset in zip(parts, offsets, strict=True)])
    for part in parts:
        if part.faces.min() < 0 or part.faces.max() >= len(part.vertices):
            raise UserError(f"{name}: has triangles of vertices that are not there")
    seen = np.zeros(len(vertices), dtype=bool)  # vertices without a triangle are not
    seen[faces] = True
    used = vertices[seen]
    low, high = used.min(0), used.max(0)
    longest = float((high - low).max())
    if not np.isfinite(longest):
        raise UserError(f"{name}: has vertices that are not finite numbers")
    if not longest > 0:
        raise UserError(f"{name}: its bounding box has no extent")
    vertices = (vertices - (low + high) / 2) / longest
    normals = _attribute(parts, "normals", width=3, default=0.0)
    if y_up:
        vertices = _upright(vertices)
        normals = None if normals is None else _upright(normals)

    number: dict[Material, int] = {}
    least_alpha: dict[Material, float] = {}  # of the colours of its vertices
    for part in parts:
        number.setdefault(part.material, len(number))
        alpha = 1.0 if part.colours is None else float(part.colours[:, 3].min())
        least_alpha[part.material] = min(alpha, least_alpha.get(part.material, 1.0))
    material = np.repeat([number[part.material] for part in parts], [len(part.faces) for part in parts])
    return Scene(
        vertices=vertices.astype(np.float32),
        faces=faces,
        material=material,
        materials=[_simplest(material, least_alpha[material]) for material in number],
        normals=normals,
        colours=_attribute(parts, "colours", width=4, default=1.0),
        uv=_attribute(parts, "uv", width=2, default=0.0),
        emissive_uv=_attribute(parts, "emissive_uv", width=2, default=0.0),
    )


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors (V, 3) at length 1; those without a direction stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _upright(points: np.ndarray) -> np.ndarray:
    """(x, y, z) with y up -> (x, -z, y) with z up."""
    return np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1)


def _with_coordinates(part: Part) -> Part:
    """A texture that is laid nowhere is not drawn."""
    material = part.material
    if material.texture is not None and part.uv is None:
        material = replace(material, texture=None)
    if material.emissive_texture is not None and part.emissive_uv is None:
        material = replace(material, emissive_texture=None)
    return part if material is part.material else replace(part, material=material)


def _attribute(parts: Sequence[Part], name: str, *, width: int, default: float) -> np.ndarray | None:
    """A vertex array of all parts, float32; `default` where a part has none or its numbers are not finite."""
    arrays = [getattr(part, name) for part in parts]
    if all(array is None for array in arrays):
        return None
    joined = np.full((sum(len(part.vertices) for part in parts), width), default, dtype=np.float32)
    start = 0
    for part, array in zip(parts, arrays, strict=True):
        if array is not None:
            joined[start : start + len(part.vertices)] = array
        start += len(part.vertices)
    return np.nan_to_num(joined, copy=False, nan=default, posinf=default, neginf=default)


def _simplest(material: Material, least_alpha: float) -> Material:
    """A material through which nothing can be seen is opaque, whatever its mode."""
    least = material.factor[3] * least_alpha * (1.0 if material.texture is None else material.texture.least_alpha)
    return replace(material, alpha=Alpha.OPAQUE) if least >= NEARLY_ONE else material
