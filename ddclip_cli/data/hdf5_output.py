"""HDF5 files of ours: written in one piece, and with one sentence when the disk is full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    with FileIO(unfinished, "w+") as raw:
        disk = _Disk(raw)
        try:
            with NewFile(disk) as file:
                yield file
            if disk.error is not None:
                raise disk.error
        except OSError as error:
            if error is not disk.error:
                raise
            raise UserError(
                f"{final} could not be written ({error.strerror}): make room, or choose another --out"
            ) from None


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
    """

    def __init__(self, raw: FileIO) -> None:
        self._raw = raw
        self._unwritten: list[tuple[int, bytes]] = []
        """(place, bytes), of no more than the writes of one `check()` to the next."""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        end = self._raw.tell() + len(rest)
        try:
            while len(rest) and self.error is None:
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            self.error = error
        if len(rest):
            self._unwritten.append((end - len(rest), bytes(rest)))
            self._raw.seek(end)
        return memoryview(data).nbytes

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._raw.tell()
        count = self._raw.readinto(view) or 0
        view[count:] = bytes(len(view) - count)  # as every HDF5 driver has it: beyond the end there are zeros
        for place, data in self._unwritten:
            first, last = max(place, start), min(place + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - place : last - place]
        self._raw.seek(start + len(view))
        return len(view)

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def truncate(self, size: int) -> None:
        try:
            if self.error is None:
                self._raw.truncate(size)
        except OSError as error:
            self.error = error

    def seek(self, *where: int) -> int:
        return self._raw.seek(*where)

    def tell(self) -> int:
        return self._raw.tell()

    def flush(self) -> None:
        pass
