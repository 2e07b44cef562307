"""Pack folders of pictures into one view store, in the reference's format and byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli import files
from ddclip_cli.console import log, progress_bar, warn
from ddclip_cli.data.hdf5 import opened
from ddclip_cli.data.hdf5_output import NewFile, check_space, create_contiguous, create_ids, creating
from ddclip_cli.data.layouts import LAYOUTS, Layout, TooFewViewsError, detect
from ddclip_cli.data.object_ids import read_id_list, rows_file, write_rows
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UsageError, UserError, some
from ddclip_cli.ordered_pool import in_order


@dataclass(frozen=True)
class Packed:
    """What a run of `pack_store` wrote."""

    layout: str
    object_ids: list[str]
    """By row."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Object id -> why it could not be packed."""


def pack_store(
    source: str | Path,
    out: str | Path,
    *,
    layout: str = "auto",
    ids: str | Path | None = None,
    supplement: str | Path | None = None,
    supplement_ids: str | Path | None = None,
    num_views: int = 12,
    image_size: int = 224,
    jobs: int = 1,
    on_error: str = "fail",
    recipe: dict[str, Any] | None = None,
    force: bool = False,
) -> Packed:
    """Write `out`: `imgs` (N, F, 3, S, S) uint8, contiguous, and `ids`; beside it `<stem>_model_to_idx.json`.

    The attribute `made_by` of `out` is a JSON object of the layout and the `recipe`.

    Args:
        source: a folder laid out as one of `LAYOUTS`; "auto" tells which.
        ids: the objects to pack, in order (see `read_id_list`); None: all of `source`, sorted, then the supplement's.
        supplement: a view store whose objects join; an object of both comes from the supplement.
        jobs: processes that decode pictures.
        on_error: "fail" tries all objects, names the bad ones and writes nothing; "skip" leaves them out.
        recipe: the sections that the options came from.

    Raises:
        UserError: nothing to pack, objects that are missing or unreadable, no space, or `out` exists without `force`.
    """
    source, out = Path(source), Path(out)
    rows_path = rows_file(out)
    for path in (out, rows_path):
        files.refuse_existing(path, force=force)
    objects = _Objects(source, layout, supplement, supplement_ids, num_views, image_size)
    chosen = read_id_list(ids) if ids is not None else objects.all_ids()
    skipped = objects.missing(chosen)
    if skipped and on_error == "fail":
        raise UserError(
            f"{len(skipped)} of the {len(chosen)} objects of {ids} are not there: {some(list(skipped))}; "
            f"bring them to {source}, or leave them out with --on-error skip"
        )
    for object_id, reason in skipped.items():
        warn(f"{object_id}: {reason}: skipped")
    here = [object_id for object_id in chosen if object_id not in skipped]
    files.remove_leftovers(out.parent, (out.name, rows_path.name))
    check_space(out, len(here) * num_views * 3 * image_size**2)

    # The store gets its name first: it has its ids inside, and rows without it would be refused as another's.
    with files.writing(rows_path) as unfinished_rows, files.writing(out) as unfinished:
        with creating(unfinished, out) as file:
            file.attrs["made_by"] = json.dumps({"layout": objects.layout.name, "recipe": recipe})
            shape = (num_views, 3, image_size, image_size)
            packed, failed = _write_views(file, here, objects.views(here, jobs), shape)
            if failed and on_error == "fail":
                raise UserError(
                    f"{len(failed)} of {len(chosen)} objects could not be packed, for the reasons above: "
                    f"{some(list(failed))}; mend them, or leave them out with --on-error skip"
                )
            if not packed:
                raise UserError(f"none of the {len(chosen)} objects of {source} could be packed: nothing was written")
            create_ids(file, packed)
        if failed:
            _shorten(unfinished, out, packed)
        write_rows(unfinished_rows, packed)
    return Packed(objects.layout.name, packed, skipped | failed)


