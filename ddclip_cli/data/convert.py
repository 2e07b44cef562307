"""Objects of one view store into another, kept another way."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ddclip_cli.console import progress_bar
from ddclip_cli.data.codecs import RAW
from ddclip_cli.data.object_ids import digest
from ddclip_cli.data.store_writer import StoreForm, writing_store
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.ordered_pool import in_order


def convert_store(
    source: str | Path,
    out: str | Path,
    *,
    ids: str | Path | None = None,
    codec: str = RAW,
    jobs: int = 1,
    force: bool = False,
) -> ViewStore:
    """Write the objects of the store `source` to `out`, in their order, and return that. Goes on after an interruption.

    Args:
        ids: JSON of the rows of `source` (see `read_ids`).
        codec: one of `CODECS`; views that have it already are copied, not encoded once more.

    Raises:
        UserError: `source` is no view store or has damaged views, no space, or `out` exists without `force`.
    """
    store = ViewStore(source, ids)
    form = StoreForm(store.num_views, store.image_size, codec)
    job = {"source": str(store.path.resolve()), "form": [*store.shape, codec], "objects": digest(store.ids)}
    with writing_store(Path(out), job, form, dict.fromkeys(store.ids), force=force) as writer:
        if writer is not None:
            lacking = [row for row, object_id in enumerate(store.ids) if object_id not in writer.done]
            with progress_bar(total=len(store), done=len(writer.done), label="convert") as bar:
                for row, pieces in zip(lacking, stored_objects(store, lacking, form, jobs), strict=True):
                    writer.add(store.ids[row], pieces)
                    bar.update()
            writer.finish(_made_by(store))
    return ViewStore(out)


def stored_objects(store: ViewStore, rows: Collection[int], form: StoreForm, jobs: int) -> Iterator[list[bytes]]:
    """What a store of `form` keeps of each of the objects, over `jobs` processes."""
    is_copy = store.codec == form.codec  # no work that several could share
    read = partial(_keep, store.path, store.ids_path, form)
    return in_order(read, rows, jobs=1 if is_copy else jobs)


def _keep(path: Path, ids: Path | None, form: StoreForm, row: int) -> list[bytes]:
    """Runs in a worker process."""
    store = opened_store(path, ids)
    if store.codec == form.codec != RAW and store.image_size == form.image_size:
        return store.read_encoded(row, form.num_views)
    return form.keep(store.read([row], range(form.num_views))[0])


def opened_store(path: Path, ids: Path | None) -> ViewStore:
    """The store of a worker process, which reads its ids but once."""
    file = path.stat()
    return _opened(path, ids, (file.st_ino, file.st_mtime_ns))


@lru_cache(maxsize=1)
def _opened(path: Path, ids: Path | None, _version: tuple[int, int]) -> ViewStore:
    return ViewStore(path, ids)


def _made_by(store: ViewStore) -> dict[str, Any]:
    return {"converted_from": {"codec": store.codec, "made_by": store.made_by}}
