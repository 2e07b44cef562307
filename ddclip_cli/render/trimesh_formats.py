"""OBJ, PLY, STL, OFF and COLLADA as parts of a scene, by way of trimesh and its many ways to keep a surface."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ddclip_cli.render.outside import FilesBeside, check_off, check_triangles
from ddclip_cli.render.scene import WHITE, Alpha, Material, Part, Texture, unit_rows
from ddclip_cli.render.tone import to_linear

FILLED_IN = (102, 102, 102, 255)  # trimesh's grey where a file has no colour


def read_with_trimesh(data: bytes, suffix: str, files: FilesBeside) -> Iterator[Part]:
    """The parts of a mesh file in its own axes; what is drawn otherwise than it says goes to `files.notes`."""
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)
    resolver: Any = files  # has the methods of trimesh's own resolvers
    loaded = trimesh.load_scene(io.BytesIO(data), file_type=suffix.lstrip("."), resolver=resolver, process=False)
    nodes = [(matrix, loaded.geometry[mesh]) for matrix, mesh in map(loaded.graph.get, loaded.graph.nodes_geometry)]
    triangles = sum(len(_faces(mesh)) for _, mesh in nodes)
    check_triangles(triangles, files.name)
    if suffix == ".off":
        check_off(data, triangles, files.name)
    materials = _Materials(files)
    return (_part(mesh, matrix, materials) for matrix, mesh in nodes if len(_faces(mesh)))


def _faces(mesh: Any) -> np.ndarray:
    """(T, 3); lines and points have none."""
    return np.asarray(getattr(mesh, "faces", ())).reshape(-1, 3)


def _part(mesh: Any, matrix: np.ndarray, materials: _Materials) -> Part:
    """Triangles of one node of the scene graph, in world axes."""
    faces, vertices, visual = _faces(mesh), np.asarray(mesh.vertices, dtype=np.float64), mesh.visual
    if not np.array_equal(matrix, np.eye(4)):
        with np.errstate(invalid="ignore"):  # what is not finite is found when all parts are joined
            vertices = vertices @ matrix[:3, :3].T + matrix[:3, 3]
    normals = None
    if "vertex_normals" in mesh._cache.cache:  # those of the file; trimesh would make up its own
        normals = unit_rows(np.asarray(mesh.vertex_normals) @ np.linalg.pinv(matrix[:3, :3]))
    if visual.kind == "face":  # a corner cannot have the colours of two faces
        corners = faces.ravel()
        colours = _linear(np.repeat(_unit(visual.face_colors), 3, axis=0))
        normals = None if normals is None else normals[corners]
        return Part(vertices[corners], np.arange(len(corners)).reshape(-1, 3), WHITE, normals, colours)
    if visual.kind == "vertex":
        return Part(vertices, faces, WHITE, normals, _linear(_unit(visual.vertex_colors)))
    material = materials.of(getattr(visual, "material", None))
    uv = getattr(visual, "uv", None)
    return Part(vertices, faces, material, normals, uv=None if uv is None else np.asarray(uv)[:, :2])


class _Materials:
    """Materials of trimesh as ours, each once; colours of these formats are sRGB."""

    def __init__(self, files: FilesBeside) -> None:
        self.files = files
        self.of = cache(self._of)
        self._textures: dict[int, tuple[Image.Image, Texture | None]] = {}  # holding a picture, its id stays its own

    def _of(self, material: Any) -> Material:
        if material is None:
            return Material()
        if hasattr(material, "baseColorFactor"):  # COLLADA
            base, picture = material.baseColorFactor, material.baseColorTexture
            colour = np.ones(4) if base is None else _unit(base)
            alpha = float(colour[3])
        else:  # .mtl; exporters write any colour beside a picture
            base, picture = getattr(material, "diffuse", None), getattr(material, "image", None)
            if getattr(picture, "format", None) is None:  # not from a file: trimesh fills in one of 2 x 2
                picture = None
            if picture is None and (base is None or np.array_equal(base, FILLED_IN)):
                return Material()
            colour = np.ones(4) if picture is not None else _unit(base)
            alpha = self._dissolved(material)
        texture = None if picture is None else self._texture(picture)
        kind = Alpha.BLEND if 0 < alpha < 1 else Alpha.OPAQUE
        return Material((*_linear(colour[None])[0, :3].tolist(), alpha or 1.0), texture, alpha=kind)

    def _dissolved(self, material: Any) -> float:
        """How opaque an .mtl says that its material is; exporters also write 0 where they mean 1."""
        kwargs = getattr(material, "kwargs", {})
        if "map_d" in kwargs:
            self.files.note("a picture of what one sees through (map_d) is not drawn")
        try:
            alpha = float(kwargs["d"][-1])
        except (KeyError, IndexError, ValueError):
            return 1.0
        return alpha if 0 < alpha < 1 else 1.0

    def _texture(self, picture: Image.Image) -> Texture | None:
        if id(picture) not in self._textures:
            pixels = self.files.decode_opened(picture)
            self._textures[id(picture)] = (picture, None if pixels is None else Texture(pixels))
        return self._textures[id(picture)][1]


def _linear(srgb: np.ndarray) -> np.ndarray:
    """(V, 3 or 4) sRGB colours in [0, 1] -> (V, 4) linear, opaque."""
    return np.concatenate([to_linear(srgb[:, :3]), np.ones((len(srgb), 1))], axis=1)


def _unit(colour: Any) -> np.ndarray:
    """trimesh keeps some colours as whole numbers and some as fractions."""
    colour = np.asarray(colour)
    return colour / np.iinfo(colour.dtype).max if colour.dtype.kind == "u" else colour.astype(np.float64)
