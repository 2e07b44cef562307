"""Shape embeddings of a whole library, written with their ids, thumbnails and what made them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ddclip_cli import files
from ddclip_cli.console import log, progress_bar, warn
from ddclip_cli.data.hdf5_output import create_contiguous, create_ids, creating
from ddclip_cli.data.object_ids import rows_file, write_rows
from ddclip_cli.errors import UserError, some
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.transforms import Crop
from ddclip_cli.ordered_pool import in_order
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.journal import Embedded, Journal
from ddclip_cli.search.library import DIGEST_BYTES, LibraryObject, ViewSettings, check_stores, digest_of, read_object
from ddclip_cli.search.thumbnails import ThumbnailWriter, best_views, thumbnail_jpeg

WRITE_ROWS = 1024
BATCH_SIZE = 32


@dataclass(frozen=True)
class ModelSpec:
    """What `load_model` needs, for processes that load the model themselves."""

    source: str
    backbone: str | None
    device: str
    precision: str


@dataclass(frozen=True)
class Run:
    """What a run of `embed_library` did, by object id."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Embedded by an earlier run, and unchanged."""
    dropped: list[str] = field(default_factory=list)
    """Their files are gone."""
    failed: dict[str, str] = field(default_factory=dict)
    """Object id -> why."""


def embed_library(
    model: MultiViewCLIP,
    objects: Sequence[LibraryObject],
    out: str | Path,
    *,
    views: ViewSettings | None = None,
    crop: Crop = "center",
    batch_size: int = BATCH_SIZE,
    jobs: int = 1,
    processes: int = 1,
    spec: ModelSpec | None = None,
    guarded: bool = False,
    made_by: dict[str, Any] | None = None,
    on_error: str = "fail",
    update: bool = False,
    force: bool = False,
) -> Run:
    """Write the shape embedding of every object, from its first `views.num_views` views, to the file `out`.

    The HDF5 file holds `shape_feat` (N, E) float32 of unit length, `ids` (N,), `thumbnail_bytes` (JPEGs of the best
    views, end to end) with `thumbnail_offsets` (N + 1,), `digests` (N, 16) of what the views came from, `paths` (N,) of
    meshes and folders as seen from the folder of `out`, and the attribute `made_by`: a JSON object of the given
    `made_by` with the model's fingerprint, `num_views`, `crop` and, where views were made, how.
    `<stem>_model_to_idx.json` beside it has the rows as the reference writes them.

    A run that is killed goes on where it was when it is started again, and ends with the same bytes.

    Args:
        jobs: processes that read, decode and render.
        processes: processes that embed, each with a model of its own, loaded as `spec` says, and one job.
        guarded: meshes are read in a process beside this one: native code that reads them may end it, and then one
            object is lost, not the run.
        on_error: "fail" embeds all it can, names the bad ones and writes nothing; "skip" leaves them out.
        update: embed only what is new or changed, and keep the rest of the `out` that is there.

    Raises:
        UserError: `out` or its rows exist (and neither `force` nor `update`), the disk is full, a store has fewer
            views, an embedding is not finite, objects failed, or the file to update was made otherwise.
    """
    out, views = Path(out), views or ViewSettings()
    rows_path = rows_file(out)
    if not update:
        for path in (out, rows_path):
            files.refuse_existing(path, force=force)
    if not objects:
        raise UserError("there are no objects to embed")
    check_stores(objects, views.num_views)
    record = {**(made_by or {}), "fingerprint": model.fingerprint, "num_views": views.num_views, "crop": crop}
    if any(thing.kind != "store" for thing in objects):
        record["views"] = {key: value for key, value in asdict(views).items() if key != "num_views"}
    files.remove_leftovers(out.parent, (out.name, rows_path.name))
    old = _Old(out, record) if update and out.exists() else None
    wanted = [thing for thing in objects if old is None or not old.has(thing, views)]
    run = Run()
    if old is not None:
        record = old.joined(record)
        run.kept.extend(old.keep({thing.object_id for thing in wanted}))
        run.dropped.extend(old.dropped)

    model.eval()
    journal = Journal(out, {**record, "batch_size": batch_size, "objects": _stamp(wanted)})
    finished = False
    try:
        _forget_changed(journal, wanted, views)
        if len(journal):
            log(f"going on: {len(journal)} of {len(wanted)} objects were embedded by an earlier run")
        with progress_bar(total=len(wanted), label="embed") as bar:
            bar.update(len(journal))
            batches = _batches(wanted, batch_size, journal)
            task = partial(_embed, views=views, crop=crop, folder=out.parent)
            for batch, failed in _run_batches(model, batches, task, jobs, processes, spec, guarded):
                if batch:
                    journal.add(batch)
                for object_id, reason in failed.items():
                    warn(reason)
                    run.failed[object_id] = reason
                bar.update(len(batch) + len(failed))
        if run.failed and on_error == "fail":
            raise UserError(
                f"{len(run.failed)} of {len(objects)} objects could not be embedded, for the reasons above: "
                f"{some(list(run.failed))}; mend them and run this again, or leave them out with --on-error skip"
            )
        run.done.extend(thing.object_id for thing in wanted if thing.object_id in journal)
        if not run.done and not run.kept:
            raise UserError(f"none of the {len(objects)} objects could be embedded: nothing was written")
        _write(out, rows_path, record, model.embed_dim, run, old, journal)
        finished = True
    finally:
        journal.close(remove=finished)
    return run


