"""Fill a view store object by object, in any order and over any number of runs."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli import files
from ddclip_cli.data.codecs import ENCODED, RAW
from ddclip_cli.data.hdf5_output import Forms, check_space, create_contiguous, create_ids, places
from ddclip_cli.data.object_ids import read_ids, rows_file, write_rows
from ddclip_cli.data.unfinished import Unfinished, continuing, is_begun, moving_path, part_path

PLACE = places({"imgs": ((1, 1, 3, 1, 1), np.uint8)})["imgs"]
"""Where the bytes of all views start, whatever their number."""


@dataclass(frozen=True)
class StoreForm:
    """How a store keeps its objects."""

    num_views: int
    image_size: int
    codec: str = RAW

    @property
    def object_bytes(self) -> int:
        """Of an object whose views are kept as pixels."""
        return self.num_views * 3 * self.image_size**2

    def keep(self, views: np.ndarray) -> list[bytes]:
        """Views (F, 3, S, S) uint8 of an object -> what is written of them: all pixels, or each view encoded."""
        if self.codec == RAW:
            return [views.tobytes()]
        return [ENCODED[self.codec].encode(view) for view in views]


class StoreWriter:
    """The objects that are in a store that is being written; see `writing_store`."""

    def __init__(self, unfinished: Unfinished, form: StoreForm, row_of: Mapping[str, int] | None) -> None:
        self._unfinished, self.form, self._row_of = unfinished, form, row_of
        self.done: dict[str, None] = {}
        """Ids, in the order in which they came."""
        self._sizes = array("q")
        """Of the pieces, in the same order."""
        self._end = PLACE
        for object_id, sizes in unfinished.records():
            self._count(object_id, sizes)

    @property
    def is_closed(self) -> bool:
        """An earlier run had begun to finish the store without the objects that it lacked."""
        return self._unfinished.gaps_are_closing

    def add(self, object_id: str, pieces: Sequence[bytes]) -> None:
        """Write what `StoreForm.keep` gives of an object."""
        self._unfinished.write(self._place(object_id), b"".join(pieces))
        sizes = [len(piece) for piece in pieces]
        self._count(object_id, sizes)
        self._unfinished.record([object_id, sizes])

    def finish(self, made_by: dict[str, Any]) -> list[str]:
        """Give the store its name -> ids of the objects in it, by row: in the order of `row_of`, without gaps."""
        arrivals = list(self.done)
        order = list(range(len(arrivals)))  # of the arrivals, by row
        if self._row_of is not None:
            rows = [self._row_of[object_id] for object_id in arrivals]
            order.sort(key=rows.__getitem__)
            if self.form.codec == RAW:
                self._unfinished.close_gaps([rows[i] for i in order], self.form.object_bytes, PLACE)
        ids = [arrivals[i] for i in order]
        count, views, size = len(ids), self.form.num_views, self.form.image_size
        datasets: Forms
        if self.form.codec == RAW:
            datasets = {"imgs": ((count, views, 3, size, size), np.uint8)}
        else:
            datasets = {"encoded": ((self._end - PLACE,), np.uint8)}
        with self._unfinished.completing(datasets) as file:
            assert next(iter(file.values())).id.get_offset() == PLACE
            file.attrs["made_by"] = json.dumps(made_by)
            if self.form.codec != RAW:
                file.attrs["codec"], file.attrs["image_size"] = self.form.codec, size
                sizes = np.frombuffer(self._sizes, np.int64)
                offsets = np.cumsum(sizes) - sizes
                for name, values, dtype in (("offsets", offsets, np.int64), ("sizes", sizes, np.int32)):
                    create_contiguous(file, name, (count, views), dtype)[:] = values.reshape(count, views)[order]
            create_ids(file, ids)
        return ids

    def _place(self, object_id: str) -> int:
        """Pixels have the place of their row; what is encoded follows what is there."""
        if self.form.codec != RAW:
            return self._end
        row = len(self.done) if self._row_of is None else self._row_of[object_id]
        return PLACE + row * self.form.object_bytes

    def _count(self, object_id: str, sizes: Sequence[int]) -> None:
        self.done[object_id] = None
        self._end += sum(sizes)
        if self.form.codec != RAW:
            self._sizes.extend(sizes)


@contextmanager
def writing_store(
    out: Path, job: dict[str, Any], form: StoreForm, object_ids: Collection[str] | None, *, force: bool
) -> Iterator[StoreWriter | None]:
    """Yield the writer of the store `out` for objects in this order (None: as they come), or None if all are in.

    Beside it `<stem>_model_to_idx.json` is written when the block succeeds. See `continuing` for `job` and `force`.
    """
    if not is_begun(out):
        for path in (out, rows_file(out)):
            files.refuse_existing(path, force=force)
    files.remove_leftovers(out.parent, (out.name, rows_file(out).name, moving_path(out).name))
    if object_ids is not None and form.codec == RAW:
        check_space(out, len(object_ids) * form.object_bytes - _used(part_path(out)))
    row_of = None if object_ids is None else {object_id: row for row, object_id in enumerate(object_ids)}
    with continuing(out, job, force=force) as unfinished:
        yield None if unfinished.is_named else StoreWriter(unfinished, form, row_of)
        # The store gets its name first: it has its ids inside, and rows without it would be refused as another's.
        with files.writing(rows_file(out)) as rows:
            write_rows(rows, read_ids(out))


def _used(path: Path) -> int:
    """Bytes that a file with holes takes of its disk."""
    return path.stat().st_blocks * 512 if path.exists() else 0
