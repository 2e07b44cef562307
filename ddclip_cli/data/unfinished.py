"""Output that is written over any number of runs: a kill at any moment costs some seconds of work.

Beside the HDF5 file `NAME` lie, while it is on its way, `NAME.part`, the bytes of its large datasets where HDF5 wants
them, and `NAME.part.log`: the job that they are for and then a line for every piece that is certain to be on the disk.
HDF5 itself comes in at the end, since a kill leaves its own files unreadable.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from ddclip_cli import files
from ddclip_cli.console import log
from ddclip_cli.data.hdf5_output import Forms, NewFile, cannot_write, completing
from ddclip_cli.errors import UserError

SECONDS_AT_RISK = 2.0
"""How long a piece may wait until it is certain."""
BYTES_AT_ONCE = 64 << 20


def part_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def log_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.part.log")


def moving_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.part.moving")


def is_begun(out: Path) -> bool:
    """Whether an earlier run left something of `out` to go on from."""
    return log_path(out).exists()


def refuse_finished(out: Path, *, force: bool) -> None:
    """`files.refuse_existing`, but for output to which the run that is to go on had just given its name."""
    if not is_begun(out):
        files.refuse_existing(out, force=force)


def count_records(out: Path) -> int:
    """How many pieces of `out` are certain to be there."""
    with open(log_path(out), "rb") as file:
        return max(sum(line.endswith(b"\n") for line in file) - 1, 0)


@contextmanager
def continuing(out: Path, job: dict[str, Any], *, force: bool = False) -> Iterator[Unfinished]:
    """Yield what is there of the output `out`; if the block does not end well, that and what it added stay.

    Args:
        job: what is to be made, as JSON. What is there must be of the same job; `force` drops that of another.

    Raises:
        UserError: `out` exists without `force`, another run writes it, or what is there is of another job.
    """
    begun = is_begun(out)
    refuse_finished(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.held(log_path(out)) as records:
        try:
            unfinished = Unfinished(out, records, job, force=force)
        except BaseException:
            if not begun:
                log_path(out).unlink()
            raise
        try:
            yield unfinished
        except BaseException:
            unfinished.leave()
            raise
        unfinished.clean_up()


class Unfinished:
    """The bytes of an output so far, and the records of what they are."""

    def __init__(self, out: Path, records: BinaryIO, job: dict[str, Any], *, force: bool) -> None:
        self.out = out
        self._records, self._waiting, self._synced = records, bytearray(), time.monotonic()
        header = json.dumps(job, sort_keys=True).encode() + b"\n"
        first = records.readline()
        if first.endswith(b"\n") and first != header and not force:
            raise UserError(
                f"{part_path(out)} is the beginning of {out} made otherwise: give the same options to go on, "
                "or start anew with --force"
            )
        is_same = first == header
        self.is_named = is_same and out.exists() and not part_path(out).exists()
        """A run was killed after `out` had got its name."""
        if not self.is_named:
            files.refuse_existing(out, force=force)
        if not is_same:
            for path in (part_path(out), moving_path(out)):
                path.unlink(missing_ok=True)
            self._replace_records(0, header)
        self._raw: FileIO | None = None
        if not self.is_named:
            self._raw = FileIO(os.open(part_path(out), os.O_RDWR | os.O_CREAT, 0o666), "r+")
        self._first_record = len(header)
        self._is_empty = True

    def records(self) -> Iterator[Any]:
        """What earlier runs recorded, in order; to be read to its end before anything is added."""
        place = self._records.seek(self._first_record)
        for line in _lines(self._records):
            try:
                record = json.loads(line)
            except ValueError:  # a power cut left zeros there
                break
            if not line.endswith(b"\n"):
                break
            place += len(line)
            self._is_empty = False
            yield record
        self._replace_records(place, b"")

    def write(self, place: int, data: bytes) -> None:
        assert self._raw is not None
        try:
            self._raw.seek(place)
            files.write_all(self._raw, data)
        except OSError as error:
            raise cannot_write(self.out, error) from None

    def record(self, record: Any) -> None:
        """Note that the bytes of a piece are written; `record` is JSON, and comes back from `records`."""
        self._waiting += json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if time.monotonic() - self._synced > SECONDS_AT_RISK:
            self.sync()

    def sync(self) -> None:
        """Make everything that was recorded certain: first its bytes, then the records."""
        if self._waiting and self._raw is not None:
            try:
                os.fsync(self._raw.fileno())
            except OSError as error:
                raise cannot_write(self.out, error) from None
            self._replace_records(self._records.seek(0, os.SEEK_END), self._waiting)
            self._is_empty, self._waiting = False, bytearray()
        self._synced = time.monotonic()

    @property
    def gaps_are_closing(self) -> bool:
        """An earlier run began `close_gaps`: nothing can be added any more."""
        return moving_path(self.out).exists()

    def close_gaps(self, kept: Sequence[int], size: int, place: int) -> None:
        """Move the pieces number `kept`, of `size` bytes each and the first at `place`, together.

        Each handful is first put aside whole, and can be put into its place again after a kill.
        """
        self.sync()
        moving, count = moving_path(self.out), max(1, BYTES_AT_ONCE // size)
        start = next((new for new, old in enumerate(kept) if new != old), len(kept))
        if moving.exists():
            start = self._put_down(moving, size, place)
        while start < len(kept):
            with files.writing(moving) as partial, open(partial, "wb") as file:
                file.write(start.to_bytes(8, "little"))
                for old in kept[start : start + count]:
                    file.write(self._read(place + old * size, size))
            start = self._put_down(moving, size, place)

    def _replace_records(self, place: int, data: bytes | bytearray) -> None:
        """Make `data` all that follows from `place` on, and have it on the disk."""
        try:
            self._records.truncate(place)
            self._records.seek(place)
            files.write_all(self._records, data)
            os.fsync(self._records.fileno())
        except OSError as error:
            raise cannot_write(self.out, error) from None

    def _put_down(self, moving: Path, size: int, place: int) -> int:
        """Write the pieces of the file `moving` to their new place; return the number of the one behind them."""
        with open(moving, "rb") as file:
            start = int.from_bytes(file.read(8), "little")
            pieces = file.read()
        self.write(place + start * size, pieces)
        assert self._raw is not None
        os.fsync(self._raw.fileno())
        return start + len(pieces) // size

    def _read(self, place: int, size: int) -> bytes:
        assert self._raw is not None
        self._raw.seek(place)
        data = b""
        while len(data) < size and (more := self._raw.read(size - len(data))):
            data += more
        return data

    @contextmanager
    def completing(self, datasets: Forms) -> Iterator[NewFile]:
        """Yield the HDF5 file of the `datasets` whose bytes are there; it gets its name when the block succeeds."""
        self.sync()
        assert self._raw is not None
        with completing(self._raw, self.out, datasets) as file:
            yield file
        os.fsync(self._raw.fileno())
        part_path(self.out).replace(self.out)

    def leave(self) -> None:
        """Keep what is there, if it is anything."""
        with suppress(UserError):  # a full disk: what was certain before stays so
            self.sync()
        if self._is_empty:
            part_path(self.out).unlink(missing_ok=True)
            self.clean_up()
        else:
            log(f"what is done is kept in {part_path(self.out)}: the same command goes on from there")
        self._close()

    def clean_up(self) -> None:
        """Remove what served to go on."""
        moving_path(self.out).unlink(missing_ok=True)
        log_path(self.out).unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._raw is not None:
            self._raw.close()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of an unbuffered file, without one system call a byte."""
    rest = b""
    while chunk := file.read(1 << 20):
        *lines, rest = (rest + chunk).splitlines(keepends=True)
        if rest.endswith(b"\n"):
            lines, rest = [*lines, rest], b""
        yield from lines
    if rest:
        yield rest
