"""A 3D library as its owner has it: view stores, meshes, renders, photos and folders of all these, found and read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from ddclip_cli.data.layouts import LAYOUTS, PICTURES, TooFewViewsError
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.render.camera import Camera
from ddclip_cli.render.folder import ObjectIds
from ddclip_cli.render.load import MESH_SUFFIXES, Up
from ddclip_cli.render.named_files import bytes_named
from ddclip_cli.search.views import mesh_views

STORE_SUFFIXES = (".h5", ".hdf5")
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)  # there may be a million
class LibraryObject:
    """One object, and where its views come from."""

    object_id: str
    kind: Literal["store", "mesh", "zero123", "mvimgnet", "images"]
    path: Path
    """The view store, the mesh file or the folder of pictures."""
    row: int = 0
    """In a view store."""
    ids: Path | None = None
    """The JSON of the store's rows, if it was named."""


@dataclass(frozen=True)
class ViewSettings:
    """How views are made where they are not stored."""

    num_views: int = 12
    """So many of each object; a folder of photos may have fewer."""
    size: int = 224
    """Side of a view in pixels, as packed."""
    render_size: int = 512
    """Side of a rendered view, before it is brought to `size`."""
    camera: Camera = "zero123"
    seed: int = 0
    up: Up = "auto"
    """The axis that points up in the meshes."""


def find_objects(
    sources: Sequence[str | Path], ids: str | Path | None = None, *, object_ids: ObjectIds = "name"
) -> list[LibraryObject]:
    """The objects of all sources, in their order; inside one, by row of a store, else sorted by id.

    A source is a view store, a mesh file, or a folder: of meshes, of pictures of one object, or of such folders.
    Pictures beside or below a mesh are its textures. An object's id is the name of its mesh file without suffix, or of
    its folder of pictures; meshes of one name (`chair/model.glb`, `sofa/model.glb`) are called as their folders are.

    Args:
        ids: the JSON of rows of the one view store among the sources.
        object_ids: "path" calls every mesh in a folder by its whole path below it, as `render --object-ids path` does.

    Raises:
        UserError: a source is not there or holds nothing, or two objects have one id.
    """
    stores = [source for source in sources if Path(source).suffix.lower() in STORE_SUFFIXES]
    if ids is not None and len(stores) != 1:
        raise UsageError(f"{ids} gives the rows of one view store, but {len(stores)} are among the sources")
    found: list[LibraryObject] = []
    for source in map(Path, sources):
        if source.suffix.lower() in STORE_SUFFIXES and not source.is_dir():
            rows = Path(ids) if ids is not None else None
            store = ViewStore(source, rows)
            found += [LibraryObject(name, "store", source, row, rows) for row, name in enumerate(store.ids)]
        elif source.is_dir():
            found += _in_folder(source, object_ids)
        elif not source.exists():
            raise UserError(f"{source}: no such file or folder")
        elif source.suffix.lower() in MESH_SUFFIXES:
            found.append(LibraryObject(source.stem, "mesh", source))
        elif source.suffix.lower() in PICTURES:
            raise UserError(f"{source} is one picture: give the folder that holds the pictures of its object")
        else:
            raise UserError(f"{source} is neither a view store (.h5) nor a mesh ({', '.join(MESH_SUFFIXES)})")
    first: dict[str, LibraryObject] = {}
    for thing in found:
        other = first.setdefault(thing.object_id, thing)
        if other is not thing:
            hint = ", or give --set render.object_ids=path" if object_ids == "name" else ""
            raise UserError(
                f"{other.path} and {thing.path} would both be object {thing.object_id!r}: rename one of them{hint}"
            )
    return found


def check_stores(objects: Iterable[LibraryObject], num_views: int) -> None:
    """Raise UserError if a view store among the objects has fewer views than are asked for."""
    for path, ids in dict.fromkeys((thing.path, thing.ids) for thing in objects if thing.kind == "store"):
        stored = _store(path, ids).num_views
        if num_views > stored:
            raise UserError(
                f"{num_views} views were asked for, but the store has {stored} of each object: lower --num-views"
            )


def read_object(thing: LibraryObject, settings: ViewSettings) -> tuple[np.ndarray, bytes]:
    """Views (F, 3, S, S) uint8 of an object and the digest of what they come from.

    Raises UserError, one sentence about the object, if there are none to be had.
    """
    if thing.kind == "store":
        views = _store(thing.path, thing.ids).read([thing.row], np.arange(settings.num_views))[0]
        return views, _digest([views])
    try:
        if thing.kind == "mesh":
            return _rendered(thing.path, settings), digest_of(thing, settings)
        layout = LAYOUTS[thing.kind]
        files = _picture_files(thing, settings.num_views)
        return np.stack([_picture(layout.read, file, settings.size) for file in files]), digest_of(thing, settings)
    except OSError as error:
        raise UserError(f"{thing.path}: cannot be read ({error.strerror or error})") from None


