"""The ids of embeddings that have none inside, kept in a form that is mapped: reading the reference's JSON takes long.

Made at the first query; only the ids that are shown are read after that.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from ddclip_cli import files
from ddclip_cli.data.object_ids import names_of_rows, read_ids
from ddclip_cli.search.feature_cache import cache_folder

WORTH_IT = 20_000
"""Ids; fewer are read in no time."""
LONGEST = 200
"""Bytes of an id: all take as much room as the longest."""


def cached_ids(path: Path, count: int) -> np.ndarray | list[str]:
    """The ids of every row of `path`, as checked by `read_ids`: (N,) bytes mapped from the cache, or a list.

    Raises UserError as `read_ids` does. A cache that cannot be written or read is none.
    """
    if count < WORTH_IT:
        return read_ids(path, count=count)
    cached = cache_folder() / "ids" / f"{_state(path)}.npy"
    with suppress(OSError, ValueError, EOFError):
        stored = np.load(cached, mmap_mode="r", allow_pickle=False)
        if stored.shape == (count,) and stored.dtype.kind == "S":
            return stored
    ids = read_ids(path, count=count)
    encoded = [object_id.encode() for object_id in ids]
    if max(map(len, encoded)) <= LONGEST and not any(object_id.endswith(b"\0") for object_id in encoded):
        with suppress(OSError), files.writing(cached, durable=False) as partial, partial.open("wb") as file:
            np.save(file, np.array(encoded))
    return ids


def _state(path: Path) -> str:
    """A name for the file and the files of its ids as they are now."""
    parts = []
    for file in [path, *names_of_rows(path)]:
        if file.is_file():
            status = file.stat()
            parts.append(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
