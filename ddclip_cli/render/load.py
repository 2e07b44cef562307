"""A mesh file as a scene, whatever its format: which reader reads it, which axis is up, and errors in a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ddclip_cli import console
from ddclip_cli.errors import UserError
from ddclip_cli.render.fbx import read_fbx
from ddclip_cli.render.gltf import read_gltf
from ddclip_cli.render.outside import MAX_BYTES, FilesBeside
from ddclip_cli.render.scene import Part, Scene, join
from ddclip_cli.render.threemf import read_3mf
from ddclip_cli.render.trimesh_formats import read_with_trimesh
from ddclip_cli.render.usd import read_usdz

EXTRAS = {".fbx": "fbx", ".usdz": "usd"}
"""Formats that need a package more, and the extra that brings it."""
MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf", *EXTRAS)
Y_UP = (".glb", ".gltf", ".obj", ".dae", ".fbx")

Up = Literal["auto", "y", "z"]


def load_scene(path: str | Path, *, up: Up = "auto") -> Scene:
    """Read a mesh file; `up` is the axis that points up in it, `auto` what its format says.

    Raises UserError if it is no mesh, is empty, has no extent or is too large.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise UserError(f"{path}: not a mesh format that is read here ({', '.join(MESH_SUFFIXES)})")
    if not path.is_file():
        raise UserError(f"{path}: no such mesh file")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES >> 30} GiB: simplify it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return scene_from_bytes(data, suffix, name=str(path), folder=path.parent, up=up)


def scene_from_bytes(data: bytes, suffix: str, *, name: str, folder: Path | None = None, up: Up = "auto") -> Scene:
    """The scene in the bytes of a mesh file; `folder` is where the files that it names are looked for.

    What is drawn otherwise than the file says is warned of in one sentence.
    """
    if not data:
        raise UserError(f"{name}: is empty")
    files = FilesBeside(folder, name)
    try:
        parts, y_up = _read(data, suffix, files)
        scene = join(list(parts), y_up=y_up if up == "auto" else up == "y", name=name)
        if files.refused:
            raise files.refused
    except ImportError as error:
        wanted = f"'ddclip[{EXTRAS[suffix]}]'" if suffix in EXTRAS else error.name
        raise UserError(f"{name}: {suffix} files need a package more: pip install {wanted}") from error
    except UserError as error:
        raise files.refused or error from error
    except Exception as error:  # every loader has exceptions of its own
        why = str(error).split("\n")[0] or type(error).__name__
        raise files.refused or UserError(f"{name}: cannot be read as a {suffix} mesh ({why})") from error
    if files.notes:
        console.warn(f"{name}: {'; '.join(files.notes)}")
    return scene


def _read(data: bytes, suffix: str, files: FilesBeside) -> tuple[Iterable[Part], bool]:
    """The parts in a file, and whether y is up in it."""
    if suffix == ".usdz":
        return read_usdz(data, files)
    parts: Iterable[Part]
    if suffix in (".glb", ".gltf"):
        parts = read_gltf(data, suffix, files)
    elif suffix == ".3mf":
        parts = read_3mf(data, files)
    elif suffix == ".fbx":
        parts = read_fbx(data, files)
    else:
        parts = read_with_trimesh(data, suffix, files)
    return parts, suffix in Y_UP
