"""HDF5 files from anywhere: opened with one sentence for every fault, and read row by row without loading them."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddclip_cli.errors import UserError

MOST_INFLATED = 2000
"""Bytes that one byte of a file may stand for: deflate reaches 1032, a chunk that was never written any number."""


@contextmanager
def opened(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; UserError if it is missing, cut off or something else."""
    path = Path(path)
    if not path.is_file():
        state = "is a folder, not an HDF5 file" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {state}: check the path, or make the file first")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if isinstance(error, PermissionError):
            raise UserError(f"{path} may not be read: change its permissions") from None
        if "truncated" in str(error):
            raise UserError(f"{path} is cut off before its end: fetch or make it again") from None
        raise UserError(f"{path} is not an HDF5 file, or a damaged one: fetch or make it again") from None
    with file:
        yield file


def local_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset `name` of an open file, which must lie in that very file and not point elsewhere."""
    link = file.get(name, getlink=True)
    if link is None:
        found = ", ".join(map(repr, sorted(file)[:5])) or "nothing"
        raise UserError(f"{file.filename} has no dataset {name!r}; it holds {found}: give the file that is meant")
    elsewhere = UserError(f"{file.filename}: dataset {name!r} points to another file: copy the data into this one")
    if not isinstance(link, h5py.HardLink):
        raise elsewhere
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"{file.filename}: {name!r} is a group: give the file that is meant")
    if dataset.external or dataset.is_virtual:
        raise elsewhere
    return dataset


def made_by(file: h5py.File) -> dict[str, Any] | None:
    """What an open file of ours says of its making; None in files of the reference and of others."""
    try:
        record = json.loads(file.attrs["made_by"])
    except (KeyError, TypeError, ValueError, RecursionError, OSError):
        return None
    return record if isinstance(record, dict) else None


def read_whole(dataset: h5py.Dataset) -> np.ndarray:
    """All values of a list in an open file, ids or numbers of up to 8 bytes, if the file can hold so many."""
    path = dataset.file.filename
    if _claimed(dataset) > 8 * os.path.getsize(path):
        raise _claims_too_much(dataset)
    try:
        return dataset[()]
    except OSError:
        raise _damaged(path, dataset.name) from None


class StoredArray:
    """A dataset (N, ...) read a few rows at a time, through a memory map where the file allows it.

    Safe to hand to other processes: nothing open goes through a fork or a pickle.
    """

    def __init__(
        self, path: str | Path, name: str, *, axes: Sequence[str], dtype: str, is_sparse: bool = False
    ) -> None:
        """Check the dataset `name`: it must have these `axes` (their names serve the error) and a dtype of that kind.

        Args:
            dtype: the name of exactly that dtype, "float" for floats of 2 or 4 bytes, "bytes" for texts of one length.
            is_sparse: few small rows of many will be read: each by itself, for a map would pull in its surroundings.
        """
        self.path, self.name = Path(path), name
        with opened(path) as file:
            dataset = local_dataset(file, name)
            self.shape: tuple[int, ...] = dataset.shape or ()
            self.dtype = dataset.dtype
            fits = {"float": self.dtype in (np.float16, np.float32), "bytes": self.dtype.kind == "S"}
            if len(self.shape) != len(axes) or 0 in self.shape or not fits.get(dtype, self.dtype == dtype):
                raise UserError(
                    f"{path}: dataset {name!r} is {self.shape} {self.dtype}: it must be ({', '.join(axes)}) {dtype}"
                )
            self._offset = _offset(dataset)
        self._is_sparse = is_sparse and hasattr(os, "pread")
        self._map: np.ndarray | None = None
        self._map_start = 0
        """Bytes of the mapped memory before the first row."""
        self._file: tuple[int, h5py.File] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None, "_file": None}

    def read(self, rows: Any, columns: Any = None) -> np.ndarray:
        """Copy rows (B,) -> (B, ...); with `columns` (F,) or (B, F) of the second axis -> (B, F, ...). In any order."""
        rows = _checked(rows, self.shape[0], f"{self.path}: row")
        if columns is not None:
            columns = _checked(columns, self.shape[1], f"{self.path}: view")
        if not self.is_mapped:
            return self._read_by_h5py(rows, columns)
        if self._is_sparse and columns is None:
            return self._read_rows(rows)
        taken = self._mapped[rows] if columns is None else self._mapped[rows[:, None], columns]
        return np.asarray(taken)

    def _read_rows(self, rows: np.ndarray) -> np.ndarray:
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with open(self.path, "rb", buffering=0) as file:
            data = [os.pread(file.fileno(), size, (self._offset or 0) + int(row) * size) for row in rows]
        return np.frombuffer(bytearray().join(data), self.dtype).reshape(len(rows), *self.shape[1:])

    def read_slice(self, start: int, stop: int) -> np.ndarray:
        """Copy rows `start` to `stop` - 1 -> (stop - start, ...)."""
        if self.is_mapped:
            return np.array(self._mapped[start:stop])
        try:
            return self._dataset[start:stop]
        except OSError:
            raise _damaged(self.path, self.name) from None

    def span(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` - 1: a view of the file where it is mapped, which costs no copy, else `read_slice`."""
        return np.asarray(self._mapped[start:stop]) if self.is_mapped else self.read_slice(start, stop)

    def release(self, start: int, stop: int) -> None:
        """Give back the memory that these mapped rows took; their next reader maps them again from the cache."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            row = self._map.nbytes // len(self._map)
            first, last = (self._map_start + place * row for place in (start, stop))
            first, last = first // mmap.PAGESIZE * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                self._map._mmap.madvise(mmap.MADV_DONTNEED, first, last - first)  # type: ignore[attr-defined]

    @property
    def is_mapped(self) -> bool:
        """Whether the file is read through a memory map: it lies there in one piece, not chunked or compressed."""
        return self._offset is not None

    @property
    def _mapped(self) -> np.ndarray:
        if self._map is None:
            self._map = np.memmap(self.path, self.dtype, "r", self._offset or 0, self.shape)
            self._map_start = (self._offset or 0) % mmap.ALLOCATIONGRANULARITY  # numpy maps from a boundary on
        return self._map

    @property
    def _dataset(self) -> h5py.Dataset:
        """Opened anew in every process: a handle does not survive a fork."""
        if self._file is None or self._file[0] != os.getpid():
            self._file = (os.getpid(), h5py.File(self.path, "r"))
        return self._file[1][self.name]

    def _read_by_h5py(self, rows: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
        """The way for compressed or chunked files, which have no place to map."""
        dataset = self._dataset
        try:
            taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
            for place, row in enumerate(rows):
                taken[place] = dataset[row]
        except OSError:
            raise _damaged(self.path, self.name) from None
        return taken if columns is None else taken[np.arange(len(rows))[:, None], columns]


def _offset(dataset: h5py.Dataset) -> int | None:
    """Where the bytes of a contiguous dataset start, or None if they do not lie in one piece.

    Either way the size that the file claims must be one that it can have.
    """
    path = dataset.file.filename
    is_contiguous = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
    offset = dataset.id.get_offset() if is_contiguous else None
    if offset is None:
        if _claimed(dataset) > MOST_INFLATED * os.path.getsize(path):
            raise _claims_too_much(dataset)
    elif offset + _claimed(dataset) > os.path.getsize(path):
        raise UserError(f"{path} is cut off before its end: fetch or make it again")
    return offset


def _claimed(dataset: h5py.Dataset) -> int:
    """Bytes of the whole dataset; `dataset.nbytes` overflows."""
    return math.prod(dataset.shape) * dataset.dtype.itemsize


def _claims_too_much(dataset: h5py.Dataset) -> UserError:
    path, name = dataset.file.filename, dataset.name.lstrip("/")
    size = os.path.getsize(path)
    return UserError(f"{path}: dataset {name!r} claims {dataset.shape}, but the file has {size} bytes: make it again")


def _damaged(path: str | Path, name: str) -> UserError:
    return UserError(f"{path}: the dataset {name.lstrip('/')!r} is damaged: fetch or make it again")


def _checked(numbers: Any, limit: int, what: str) -> np.ndarray:
    """Indices as int64; one that is not there is an error and not, as numpy has it, counted from the end."""
    indices = np.asarray(numbers, dtype=np.int64)
    outside = indices[(indices < 0) | (indices >= limit)]
    if outside.size:
        raise UserError(f"{what} {outside.flat[0]} was asked for, but there are {limit} (0 to {limit - 1})")
    return indices
