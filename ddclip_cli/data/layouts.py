"""Folders of pictures that can be packed: where their objects are, and which pictures are an object's views."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddclip_cli.data import pictures
from ddclip_cli.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Layout:
    """One way to lay objects out in folders. Functions of this module, so that a worker process can be handed one."""

    name: str
    objects: Callable[[Path], Iterator[tuple[str, Path]]]
    """Root -> (object_id, folder of its pictures), in no promised order."""
    views: Callable[[Path, int], list[Path]]
    """Folder, F -> F picture files; raises TooFewViewsError."""
    read: Callable[[Path | BinaryIO, int], np.ndarray]
    """Picture file, size -> (3, size, size) uint8."""
    leaves_out_short: bool = False
    """An object with fewer views than asked for is left out, and is no error."""


class TooFewViewsError(UserError):
    """An object has fewer pictures than views are wanted."""


def detect(root: Path) -> Layout:
    """The layout of `root`, told from the first folders that are typical of one."""
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {state}: give a folder that holds one folder of pictures per object")
    found = None
    for folder in _folders(root):
        if (folder / "000.png").is_file():
            return LAYOUTS["zero123"]
        if folder.name.startswith("mvi_") and next(_mvimgnet_objects(root), None):
            return LAYOUTS["mvimgnet"]
        if found is None and _pictures_in(folder):
            found = LAYOUTS["images"]
    if found is None:
        raise UserError(f"{root} holds no folders of pictures: the pictures of every object must lie in a folder of it")
    return found


def _folders(root: Path) -> Iterator[Path]:
    """Folders in `root`; hidden ones are unfinished output of other programs."""
    with os.scandir(root) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir():
                yield Path(entry.path)


def _pictures_in(folder: Path, suffixes: tuple[str, ...] = PICTURES) -> list[Path]:
    """Picture files of a folder, sorted by name."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(suffixes) and not e.name.startswith("."))
    return [folder / name for name in names]


def _one_folder_an_object(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in _folders(root):
        yield folder.name, folder


def _mvimgnet_objects(root: Path) -> Iterator[tuple[str, Path]]:
    for images in root.glob("mvi_*/*/*/images"):
        yield f"{images.parent.parent.name}_{images.parent.name}", images


def _numbered(folder: Path, num_views: int) -> list[Path]:
    """000.png, 001.png, ..."""
    files = [folder / f"{view:03d}.png" for view in range(num_views)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise TooFewViewsError(f"{len(missing)} of {num_views} views are missing, the first is {missing[0]}")
    return files


def _spread(folder: Path, num_views: int) -> list[Path]:
    """Every (count // F)-th of the sorted pictures, F of them, as the reference picks MVImgNet's views."""
    return _every_nth(_pictures_in(folder), num_views)


def _spread_jpegs(folder: Path, num_views: int) -> list[Path]:
    return _every_nth(_pictures_in(folder, (".jpg",)), num_views)


def _every_nth(files: list[Path], num_views: int) -> list[Path]:
    if len(files) < num_views:
        raise TooFewViewsError(f"{len(files)} pictures are fewer than the {num_views} views wanted")
    return files[:: len(files) // num_views][:num_views]


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("zero123", _one_folder_an_object, _numbered, pictures.read_render),
        Layout("mvimgnet", _mvimgnet_objects, _spread_jpegs, pictures.read_video_frame, leaves_out_short=True),
        Layout("images", _one_folder_an_object, _spread, pictures.read_photo),
    )
}