Read = tuple[np.ndarray, bytes] | str
"""Views of an object with their digest, or why there are none."""
Batch = tuple[list[Embedded], dict[str, str]]
"""What was embedded, and object id -> why the others were not."""


def _batches(wanted: Sequence[LibraryObject], size: int, journal: Journal) -> list[list[LibraryObject]]:
    """What is left to do. Batches begin at the same objects in every run: sums that are rounded alike end alike."""
    batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    left = ([thing for thing in batch if thing.object_id not in journal] for batch in batches)
    return [batch for batch in left if batch]


def _forget_changed(journal: Journal, wanted: Sequence[LibraryObject], views: ViewSettings) -> None:
    """Objects whose files are others than when an earlier run embedded them; stores are known to be the same."""
    for thing in wanted:
        if thing.object_id in journal and thing.kind != "store":
            with suppress(UserError, OSError):
                if digest_of(thing, views) == journal.digest(thing.object_id):
                    continue
            journal.forget(thing.object_id)


def _run_batches(
    model: MultiViewCLIP,
    batches: Sequence[list[LibraryObject]],
    task: Any,
    jobs: int,
    processes: int,
    spec: ModelSpec | None,
    guarded: bool,
) -> Iterator[Batch]:
    """Every batch in order: in this process behind `jobs` that read, or in `processes` of their own."""
    if processes > 1 and spec is not None and len(batches) > 1:
        processes = min(processes, len(batches))
        prepare = partial(_model_of, spec, processes)
        yield from in_order(partial(_embed_alone, task), batches, jobs=processes, prepare=prepare)
        return
    everything = [thing for batch in batches for thing in batch]
    jobs = min(jobs, max(1, len(everything)))
    read = partial(_read_alone if jobs > 1 else _read, views=task.keywords["views"])
    risky = guarded and len(everything) > 1 and any(thing.kind == "mesh" for thing in everything)
    results = in_order(read, everything, jobs=jobs, died=_died if risky else None)
    for batch in batches:
        yield task(model, batch, [next(results) for _ in batch])


def _embed_alone(task: Any, model: MultiViewCLIP, batch: list[LibraryObject]) -> Batch:
    """One batch from its files to its vectors, in a worker process."""
    return task(model, batch, [_read(thing, task.keywords["views"]) for thing in batch])


def _model_of(spec: ModelSpec, processes: int, number: int) -> MultiViewCLIP:
    """The model of worker process `number`: GPUs are dealt out in turn, and cores shared."""
    from ddclip_cli.model.checkpoints import load_model

    device = spec.device
    if device.startswith("cuda"):
        device = f"cuda:{number % torch.cuda.device_count()}"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    return load_model(spec.source, backbone=spec.backbone, device=device, precision=spec.precision).eval()


def _died(thing: LibraryObject) -> Read:
    return f"{thing.path}: the process that read it ended (out of memory, or a fault in a library that reads it)"


def _read_alone(thing: LibraryObject, views: ViewSettings) -> Read:
    torch.set_num_threads(1)  # the other cores have objects of their own
    return _read(thing, views)


def _read(thing: LibraryObject, views: ViewSettings) -> Read:
    try:
        return read_object(thing, views)
    except UserError as error:
        return str(error)


def _embed(
    model: MultiViewCLIP,
    things: Sequence[LibraryObject],
    read: Sequence[Read],
    *,
    views: ViewSettings,
    crop: Crop,
    folder: Path,
) -> Batch:
    failed = {thing.object_id: what for thing, what in zip(things, read, strict=True) if isinstance(what, str)}
    good = [(thing, *what) for thing, what in zip(things, read, strict=True) if not isinstance(what, str)]
    done: dict[str, Embedded] = {}
    for number in sorted({len(pictures) for _, pictures, _ in good}):  # photos may be fewer: F differs
        same = [entry for entry in good if len(entry[1]) == number]
        pictures = np.stack([entry[1] for entry in same])  # (B, F, 3, H, W)
        vectors = _embeddings(model, pictures, crop, [thing.object_id for thing, _, _ in same])
        shown = best_views(pictures)
        for (thing, of_object, digest), vector, best in zip(same, vectors, shown, strict=True):
            path = None if thing.kind == "store" else os.path.relpath(thing.path, folder)
            done[thing.object_id] = Embedded(
                thing.object_id, digest, vector, thumbnail_jpeg(of_object[int(best)]), path
            )
    return [done[thing.object_id] for thing in things if thing.object_id in done], failed


