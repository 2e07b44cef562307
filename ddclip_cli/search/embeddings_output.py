"""The file that `embed` writes, put together of what an older one keeps and of what was done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddclip_cli import files
from ddclip_cli.data.hdf5_output import create_contiguous, create_ids, creating
from ddclip_cli.data.object_ids import rows_file, write_rows
from ddclip_cli.errors import UserError
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.journal import Embedded
from ddclip_cli.search.library import DIGEST_BYTES, LibraryObject, ViewSettings, digest_of
from ddclip_cli.search.thumbnails import ThumbnailWriter

WRITE_ROWS = 1024


class OldEmbeddings:
    """The file that is brought up to date.

    Attributes:
        dropped: ids of objects whose files are gone, once `keep` was called.

    Raises:
        UserError: it was made otherwise than `record` says, or does not say what its objects came from.
    """

    MUST_EQUAL = ("fingerprint", "num_views", "crop", "precision", "views")

    def __init__(self, out: Path, record: dict[str, Any]) -> None:
        self._embeddings = ShapeEmbeddings(out)
        self._record = self._embeddings.made_by or {}
        for key in self.MUST_EQUAL:
            before, now = self._record.get(key), record.get(key)
            if before != now and not (key == "views" and None in (before, now)):
                raise UserError(f"{out} was made with {key} {before}, not {now}: make it anew with --force")
        digests = self._embeddings.digests()
        if digests is None:
            raise UserError(f"{out} does not say what its objects came from: make it anew with --force")
        self._digests = digests
        self._row = {object_id: row for row, object_id in enumerate(self._embeddings.ids)}
        self._seen: set[str] = set()
        self.dropped: list[str] = []
        self._kept: list[int] = []

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
        paths = self._embeddings.stored_paths(0, len(self._row)) if len(self._seen) < len(self._row) else []
        for object_id, row in self._row.items():
            path = paths[row] if object_id not in self._seen else None
            if path is not None and not (self._embeddings.path.parent / path).exists():
                self.dropped.append(object_id)
            elif object_id not in replaced:
                self._kept.append(row)
        return [self._embeddings.ids[row] for row in self._kept]

    def read(self) -> Iterator[Embedded]:
        """What stays, in order."""
        kept = np.array(self._kept, dtype=np.int64)
        for start in range(0, len(self._digests), WRITE_ROWS):
            stop = min(start + WRITE_ROWS, len(self._digests))
            rows = kept[slice(*np.searchsorted(kept, (start, stop)))]
            if len(rows) == 0:
                continue
            paths, jpegs = self._embeddings.stored_paths(start, stop), self._embeddings.thumbnails(start, stop)
            for row, vector in zip(rows, self._embeddings.vectors.take(rows), strict=True):
                object_id, digest = self._embeddings.ids[row], self._digests[row].tobytes()
                yield Embedded(object_id, digest, vector, jpegs[row - start] or b"", paths[row - start])


def write_embeddings(
    out: Path, record: dict[str, Any], ids: Sequence[str], width: int, objects: Iterable[Embedded]
) -> None:
    """Write the objects of these ids, in this order, to `out`, and their rows beside it."""
    # The embeddings get their name first: they have their ids inside, and rows alone would be refused as another's.
    with files.writing(rows_file(out)) as partial_rows, files.writing(out) as partial_out:
        with creating(partial_out, out) as file:
            file.attrs["made_by"] = json.dumps(record, ensure_ascii=False, sort_keys=True)
            create_ids(file, ids)
            vectors = create_contiguous(file, "shape_feat", (len(ids), width), "<f4")
            digests = create_contiguous(file, "digests", (len(ids), DIGEST_BYTES), "u1")
            thumbnails = ThumbnailWriter(file, len(ids))
            paths: list[str] = []
            block: list[Embedded] = []
            for number, thing in enumerate(objects, start=1):
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
