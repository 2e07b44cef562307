"""HDF5 files of ours: written in one piece, and with one sentence when the disk is full."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddclip_cli.data.disk import free_bytes
from ddclip_cli.errors import UserError


class NewFile(h5py.File):
    """An HDF5 file that is being written; `check()` raises as soon as the disk took no more."""

    def __init__(self, disk: _Disk) -> None:
        super().__init__(disk, "w")
        self._disk = disk

    def check(self) -> None:
        if self._disk.error is not None:
            raise self._disk.error


@contextmanager
def creating(unfinished: Path, final: Path) -> Iterator[NewFile]:
    """Yield a new HDF5 file at the path `unfinished`, all of whose bytes are written when the block succeeds.

    Raises:
        UserError: a write failed, for want of space above all; it tells of `final`, the name that the user knows.
    """
    with FileIO(unfinished, "w+") as raw, completing(raw, final, {}) as file:
        yield file


Forms = Mapping[str, tuple[tuple[int, ...], Any]]
"""Name of a dataset -> its shape and dtype."""


@contextmanager
def completing(raw: FileIO, final: Path, datasets: Forms) -> Iterator[NewFile]:
    """`creating` around the bytes of `datasets`, which stand in `raw` already, at their `places`.

    So a file may grow without HDF5, which a kill leaves unreadable, and without its final size being known.
    """
    disk = _Disk(raw)
    try:
        with NewFile(disk) as file:
            for name, (shape, dtype) in datasets.items():
                create_contiguous(file, name, shape, dtype)
            yield file
        if disk.error is not None:
            raise disk.error
    except OSError as error:
        if error is not disk.error:
            raise
        raise cannot_write(final, error) from None


def places(datasets: Forms) -> dict[str, int]:
    """Where in a file the bytes of each of its first datasets start. The place of the very first fits any shape."""
    with NewFile(_Disk(None)) as file:
        return {n: create_contiguous(file, n, shape, dtype).id.get_offset() for n, (shape, dtype) in datasets.items()}


def cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} could not be written ({error.strerror}): make room, or choose another --out")


def create_contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """A dataset in one piece, with its place in the file taken at once: those who read it can map it into memory."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # the same input gives the same file
    space = h5py.h5s.create_simple(shape)
    dataset_id = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, dcpl=plan)
    return h5py.Dataset(dataset_id)


def create_ids(file: h5py.File, object_ids: Sequence[str]) -> None:
    """The dataset `ids` (N,) of strings: the object of every row."""
    file.create_dataset("ids", data=list(object_ids), dtype=h5py.string_dtype())


def check_space(path: Path, size: int) -> None:
    """UserError if a file of `size` bytes has no room at `path`."""
    free = free_bytes(path.parent)
    if size > free:
        raise UserError(
            f"{path} will take {size / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB free: "
            "make room, or choose another --out"
        )


class _Disk:
    """The file under HDF5, which keeps the first failed write, and all that should follow, to itself.

    HDF5 cannot live with a failed write: closing its file fails too, and the process crashes when the rest is freed.
    Nor can it live with reading back other bytes than it wrote. So both wait here until the caller asks.
    What stands in the file from before is not shown to HDF5, which would take it for a file of its own.
    """

    def __init__(self, raw: FileIO | None) -> None:
        """`raw` None: nothing is written at all."""
        self._raw = raw
        self._place = self._end = 0
        self._unwritten: list[tuple[int, bytes]] = []
        """(place, bytes), of no more than the writes of one `check()` to the next."""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        rest = view
        try:
            if self._raw is not None:
                self._raw.seek(self._place)
            while len(rest) and self.error is None and self._raw is not None:
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            self.error = error
        self._place += len(view)
        self._end = max(self._end, self._place)
        if len(rest):
            self._unwritten.append((self._place - len(rest), bytes(rest)))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._place
        count = 0
        if self._raw is not None:
            self._raw.seek(start)
            count = self._raw.readinto(view[: max(self._end - start, 0)]) or 0
        view[count:] = bytes(len(view) - count)  # as every HDF5 driver has it: beyond the end there are zeros
        for place, data in self._unwritten:
            first, last = max(place, start), min(place + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - place : last - place]
        self._place += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def truncate(self, size: int) -> None:
        self._end = size
        try:
            if self.error is None and self._raw is not None:
                self._raw.truncate(size)
        except OSError as error:
            self.error = error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._end}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def flush(self) -> None:
        pass
