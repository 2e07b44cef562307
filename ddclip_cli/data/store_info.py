"""What a view store is, and whether every view of it is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ddclip_cli.console import progress_bar
from ddclip_cli.data.codecs import RAW
from ddclip_cli.data.convert import opened_store
from ddclip_cli.data.unfinished import count_records, is_begun
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError
from ddclip_cli.ordered_pool import in_order

ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class StoreInfo:
    """What `ddclip store info` tells."""

    objects: int
    views: int
    """Of an object."""
    size: int
    """Pixels on a side."""
    codec: str
    reading: str
    """How: `mapped`, `decoded`, or `h5py` for pixels that are chunked or compressed."""
    bytes: int
    share: float
    """Of the bytes of the same views as pixels."""
    made_by: dict[str, Any] | None


def store_info(path: str | Path, ids: str | Path | None = None) -> StoreInfo:
    """Describe a store. UserError if it is none, is not whole, or was not finished."""
    path = Path(path)
    if is_begun(path) and not path.exists():
        raise UserError(
            f"{path} is not finished: {count_records(path)} objects are in it so far; "
            "run the command that makes it again, it goes on from there"
        )
    store = ViewStore(path, ids)
    size = path.stat().st_size
    return StoreInfo(
        objects=len(store),
        views=store.num_views,
        size=store.image_size,
        codec=store.codec,
        reading="mapped" if store.is_mapped else "h5py" if store.codec == RAW else "decoded",
        bytes=size,
        share=size / (len(store) * store.num_views * 3 * store.image_size**2),
        made_by=store.made_by,
    )


def damaged_objects(path: str | Path, ids: str | Path | None = None, *, jobs: int = 1) -> Iterator[tuple[str, str]]:
    """Read every view -> (object_id, what is wrong with it): views that cannot be read, and black ones.

    Pixels that were never written are black, and a render never is.
    """
    store = ViewStore(path, ids)
    starts = range(0, len(store), ROWS_AT_ONCE)
    with progress_bar(total=len(store), label="check") as bar:
        for start, found in zip(
            starts, in_order(partial(_look, store.path, store.ids_path), starts, jobs=jobs), strict=True
        ):
            for row, reason in found:
                yield store.ids[row], reason
            bar.update(min(ROWS_AT_ONCE, len(store) - start))


def _look(path: Path, ids: Path | None, start: int) -> list[tuple[int, str]]:
    """Runs in a worker process."""
    store = opened_store(path, ids)
    found = []
    for row in range(start, min(start + ROWS_AT_ONCE, len(store))):
        try:
            views = store.read([row], range(store.num_views))[0]
        except UserError as error:
            found.append((row, str(error)))
            continue
        black = int((~views.any(axis=(1, 2, 3))).sum())
        if black:
            found.append((row, f"{black} of {store.num_views} views are black, as if they had never been written"))
    return found
