"""Pack pictures of objects into one view store, in the reference's format and byte for byte."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ddclip_cli.console import progress_bar, warn
from ddclip_cli.data.codecs import RAW
from ddclip_cli.data.convert import stored_objects
from ddclip_cli.data.layouts import Layout
from ddclip_cli.data.object_ids import digest, read_id_list, read_ids
from ddclip_cli.data.pack_sources import Pictures, Source, open_source, read_views
from ddclip_cli.data.store_writer import StoreForm, StoreWriter, writing_store
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
    codec: str = RAW,
    jobs: int = 1,
    on_error: str = "fail",
    recipe: dict[str, Any] | None = None,
    force: bool = False,
) -> Packed:
    """Write `out`: the views of every object and `ids`; beside it `<stem>_model_to_idx.json`.

    With codec "raw" the views are `imgs` (N, F, 3, S, S) uint8, contiguous, as the reference has them; with another
    each is encoded (see `EncodedViews`). The attribute `made_by` is a JSON object of the layout and the `recipe`. A run
    that was ended goes on where it was.

    Args:
        source: a folder laid out as one of `LAYOUTS`, or an archive of Zero123's; "auto" tells which.
        ids: the objects to pack, in order (see `read_id_list`); None: all of `source`, sorted (of an archive: in its
            order), then the supplement's.
        supplement: a view store whose objects join; an object of both comes from the supplement.
        codec: one of `CODECS`.
        jobs: processes that decode pictures.
        on_error: "fail" tries all objects and names the bad ones, the others are kept for the next run; "skip" leaves
            them out.
        recipe: the sections that the options came from.

    Raises:
        UserError: nothing to pack, objects that are missing or unreadable, no space, or `out` exists without `force`.
    """
    form, out = StoreForm(num_views, image_size, codec), Path(out)
    if supplement is None and supplement_ids is not None:
        raise UsageError(f"{supplement_ids} gives the rows of no supplement: name the store too, with --supplement")
    extra = None if supplement is None else _open_supplement(supplement, supplement_ids, form)
    extra_row = {} if extra is None else {object_id: row for row, object_id in enumerate(extra.ids)}
    found = open_source(Path(source), layout, num_views, extra_row)
    chosen = read_id_list(ids) if ids is not None else _all_ids(found, extra_row)
    missing = {i: why for i in chosen or () if i not in extra_row and (why := found.why_missing(i))}
    if missing and on_error == "fail":
        raise UserError(
            f"{len(missing)} of the {len(chosen or ())} objects of {ids} are not there: {some(list(missing))}; "
            f"bring them to {source}, or leave them out with --on-error skip"
        )
    for object_id, reason in missing.items():
        warn(f"{object_id}: {reason}: skipped")
    wanted = None if chosen is None else dict.fromkeys(i for i in chosen if i not in missing)
    job = {
        "source": [str(found.path.resolve()), found.layout.name],
        "form": [num_views, image_size, codec],
        "objects": None if wanted is None else digest(wanted),
        "supplement": None if extra is None else [str(extra.path.resolve()), digest(extra.ids)],
    }
    failed: dict[str, str] = {}
    with writing_store(out, job, form, wanted, force=force) as writer:
        if writer is not None:
            failed = _Packing(writer, found, extra, extra_row, wanted, jobs).run(on_error)
            writer.finish({"layout": found.layout.name, "recipe": recipe})
    return Packed(found.layout.name, read_ids(out), missing | failed)


def _all_ids(source: Source, extra: Collection[str]) -> list[str] | None:
    own = source.ids()
    return None if own is None else [*own, *extra]


def _open_supplement(path: str | Path, ids: str | Path | None, form: StoreForm) -> ViewStore:
    store = ViewStore(path, ids)
    if store.num_views < form.num_views or store.image_size != form.image_size:
        raise UserError(
            f"{path} has {store.num_views} views of {store.image_size} pixels an object, not {form.num_views} of "
            f"{form.image_size}: choose --num-views and --size to fit the supplement"
        )
    return store


@dataclass
class _Packing:
    """One run over the objects that a store still lacks."""

    writer: StoreWriter
    source: Source
    extra: ViewStore | None
    extra_row: dict[str, int]
    wanted: dict[str, None] | None
    """None: all of the source, as they come, then the supplement's."""
    jobs: int
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, on_error: str) -> dict[str, str]:
        """Pack what can be packed -> {id: reason} of the others; UserError about them unless they may be skipped."""
        total = None if self.wanted is None else len(self.wanted)
        if not self.writer.is_closed:
            with progress_bar(total=total, done=len(self.writer.done), label="pack") as bar:
                self._pack_source(bar)
                self._pack_supplement(bar)
        self._note_what_never_came()
        if (on_error == "fail" and (self.failed or self.source.trouble)) or not self.writer.done:
            raise self._failure(on_error)
        return self.failed

    def _pack_source(self, bar: Any) -> None:
        wanted = None if self.wanted is None else {i: None for i in self.wanted if i not in self.extra_row}
        done = self.writer.done.keys() | self.extra_row.keys()
        encode = partial(_read_and_encode, layout=self.source.layout, form=self.writer.form)
        for object_id, pieces in in_order(encode, self.source.pictures(wanted, done), jobs=self.jobs):
            if isinstance(pieces, str):
                self.failed[object_id] = pieces
                warn(f"{object_id}: {pieces}")
            else:
                self.writer.add(object_id, pieces)
            bar.update()

    def _pack_supplement(self, bar: Any) -> None:
        if self.extra is None:
            return
        objects = self.extra_row if self.wanted is None else [i for i in self.wanted if i in self.extra_row]
        lacking = {i: self.extra_row[i] for i in objects if i not in self.writer.done}
        stored = stored_objects(self.extra, lacking.values(), self.writer.form, self.jobs)
        for object_id, pieces in zip(lacking, stored, strict=True):
            self.writer.add(object_id, pieces)
            bar.update()

    def _note_what_never_came(self) -> None:
        if self.source.trouble is not None and self.wanted is None:
            warn(self.source.trouble)
        reason = self.source.trouble or f"not in {self.source.path}"
        never = [i for i in self.wanted or () if i not in self.writer.done and i not in self.failed]
        if never:
            warn(f"{len(never)} objects never came: {some(never)}: {reason}")
        self.failed |= dict.fromkeys(never, reason)

    def _failure(self, on_error: str) -> UserError:
        done, source = len(self.writer.done), self.source
        total = done + len(self.failed)
        if source.trouble is not None:
            return UserError(
                f"{source.trouble}, after {done} objects, which are kept: bring the whole archive and run this again, "
                "or finish the store without the rest with --on-error skip"
            )
        if on_error == "fail":
            return UserError(
                f"{len(self.failed)} of {total} objects could not be packed, for the reasons above: "
                f"{some(list(self.failed))}; mend them, or leave them out with --on-error skip"
            )
        return UserError(f"none of the {total} objects of {source.path} could be packed: nothing was written")


def _read_and_encode(task: tuple[str, Pictures], *, layout: Layout, form: StoreForm) -> tuple[str, list[bytes] | str]:
    """Runs in a worker process."""
    object_id, pictures = task
    views = read_views(pictures, layout, form.num_views, form.image_size)
    return object_id, views if isinstance(views, str) else form.keep(views)
