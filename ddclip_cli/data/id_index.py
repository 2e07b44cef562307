"""Rows of objects found in the file itself: no process keeps a million names in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from ddclip_cli.data.hdf5 import StoredArray, opened
from ddclip_cli.data.hdf5_output import create_contiguous
from ddclip_cli.data.object_ids import read_ids
from ddclip_cli.errors import UserError, some

LONGEST = 1000
"""Bytes of an id; every row has room for the longest of a file."""


class IdIndex:
    """Finds the rows of objects by bisection in the sorted order of their ids."""

    def __init__(
        self, names: Callable[[np.ndarray], np.ndarray], order: Callable[[np.ndarray], np.ndarray], count: int
    ):
        """`names`: rows (B,) -> their ids, bytes; `order`: places (B,) in the sorted order -> rows (B,)."""
        self._names, self._order, self._count = names, order, count

    @classmethod
    def of_ids(cls, ids: Sequence[str]) -> IdIndex:
        """In memory."""
        names = np.array([object_id.encode() for object_id in ids], dtype=bytes)
        return cls(names.__getitem__, np.argsort(names, kind="stable").__getitem__, len(ids))

    @classmethod
    def of_file(cls, path: Path, *, count: int) -> IdIndex:
        """Of a file of `create_id_index`, where it lies; of another, in memory."""
        with opened(path) as file:
            is_sorted = file.get("ids_order", getlink=True) is not None
        if not is_sorted:
            return cls.of_ids(read_ids(path, count=count))
        names = StoredArray(path, "ids", axes=("objects",), dtype="bytes")
        order = StoredArray(path, "ids_order", axes=("objects",), dtype="int64")
        if not len(names) == len(order) == count:
            raise UserError(f"{path} has {len(names)} ids for {count} rows: make it again")
        return cls(names.read, order.read, count)

    def lacking(self, object_ids: Iterable[str]) -> list[str]:
        """Those of the objects that have no row."""
        wanted = list(object_ids)
        return [object_id for object_id, row in zip(wanted, self._find(wanted), strict=True) if row < 0]

    def rows(self, object_ids: Iterable[str], path: Path) -> np.ndarray:
        """Rows (B,) int64 of these objects; UserError about `path` names those that are not there."""
        wanted = list(object_ids)
        rows = self._find(wanted)
        if (rows < 0).any():
            missing = self.lacking(wanted)
            raise UserError(
                f"{path} lacks {len(missing)} of the {len(wanted)} objects asked for: {some(missing)}; "
                "leave them out of the list or make it with them"
            )
        return rows

    def _find(self, object_ids: Sequence[str]) -> np.ndarray:
        """(B,) int64, -1 for what is not there."""
        wanted = np.array([object_id.encode() for object_id in object_ids], dtype=bytes)
        low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), self._count)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            is_before = np.zeros(len(wanted), bool)
            is_before[open_] = self._names(self._order(middle[open_])) < wanted[open_]
            low = np.where(open_ & is_before, middle + 1, low)
            high = np.where(open_ & ~is_before, middle, high)
        rows = self._order(np.minimum(low, self._count - 1))
        return np.where(self._names(rows) == wanted, rows, -1)


def create_id_index(file: h5py.File, ids: Sequence[str], path: Path) -> None:
    """The datasets `ids` (N,) of bytes, all of one length, and `ids_order` (N,): the rows by increasing id.

    Raises UserError about `path`, where they come from, for an id that is there twice or too long.
    """
    names = np.array([object_id.encode() for object_id in ids], dtype=bytes)
    if names.dtype.itemsize > LONGEST:
        raise UserError(f"{path} has an object id of {names.dtype.itemsize} bytes: the longest may have {LONGEST}")
    order = np.argsort(names, kind="stable").astype(np.int64)
    in_order = names[order]
    twice = np.flatnonzero(in_order[1:] == in_order[:-1])
    if len(twice):
        raise UserError(f"{path} has the object {in_order[twice[0]].decode()!r} twice: keep one of them")
    create_contiguous(file, "ids", names.shape, names.dtype)[:] = names
    create_contiguous(file, "ids_order", order.shape, np.int64)[:] = order