class _Objects:
    """The objects of a source folder and of its supplement."""

    def __init__(
        self,
        source: Path,
        layout: str,
        supplement: str | Path | None,
        supplement_ids: str | Path | None,
        num_views: int,
        image_size: int,
    ) -> None:
        if layout != "auto" and layout not in LAYOUTS:
            raise UsageError(f"layout {layout!r} is unknown: choose auto, {', '.join(LAYOUTS)}")
        if supplement is None and supplement_ids is not None:
            raise UsageError(f"{supplement_ids} gives the rows of no supplement: name the store too, with --supplement")
        self.source, self.num_views, self.image_size = source, num_views, image_size
        detected = detect(source)  # says what is wrong with a folder, even if the layout is known
        self.layout = detected if layout == "auto" else LAYOUTS[layout]
        self.folders = self._find_folders()
        self.supplement = _open_supplement(supplement, supplement_ids, num_views, image_size) if supplement else None
        self.supplement_row = {i: row for row, i in enumerate(self.supplement.ids)} if self.supplement else {}

    def _find_folders(self) -> dict[str, Path]:
        folders: dict[str, Path] = {}
        for object_id, folder in self.layout.objects(self.source):
            if object_id in folders:
                raise UserError(f"{folders[object_id]} and {folder} are both object {object_id!r}: keep one of them")
            folders[object_id] = folder
        return folders

    def all_ids(self) -> list[str]:
        """Sorted ids of the folder, less those that its layout leaves out, then the supplement's in their order."""
        found = sorted(object_id for object_id in self.folders if object_id not in self.supplement_row)
        if self.layout.leaves_out_short:
            short = {object_id for object_id in found if self._is_short(self.folders[object_id])}
            if short:
                log(f"left out {len(short)} objects with fewer than {self.num_views} pictures: {some(sorted(short))}")
            found = [object_id for object_id in found if object_id not in short]
        if not found and not self.supplement_row:
            raise UserError(f"{self.source} holds no object of layout {self.layout.name}: choose another --layout")
        return found + list(self.supplement_row)

    def _is_short(self, folder: Path) -> bool:
        try:
            self.layout.views(folder, self.num_views)
        except TooFewViewsError:
            return True
        return False

    def missing(self, object_ids: Sequence[str]) -> dict[str, str]:
        reason = f"not in {self.source}" + ("" if self.supplement is None else " nor in the supplement")
        return {i: reason for i in object_ids if i not in self.folders and i not in self.supplement_row}

    def views(self, object_ids: Sequence[str], jobs: int) -> Iterator[np.ndarray | str]:
        """Of every object in order: its views (F, 3, S, S) uint8, or why there are none."""
        read = partial(_read_views, layout=self.layout, num_views=self.num_views, image_size=self.image_size)
        folders = [self.folders[object_id] for object_id in object_ids if object_id not in self.supplement_row]
        from_folders = in_order(read, folders, jobs=jobs)
        for object_id in object_ids:
            if self.supplement is not None and object_id in self.supplement_row:
                yield self.supplement.read([self.supplement_row[object_id]], np.arange(self.num_views))[0]
            else:
                yield next(from_folders)


def _read_views(folder: Path, *, layout: Layout, num_views: int, image_size: int) -> np.ndarray | str:
    """Views of one object (F, 3, S, S) uint8, or why they cannot be read. Runs in a worker process."""
    views = np.empty((num_views, 3, image_size, image_size), np.uint8)
    try:
        for view, file in enumerate(layout.views(folder, num_views)):
            try:
                views[view] = layout.read(file, image_size)
            except Exception as error:  # PIL raises whatever a decoder comes upon in a broken file
                reason = str(error).split("\n")[0].replace(f" {str(file)!r}", "")
                return f"{file.name} cannot be read ({reason or type(error).__name__})"
    except TooFewViewsError as error:
        return str(error)
    except OSError as error:
        return f"its folder cannot be read ({error.strerror})"
    return views


def _open_supplement(path: str | Path, ids: str | Path | None, num_views: int, image_size: int) -> ViewStore:
    store = ViewStore(path, ids)
    if store.num_views < num_views or store.image_size != image_size:
        raise UserError(
            f"{path} has {store.num_views} views of {store.image_size} pixels an object, not {num_views} of "
            f"{image_size}: choose --num-views and --size to fit the supplement"
        )
    return store


def _write_views(
    file: NewFile, object_ids: Sequence[str], results: Iterator[np.ndarray | str], shape: tuple[int, ...]
) -> tuple[list[str], dict[str, str]]:
    """Write the views that there are to `imgs`, row after row -> (ids by row, {id: reason} of the others)."""
    packed: list[str] = []
    failed: dict[str, str] = {}
    imgs = create_contiguous(file, "imgs", (len(object_ids), *shape), np.uint8)
    with progress_bar(total=len(object_ids), label="pack") as bar:
        for object_id, views in zip(object_ids, results, strict=True):
            if isinstance(views, str):
                failed[object_id] = views
                warn(f"{object_id}: {views}")
            else:
                imgs[len(packed)] = views
                file.check()
                packed.append(object_id)
            bar.update()
    return packed, failed


def _shorten(unfinished: Path, out: Path, packed: Sequence[str]) -> None:
    """Keep the rows that were filled: a contiguous dataset cannot shrink in its place."""
    with files.writing(unfinished) as shorter, opened(unfinished) as old, creating(shorter, out) as new:
        new.attrs["made_by"] = old.attrs["made_by"]
        imgs = create_contiguous(new, "imgs", (len(packed), *old["imgs"].shape[1:]), np.uint8)
        for row in range(len(packed)):
            imgs[row] = old["imgs"][row]
            new.check()
        create_ids(new, packed)