def digest_of(thing: LibraryObject, settings: ViewSettings) -> bytes:
    """The digest of an object's files, or of its pictures in a store: another one when its views may be others.

    Files that a mesh names are among them.
    """
    if thing.kind == "store":
        return _digest([_store(thing.path, thing.ids).read([thing.row], np.arange(settings.num_views))])
    if thing.kind == "mesh":
        return _digest(bytes_named(thing.path))
    return _digest(file.read_bytes() for file in _picture_files(thing, settings.num_views))


def _in_folder(root: Path, object_ids: ObjectIds) -> list[LibraryObject]:
    meshes: list[Path] = []
    folders: list[LibraryObject] = []
    _walk(root, meshes, folders, textures=False, seen=set())
    found = sorted(_named(meshes, root, object_ids) + folders, key=lambda thing: (thing.object_id, str(thing.path)))
    if not found:
        raise UserError(f"{root}: holds no mesh ({', '.join(MESH_SUFFIXES)}) and no folder of pictures")
    return found


def _walk(
    folder: Path, meshes: list[Path], folders: list[LibraryObject], *, textures: bool, seen: set[tuple[int, int]]
) -> None:
    """Collect meshes and folders of pictures; with `textures`, pictures belong to a mesh above and are no object."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:  # a link that leads back
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:  # hidden entries are what other programs left there
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    own = [Path(entry.path) for entry in visible if entry.name.lower().endswith(MESH_SUFFIXES) and entry.is_file()]
    meshes += own
    textures = textures or bool(own)
    pictures = [entry.name for entry in visible if entry.name.lower().endswith(PICTURES) and entry.is_file()]
    if pictures and not textures:
        folders.append(_pictured(folder, pictures))
        return  # what lies below the pictures of an object are not other objects
    for entry in visible:
        if entry.is_dir():
            _walk(Path(entry.path), meshes, folders, textures=textures, seen=seen)


def _pictured(folder: Path, pictures: Sequence[str]) -> LibraryObject:
    """A folder of pictures, named as packing names it."""
    frames = folder.name == "images" and any(parent.name.startswith("mvi_") for parent in folder.parents)
    if frames:  # MVImgNet: mvi_*/<class>/<object>/images
        return LibraryObject(f"{folder.parent.parent.name}_{folder.parent.name}", "mvimgnet", folder)
    return LibraryObject(folder.resolve().name, "zero123" if "000.png" in pictures else "images", folder)


def _named(meshes: Sequence[Path], root: Path, object_ids: ObjectIds) -> list[LibraryObject]:
    stems = Counter(mesh.stem for mesh in meshes)
    above = Counter(mesh.parent.name for mesh in meshes if stems[mesh.stem] > 1)
    names = []
    for mesh in meshes:
        if object_ids == "path":
            names.append("_".join(mesh.relative_to(root).parts))
        elif stems[mesh.stem] == 1:
            names.append(mesh.stem)
        elif above[mesh.parent.name] == 1 and mesh.parent != root and mesh.parent.name not in stems:
            names.append(mesh.parent.name)
        else:
            names.append(mesh.relative_to(root).with_suffix("").as_posix())
    return [LibraryObject(name, "mesh", mesh) for name, mesh in zip(names, meshes, strict=True)]


def _picture_files(thing: LibraryObject, num_views: int) -> list[Path]:
    """The files of an object's views; of photos there may be fewer than `num_views`."""
    layout = LAYOUTS[thing.kind]
    if thing.kind == "images":
        with os.scandir(thing.path) as entries:
            count = sum(e.name.lower().endswith(PICTURES) and not e.name.startswith(".") for e in entries)
        num_views = max(1, min(num_views, count))
    try:
        return layout.views(thing.path, num_views)
    except TooFewViewsError as error:
        raise UserError(f"{thing.path}: {error}") from None


def _picture(read: Callable[[Path, int], np.ndarray], file: Path, size: int) -> np.ndarray:
    try:
        return read(file, size)
    except Exception as error:  # PIL raises whatever a decoder comes upon in a broken file
        reason = str(error).split("\n")[0].replace(f" {str(file)!r}", "") or type(error).__name__
        raise UserError(f"{file}: cannot be read ({reason})") from None


def _rendered(mesh: Path, settings: ViewSettings) -> np.ndarray:
    try:
        return mesh_views(
            mesh,
            settings.size,
            image_size=settings.render_size,
            num_views=settings.num_views,
            camera=settings.camera,
            seed=settings.seed,
            up=settings.up,
        )
    except (MemoryError, RuntimeError) as error:  # no more memory
        raise UserError(f"{mesh}: cannot be drawn ({str(error).split(chr(10))[0] or type(error).__name__})") from None


@lru_cache(maxsize=8)
def _store(path: Path, ids: Path | None) -> ViewStore:
    return ViewStore(path, ids)


def _digest(parts: Iterable[bytes | np.ndarray]) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else part)
    return digest.digest()
