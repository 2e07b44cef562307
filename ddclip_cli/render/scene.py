"""A mesh file as the renderer wants it: one list of triangles in z-up axes, its colours linear."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddclip_cli import console
from ddclip_cli.errors import UserError

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf")
Y_UP = (".glb", ".gltf", ".obj", ".dae")
MAX_TEXTURE = 1024  # pixels a side; larger ones are reduced first
GREY = (0.5, 0.5, 0.5, 1.0)  # sRGB, for files that say nothing


@dataclass(frozen=True)
class Scene:
    """Triangles of an object: bounding box centred on the origin, longest side 1, z up."""

    vertices: np.ndarray  # (V, 3) float32
    faces: np.ndarray  # (T, 3) int64
    normals: np.ndarray  # (V, 3) float32 unit length; all zero where the face's own normal is meant
    colours: np.ndarray  # (V, 3) float32 linear, the material's factor multiplied in
    uv: np.ndarray  # (V, 2) float32, v runs up
    texture: np.ndarray  # (T,) int64 index into textures, -1 for none
    textures: list[np.ndarray] = field(default_factory=list)  # (H, W, 3) uint8 sRGB


def load_scene(path: str | Path) -> Scene:
    """Read a mesh file. Raises UserError if it is not one, is empty or has no extent."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise UserError(f"{path}: not a mesh format that is read here ({', '.join(MESH_SUFFIXES)})")
    if not path.is_file():
        raise UserError(f"{path}: no such mesh file")
    return scene_from_bytes(path.read_bytes(), suffix, name=str(path), folder=path.parent)


def scene_from_bytes(data: bytes, suffix: str, *, name: str, folder: Path | None = None) -> Scene:
    """The scene in the bytes of a mesh file; `folder` is where the files that it names are looked for."""
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)
    resolver = trimesh.resolvers.FilePathResolver(str(folder)) if folder else None
    try:
        loaded = trimesh.load_scene(io.BytesIO(data), file_type=suffix.lstrip("."), resolver=resolver, process=False)
    except Exception as error:  # every loader has exceptions of its own
        raise UserError(f"{name}: cannot be read as a {suffix} mesh ({type(error).__name__}: {error})") from error
    parts = [_part(loaded, node, name) for node in loaded.graph.nodes_geometry]
    parts = [part for part in parts if part is not None]
    if not parts:
        raise UserError(f"{name}: holds no triangles")
    return _join(parts, y_up=suffix in Y_UP, name=name)


def _part(loaded: Any, node: str, name: str) -> dict[str, Any] | None:
    """Triangles of one node of the scene graph, in world axes."""
    matrix, geometry_name = loaded.graph[node]
    mesh = loaded.geometry[geometry_name]
    faces = np.asarray(getattr(mesh, "faces", ()), dtype=np.int64).reshape(-1, 3)
    if not len(faces):
        return None
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if not np.isfinite(vertices).all() or faces.min() < 0 or faces.max() >= len(vertices):
        raise UserError(f"{name}: has vertices that are not finite, or triangles of vertices that are not there")
    normals = np.zeros_like(vertices)
    if "vertex_normals" in mesh._cache.cache:  # those of the file; trimesh would make up its own
        normals = np.asarray(mesh.vertex_normals) @ np.linalg.pinv(matrix[:3, :3])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    colour, uv, texture = _surface(mesh, len(vertices))
    return {
        "vertices": vertices @ matrix[:3, :3].T + matrix[:3, 3],
        "faces": faces,
        "normals": normals,
        "colours": colour,
        "uv": uv,
        "texture": texture,
    }


def _surface(mesh: Any, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Linear colours (V, 3), texture coordinates (V, 2) and the texture (H, W, 3) uint8 sRGB of a mesh."""
    visual = mesh.visual
    uv = np.zeros((count, 2))
    if visual.kind == "vertex" or visual.kind == "face":
        colours = np.asarray(visual.vertex_colors, dtype=np.float64)[:, :3] / 255
        return colours if visual.kind == "vertex" and _is_gltf(mesh) else to_linear(colours), uv, None
    material = getattr(visual, "material", None)
    factor, picture = to_linear(np.array(GREY[:3])), None
    if hasattr(material, "baseColorFactor"):
        base = material.baseColorFactor
        factor = np.ones(3) if base is None else _unit(base)[:3]
        picture = material.baseColorTexture
    elif material is not None:
        picture = getattr(material, "image", None)
        diffuse = getattr(material, "diffuse", None)
        if picture is not None:
            factor = np.ones(3)
        elif diffuse is not None:
            factor = to_linear(_unit(diffuse)[:3])
    if picture is None or getattr(visual, "uv", None) is None:
        return np.tile(factor, (count, 1)), uv, None
    if max(picture.size) > MAX_TEXTURE:
        picture = picture.copy()
        picture.thumbnail((MAX_TEXTURE, MAX_TEXTURE), Image.Resampling.BOX)
    return np.tile(factor, (count, 1)), np.asarray(visual.uv, dtype=np.float64)[:, :2], np.asarray(picture.convert("RGB"))


def _is_gltf(mesh: Any) -> bool:
    return str(mesh.metadata.get("file_type", "")) in ("glb", "gltf")


def _unit(colour: Any) -> np.ndarray:
    """trimesh keeps some colours as bytes and some as fractions."""
    colour = np.asarray(colour)
    return colour / 255 if colour.dtype.kind in "ui" else colour.astype(np.float64)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] as linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _join(parts: list[dict[str, Any]], *, y_up: bool, name: str) -> Scene:
    vertices = np.concatenate([part["vertices"] for part in parts])
    normals = np.concatenate([part["normals"] for part in parts])
    if y_up:  # (x, y, z) -> (x, -z, y)
        vertices, normals = (np.stack([a[:, 0], -a[:, 2], a[:, 1]], axis=1) for a in (vertices, normals))
    offsets = np.cumsum([0] + [len(part["vertices"]) for part in parts[:-1]])
    faces = np.concatenate([part["faces"] + offset for part, offset in zip(parts, offsets, strict=True)])
    low, high = vertices[faces.ravel()].min(0), vertices[faces.ravel()].max(0)
    longest = float((high - low).max())
    if not longest > 0:
        raise UserError(f"{name}: its bounding box has no extent")
    textures: list[np.ndarray] = []
    texture = []
    for part in parts:
        index = -1
        if part["texture"] is not None:
            index = len(textures)
            textures.append(part["texture"])
        texture.append(np.full(len(part["faces"]), index, dtype=np.int64))
    if any(np.isnan(part["uv"]).any() for part in parts):
        console.warn(f"{name}: some texture coordinates are not numbers and are taken as 0")
    return Scene(
        vertices=((vertices - (low + high) / 2) / longest).astype(np.float32),
        faces=faces,
        normals=normals.astype(np.float32),
        colours=np.concatenate([part["colours"] for part in parts]).astype(np.float32),
        uv=np.nan_to_num(np.concatenate([part["uv"] for part in parts])).astype(np.float32),
        texture=np.concatenate(texture),
        textures=textures,
    )
