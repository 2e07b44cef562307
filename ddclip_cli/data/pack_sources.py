"""What can be packed: objects in folders, or in the tar archive that Zero123's renders are published as."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from ddclip_cli.console import log
from ddclip_cli.data import archives
from ddclip_cli.data.layouts import LAYOUTS, Layout, TooFewViewsError, detect
from ddclip_cli.errors import UsageError, UserError, some

Pictures = Path | list[bytes] | str
"""An object's pictures: their folder, the pictures themselves, or why there are none."""


class Source(Protocol):
    """Objects to pack."""

    path: Path
    layout: Layout
    trouble: str | None
    """Why `pictures` ended before its time, a sentence without its end."""

    def ids(self) -> list[str] | None:
        """All objects in their order; None if only reading everything can tell."""
        ...

    def why_missing(self, object_id: str) -> str | None:
        """The reason, if the object is certainly not there."""
        ...

    def pictures(self, wanted: Collection[str] | None, done: Collection[str]) -> Iterator[tuple[str, Pictures]]:
        """The wanted objects (None: all) that are not done."""
        ...


def open_source(path: Path, layout: str, num_views: int, supplement: Collection[str]) -> Source:
    """The folder or archive `path`; `layout` "auto" is told from it. Objects of the `supplement` are not counted."""
    if layout != "auto" and layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is unknown: choose auto, {', '.join(LAYOUTS)}")
    if path.is_file():
        if layout not in ("auto", "zero123"):
            raise UsageError(f"{path} is a file, and only layout zero123 is read from an archive: give a folder")
        return TarSource(path, num_views)
    detected = detect(path)  # says what is wrong with a folder, even if the layout is known
    return FolderSource(path, detected if layout == "auto" else LAYOUTS[layout], num_views, supplement)


class FolderSource:
    """Objects in folders."""

    trouble: str | None = None

    def __init__(self, path: Path, layout: Layout, num_views: int, supplement: Collection[str]) -> None:
        self.path, self.layout, self.num_views = path, layout, num_views
        self._supplement = supplement
        self._folders: dict[str, Path] = {}
        for object_id, folder in layout.objects(path):
            other = self._folders.setdefault(object_id, folder)
            if other is not folder:
                raise UserError(f"{other} and {folder} are both object {object_id!r}: keep one of them")

    def ids(self) -> list[str]:
        """Sorted, less those that the layout leaves out."""
        found = sorted(object_id for object_id in self._folders if object_id not in self._supplement)
        if self.layout.leaves_out_short:
            short = {object_id for object_id in found if self._is_short(object_id)}
            if short:
                log(f"left out {len(short)} objects with fewer than {self.num_views} pictures: {some(sorted(short))}")
            found = [object_id for object_id in found if object_id not in short]
        if not found and not self._supplement:
            raise UserError(f"{self.path} holds no object of layout {self.layout.name}: choose another --layout")
        return found

    def why_missing(self, object_id: str) -> str | None:
        nor = " nor in the supplement" if self._supplement else ""
        return None if object_id in self._folders else f"not in {self.path}{nor}"

    def pictures(self, wanted: Collection[str] | None, done: Collection[str]) -> Iterator[tuple[str, Path]]:
        assert wanted is not None
        return ((object_id, self._folders[object_id]) for object_id in wanted if object_id not in done)

    def _is_short(self, object_id: str) -> bool:
        try:
            self.layout.views(self._folders[object_id], self.num_views)
        except TooFewViewsError:
            return True
        return False


class TarSource:
    """Objects in an archive of Zero123's layout, which is read once from its beginning and never unpacked to disk."""

    layout = LAYOUTS["zero123"]

    def __init__(self, path: Path, num_views: int) -> None:
        self.path, self.num_views = path, num_views
        self.trouble: str | None = None
        archives.check(path)

    def ids(self) -> None:
        return None

    def why_missing(self, object_id: str) -> None:
        return None

    def pictures(self, wanted: Collection[str] | None, done: Collection[str]) -> Iterator[tuple[str, Pictures]]:
        try:
            yield from archives.numbered_pictures(self.path, self.num_views, wanted, done)
        except archives.CutOffError as error:
            self.trouble = str(error)


def read_views(source: Pictures, layout: Layout, num_views: int, image_size: int) -> np.ndarray | str:
    """Views of one object (F, 3, S, S) uint8, or why they cannot be read. Runs in a worker process."""
    if isinstance(source, str):
        return source
    views = np.empty((num_views, 3, image_size, image_size), np.uint8)
    try:
        named = _named(source, layout, num_views)
        for view, (name, file) in enumerate(named):
            try:
                views[view] = layout.read(file, image_size)
            except Exception as error:  # PIL raises whatever a decoder comes upon in a broken file
                reason = str(error).split("\n")[0].replace(f" {str(file)!r}", "")
                return f"{name} cannot be read ({reason or type(error).__name__})"
    except TooFewViewsError as error:
        return str(error)
    except OSError as error:
        return f"its folder cannot be read ({error.strerror})"
    return views


def _named(source: Path | list[bytes], layout: Layout, num_views: int) -> Sequence[tuple[str, Path | BinaryIO]]:
    if isinstance(source, Path):
        return [(file.name, file) for file in layout.views(source, num_views)]
    return [(f"{view:03d}.png", io.BytesIO(data)) for view, data in enumerate(source)]
