"""A mesh file as the renderer wants it: one list of triangles in z-up axes, its colours linear."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli import console
from ddclip_cli.errors import UserError
from ddclip_cli.render.materials import Textures, surface_of, to_linear, without_shared_corners
from ddclip_cli.render.outside import MAX_BYTES, FilesBeside, check_archive, check_gltf, check_off, check_triangles

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf")
Y_UP = (".glb", ".gltf", ".obj", ".dae")
GLTF = (".glb", ".gltf")


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
    """Read a mesh file. Raises UserError if it is not one, is empty, has no extent or is too large."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise UserError(f"{path}: not a mesh format that is read here ({', '.join(MESH_SUFFIXES)})")
    if not path.is_file():
        raise UserError(f"{path}: no such mesh file")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES >> 30} GiB: simplify it")
    return scene_from_bytes(path.read_bytes(), suffix, name=str(path), folder=path.parent)


def scene_from_bytes(data: bytes, suffix: str, *, name: str, folder: Path | None = None) -> Scene:
    """The scene in the bytes of a mesh file; `folder` is where the files that it names are looked for.

    What is drawn otherwise than the file says is warned of in one sentence.
    """
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)
    if not data:
        raise UserError(f"{name}: is empty")
    files, textures, notes = FilesBeside(folder, name), Textures(name), []
    try:
        if suffix in GLTF:
            notes += check_gltf(data, suffix, files)
        elif suffix == ".3mf":
            check_archive(data, name)
        resolver: Any = files  # has the methods of trimesh's own resolvers
        loaded = trimesh.load_scene(io.BytesIO(data), file_type=suffix.lstrip("."), resolver=resolver, process=False)
        if files.refused:
            raise files.refused
        nodes = [(matrix, loaded.geometry[mesh]) for matrix, mesh in map(loaded.graph.get, loaded.graph.nodes_geometry)]
        triangles = sum(len(_faces(mesh)) for _, mesh in nodes)
        check_triangles(triangles, name)
        if suffix == ".off":
            check_off(data, triangles, name)
        parts = [_part(mesh, matrix, textures, gltf=suffix in GLTF) for matrix, mesh in nodes if len(_faces(mesh))]
    except ImportError as error:
        raise UserError(f"{name}: {suffix} files need a package more: pip install {error.name}") from error
    except UserError as error:
        raise files.refused or error from error
    except Exception as error:  # every loader has exceptions of its own
        why = str(error).split("\n")[0] or type(error).__name__
        raise files.refused or UserError(f"{name}: cannot be read as a {suffix} mesh ({why})") from error
    if not parts:
        raise UserError(f"{name}: holds no triangles")
    scene = _join(parts, textures, y_up=suffix in Y_UP, name=name)
    notes += [f"{lost!r} is missing or unreadable, drawn without" for lost in dict.fromkeys(files.lost)]
    notes += sorted(textures.notes)
    if notes:
        console.warn(f"{name}: {'; '.join(notes)}")
    return scene


def _faces(mesh: Any) -> np.ndarray:
    """(T, 3) int64; lines and points have none."""
    return np.asarray(getattr(mesh, "faces", ()), dtype=np.int64).reshape(-1, 3)


def _part(mesh: Any, matrix: np.ndarray, textures: Textures, *, gltf: bool) -> dict[str, np.ndarray]:
    """Triangles of one node of the scene graph, in world axes."""
    faces, vertices = _faces(mesh), np.asarray(mesh.vertices, dtype=np.float64)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError("triangles of vertices that are not there")
    normals = np.zeros_like(vertices)
    if "vertex_normals" in mesh._cache.cache:  # those of the file; trimesh would make up its own
        normals = np.asarray(mesh.vertex_normals) @ np.linalg.pinv(matrix[:3, :3])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    if mesh.visual.kind == "face":  # a corner cannot have the colours of two faces
        corners, srgb = without_shared_corners(mesh)
        vertices, normals, faces = vertices[corners], normals[corners], np.arange(len(corners)).reshape(-1, 3)
        colours, uv, texture = to_linear(srgb), np.zeros((len(corners), 2)), -1
    else:
        colours, uv, texture = surface_of(mesh, textures, gltf=gltf)
    with np.errstate(invalid="ignore"):  # what is not finite is found when all parts are joined
        vertices = vertices @ matrix[:3, :3].T + matrix[:3, 3]
    return {
        "vertices": vertices,
        "faces": faces,
        "normals": normals,
        "colours": colours,
        "uv": uv,
        "texture": np.full(len(faces), texture, dtype=np.int64),
    }


def _join(parts: list[dict[str, np.ndarray]], textures: Textures, *, y_up: bool, name: str) -> Scene:
    vertices = np.concatenate([part["vertices"] for part in parts])
    normals = np.concatenate([part["normals"] for part in parts])
    if y_up:  # (x, y, z) -> (x, -z, y)
        vertices, normals = (np.stack([a[:, 0], -a[:, 2], a[:, 1]], axis=1) for a in (vertices, normals))
    offsets = np.cumsum([0] + [len(part["vertices"]) for part in parts[:-1]])
    faces = np.concatenate([part["faces"] + offset for part, offset in zip(parts, offsets, strict=True)])
    low, high = vertices[faces.ravel()].min(0), vertices[faces.ravel()].max(0)
    longest = float((high - low).max())
    if not np.isfinite(longest):
        raise UserError(f"{name}: has vertices that are not finite numbers")
    if not longest > 0:
        raise UserError(f"{name}: its bounding box has no extent")
    if not all(np.isfinite(part["uv"]).all() for part in parts):
        textures.notes.add("texture coordinates that are not finite are taken as 0")
    return Scene(
        vertices=((vertices - (low + high) / 2) / longest).astype(np.float32),
        faces=faces,
        normals=normals.astype(np.float32),
        colours=np.concatenate([part["colours"] for part in parts]).astype(np.float32),
        uv=np.nan_to_num(np.concatenate([part["uv"] for part in parts]), posinf=0.0, neginf=0.0).astype(np.float32),
        texture=np.concatenate([part["texture"] for part in parts]),
        textures=textures.pictures,
    )