def _embeddings(model: MultiViewCLIP, pictures: np.ndarray, crop: Crop, object_ids: Sequence[str]) -> np.ndarray:
    """(B, F, 3, H, W) uint8 -> (B, E) float32, unit length."""
    with torch.inference_mode():
        pixels = model.to_pixels(torch.from_numpy(pictures).to(model.device), crop)
        embeddings: Tensor = torch.nn.functional.normalize(model(pixels).float(), dim=1).cpu()
    finite = embeddings.isfinite().all(dim=1)
    if not finite.all():
        bad = object_ids[int(torch.nonzero(~finite)[0])]
        raise UserError(f"the embedding of {bad} is not finite: try --precision fp32")
    return embeddings.numpy()


def _stamp(wanted: Sequence[LibraryObject]) -> list[list[str | int]]:
    """The stores that are read, as they are now: objects of others are not taken from an earlier run's journal."""
    stores = sorted({thing.path for thing in wanted if thing.kind == "store"})
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in stores]


class _Old:
    """The file that is brought up to date."""

    MUST_EQUAL = ("fingerprint", "num_views", "crop", "precision", "views")

    def __init__(self, out: Path, record: dict[str, Any]) -> None:
        self.embeddings = ShapeEmbeddings(out)
        self._record = self.embeddings.made_by or {}
        for key in self.MUST_EQUAL:
            before, now = self._record.get(key), record.get(key)
            if before != now and not (key == "views" and None in (before, now)):
                raise UserError(f"{out} was made with {key} {before}, not {now}: make it anew with --force")
        digests = self.embeddings.digests()
        if digests is None:
            raise UserError(f"{out} does not say what its objects came from: make it anew with --force")
        self._digests = digests
        self._row = {object_id: row for row, object_id in enumerate(self.embeddings.ids)}
        self._seen: set[str] = set()
        self.dropped: list[str] = []
        self.rows: list[int] = []
        """Rows that are kept."""

    def joined(self, record: dict[str, Any]) -> dict[str, Any]:
        """The new record; how views were made stays known if only stores are added."""
        return {**record, "views": self._record["views"]} if "views" in self._record else record

    def has(self, thing: LibraryObject, views: ViewSettings) -> bool:
        """Whether the object is in the file, from what it is made of now."""
        row = self._row.get(thing.object_id)
        if row is None:
            return False
        self._seen.add(thing.object_id)
        try:
            return self._digests[row].tobytes() == digest_of(thing, views)
        except (UserError, OSError):
            return False  # embedding will say why

    def keep(self, replaced: set[str]) -> list[str]:
        """The ids that stay: all but those that are replaced, and those whose files are gone."""
        for object_id, row in self._row.items():
            path = self.embeddings.source_path(row) if object_id not in self._seen else None
            if path is not None and not Path(path).exists():
                self.dropped.append(object_id)
            elif object_id not in replaced:
                self.rows.append(row)
        return [self.embeddings.ids[row] for row in self.rows]

    def read(self) -> Iterator[Embedded]:
        for start in range(0, len(self.rows), WRITE_ROWS):
            rows = self.rows[start : start + WRITE_ROWS]
            for row, vector in zip(rows, self.embeddings.vectors.take(rows), strict=True):
                object_id, digest = self.embeddings.ids[row], self._digests[row].tobytes()
                jpeg, path = self.embeddings.thumbnail(row) or b"", self.embeddings.stored_path(row)
                yield Embedded(object_id, digest, vector, jpeg, path)


def _write(
    out: Path, rows_path: Path, record: dict[str, Any], width: int, run: Run, old: _Old | None, journal: Journal
) -> None:
    """Put the file together: what is kept, then what was done."""

    def everything() -> Iterator[Embedded]:
        if old is not None:
            yield from old.read()
        yield from journal.read(iter(run.done))

    ids = [*run.kept, *run.done]
    # The embeddings get their name first: they have their ids inside, and rows alone would be refused as another's.
    with files.writing(rows_path) as partial_rows, files.writing(out) as partial_out:
        with creating(partial_out, out) as file:
            file.attrs["made_by"] = json.dumps(record, ensure_ascii=False, sort_keys=True)
            create_ids(file, ids)
            vectors = create_contiguous(file, "shape_feat", (len(ids), width), "<f4")
            digests = create_contiguous(file, "digests", (len(ids), DIGEST_BYTES), "u1")
            thumbnails = ThumbnailWriter(file, len(ids))
            paths: list[str] = []
            block: list[Embedded] = []
            for number, thing in enumerate(everything(), start=1):
                block.append(thing)
                paths.append(thing.path or "")
                if len(block) == WRITE_ROWS or number == len(ids):
                    start = number - len(block)
                    vectors[start:number] = np.stack([entry.vector for entry in block])
                    digests[start:number] = np.stack([np.frombuffer(entry.digest, np.uint8) for entry in block])
                    thumbnails.write(start, [entry.thumbnail for entry in block])
                    file.check()
                    block = []
            if any(paths):
                file.create_dataset("paths", data=paths, dtype=h5py.string_dtype())
        write_rows(partial_rows, ids)
