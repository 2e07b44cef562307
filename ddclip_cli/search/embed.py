"""Shape embeddings of a whole library, written with their ids, thumbnails and what made them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddclip_cli import files
from ddclip_cli.console import log, progress_bar, warn
from ddclip_cli.data.object_ids import rows_file
from ddclip_cli.errors import UserError, some
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.transforms import Crop
from ddclip_cli.ordered_pool import in_order
from ddclip_cli.search.embeddings_output import OldEmbeddings, write_embeddings
from ddclip_cli.search.journal import Embedded, Journal
from ddclip_cli.search.library import LibraryObject, ViewSettings, check_stores, digest_of, read_object
from ddclip_cli.search.thumbnails import best_views, thumbnail_jpeg

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
    resumed: list[str] = field(default_factory=list)
    """Of those done, what an earlier run embedded that did not end."""
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
    old = OldEmbeddings(out, record) if update and out.exists() else None
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
        run.resumed.extend(thing.object_id for thing in wanted if thing.object_id in journal)
        if run.resumed:
            log(f"going on: {len(run.resumed)} of {len(wanted)} objects were embedded by an earlier run")
        with progress_bar(total=len(wanted), label="embed", done=len(run.resumed)) as bar:
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
        everything = chain(old.read() if old is not None else (), journal.read(iter(run.done)))
        write_embeddings(out, record, [*run.kept, *run.done], model.embed_dim, everything)
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
