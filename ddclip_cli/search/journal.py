"""What a run of `embed` has done so far, batch by batch in one growing file, so that a killed run loses one batch."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddclip_cli.errors import UserError

HEAD = struct.Struct("<4sQI")  # mark, length and checksum of what follows
MARK = b"ddcj"


@dataclass(frozen=True)
class Embedded:
    """One object, embedded."""

    object_id: str
    digest: bytes
    """Of what its views came from."""
    vector: np.ndarray  # (E,) float32
    thumbnail: bytes
    path: str | None
    """The mesh or the folder of pictures, from the folder of the embeddings."""


class Journal:
    """Batches of embedded objects in a hidden file beside the output `out`, written whole or not at all.

    `settings` are what the vectors depend on: a journal of others is begun anew. One process at a time has it.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out
        self.path = out.with_name(f".{out.name}.unfinished")
        self._file = self._open()
        self._known: dict[str, tuple[int, int, bytes]] = {}
        """Object id -> where its batch begins, its place there, its digest."""
        first = self._next(0)
        if first is None or first[0] != _packed(settings):
            self._file.truncate(0)
            self._append(_packed(settings))
        else:
            self._recover(first[1])

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._known

    def digest(self, object_id: str) -> bytes:
        """Of what the object was embedded from."""
        return self._known[object_id][2]

    def forget(self, object_id: str) -> None:
        """The object has changed since."""
        del self._known[object_id]

    def add(self, batch: list[Embedded]) -> None:
        """Raises UserError when the disk takes no more; what was there before stays whole."""
        start = self._append(_pack_batch(batch))
        self._note(start, batch)

    def read(self, object_ids: Iterator[str]) -> Iterator[Embedded]:
        """Objects in the order asked for; fast where that is the order in which they were added."""
        at, batch = -1, []
        for object_id in object_ids:
            start, place, _ = self._known[object_id]
            if start != at:
                record = self._next(start)
                assert record is not None  # it was checked when it was written or recovered
                at, batch = start, _unpack_batch(record[0])
            yield batch[place]

    def close(self, *, remove: bool) -> None:
        """Give it free; with `remove`, or when it holds nothing, without a trace."""
        if remove or not self._known:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "r+b" if self.path.exists() else "w+b", buffering=0)  # noqa: SIM115
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError:
            file.close()
            raise UserError(f"another process is making {self.out}: let it finish, or choose another --out") from None
        return file  # type: ignore[return-value]

    def _recover(self, place: int) -> None:
        """Take in every whole batch; what follows the last is what a kill cut short."""
        while (record := self._next(place)) is not None:
            payload, end = record
            self._note(place, _unpack_batch(payload))
            place = end
        self._file.truncate(place)

    def _note(self, start: int, batch: list[Embedded]) -> None:
        self._known |= {thing.object_id: (start, place, thing.digest) for place, thing in enumerate(batch)}

    def _next(self, place: int) -> tuple[bytes, int] | None:
        """The record at `place` and where it ends; None if there is no whole one."""
        self._file.seek(place)
        head = self._file.read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        mark, length, checksum = HEAD.unpack(head)
        if mark != MARK or length > os.fstat(self._file.fileno()).st_size - place - HEAD.size:
            return None
        payload = self._file.read(length)
        return (payload, place + HEAD.size + length) if zlib.crc32(payload) == checksum else None

    def _append(self, payload: bytes) -> int:
        start = self._file.seek(0, os.SEEK_END)
        data = memoryview(HEAD.pack(MARK, len(payload), zlib.crc32(payload)) + payload)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(start)
            raise UserError(
                f"{self.out} could not be written ({error.strerror}): make room, or choose another --out"
            ) from None
        return start


def _packed(settings: dict[str, Any]) -> bytes:
    return json.dumps(settings, sort_keys=True).encode()


def _pack_batch(batch: list[Embedded]) -> bytes:
    """Length of the JSON, the JSON, all vectors, all thumbnails."""
    about = [[thing.object_id, thing.digest.hex(), len(thing.thumbnail), thing.path] for thing in batch]
    text = json.dumps(about).encode()
    vectors = np.stack([thing.vector for thing in batch]).astype("<f4").tobytes()
    return struct.pack("<I", len(text)) + text + vectors + b"".join(thing.thumbnail for thing in batch)


def _unpack_batch(payload: bytes) -> list[Embedded]:
    (length,) = struct.unpack_from("<I", payload)
    about = json.loads(payload[4 : 4 + length])
    pictures = sum(entry[2] for entry in about)
    vectors = np.frombuffer(payload[4 + length : len(payload) - pictures], "<f4").reshape(len(about), -1)
    batch, place = [], len(payload) - pictures
    for (object_id, digest, size, path), vector in zip(about, vectors, strict=True):
        batch.append(Embedded(object_id, bytes.fromhex(digest), vector, payload[place : place + size], path))
        place += size
    return batch
