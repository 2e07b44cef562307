"""Bring one file in, across any number of runs: it has its final name only when every byte is there and checked.

Beside the destination lie, while it is on its way, `NAME.part` (the bytes so far, in order) and `NAME.part.json` (which
version of which sources they are). The length of the one and the content of the other are the whole state, so a kill at
any moment loses nothing. A file published in parts is written in place, part after part: no byte is on the disk twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ddclip_cli import console, files
from ddclip_cli.data.remote import Remote, TransferError, open_from, persist, unreachable
from ddclip_cli.errors import UserError

CHUNK = 1 << 20


def part_path(destination: Path) -> Path:
    return destination.with_name(destination.name + ".part")


def bytes_here(destination: Path) -> int:
    """How many bytes of an unfinished download are there."""
    part = part_path(destination)
    return part.stat().st_size if part.is_file() else 0


def fetch(remotes: Sequence[Remote], destination: Path, *, advance: Callable[[int], None] = lambda count: None) -> None:
    """Fetch the bytes of `remotes`, one after the other, into `destination`, continuing what an earlier run left.

    `advance(n)` hears of every n bytes that are there, those of earlier runs first, and of -n when bytes were dropped.
    Raises TransferError or UserError; what has come so far is kept.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    part, note = part_path(destination), _note_path(destination)
    with files.held(part) as file:
        kept = _kept(file, note, remotes)
        file.truncate(kept)
        with files.writing(note) as path:
            path.write_text(json.dumps([_identity(remote) for remote in remotes]))
        advance(kept)
        try:
            offset = 0
            for remote in remotes:
                # Whatever lies behind the end of a part shows that the part was checked.
                if kept <= offset + remote.size:
                    _fetch_part(file, offset, remote, advance)
                offset += remote.size
            os.fsync(file.fileno())
            part.replace(destination)
        except UserError:
            if file.seek(0, os.SEEK_END) == 0:  # nothing to continue from
                part.unlink()
                note.unlink()
            raise
    note.unlink(missing_ok=True)


def matches(remotes: Sequence[Remote], path: Path, *, advance: Callable[[int], None] = lambda count: None) -> bool:
    """Whether a finished file still has the size and the content that the server names."""
    if path.stat().st_size != sum(remote.size for remote in remotes):
        return False
    with open(path, "rb") as file:
        for remote in remotes:
            digest = _Digest(remote)
            for chunk in _chunks(file, remote.size):
                digest.update(chunk)
                advance(len(chunk))
            if not digest.right():
                return False
    return True


class _Digest:
    """A running digest of the kind by which a remote names its content."""

    def __init__(self, remote: Remote) -> None:
        self.expected = remote.digest
        self._hash = hashlib.sha256()
        if remote.digest is not None and len(remote.digest) == 40:
            # How git names a file's content; not for security.
            self._hash = hashlib.sha1(f"blob {remote.size}\0".encode(), usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def right(self) -> bool:
        return self.expected is None or self._hash.hexdigest() == self.expected


class _Part:
    """One source's range of the file: how far it has come, and the digest up to there."""

    def __init__(self, file: BinaryIO, offset: int, remote: Remote, advance: Callable[[int], None]) -> None:
        self.file, self.offset, self.remote, self.advance = file, offset, remote, advance
        self.digest = _Digest(remote)
        self.position = 0
        file.seek(offset)
        for chunk in _chunks(file, remote.size):
            self.digest.update(chunk)
            self.position += len(chunk)

    def start_over(self) -> None:
        self.file.truncate(self.offset)
        self.advance(-self.position)
        self.digest, self.position = _Digest(self.remote), 0

    def receive(self) -> None:
        """One request for what is missing. Raises a passing TransferError when the answer ends early."""
        if self.position == self.remote.size:
            return
        with contextlib.closing(open_from(self.remote, self.position)) as response:
            if response.status == 200 and self.position:
                console.log(f"{self.remote.name}: this server cannot continue a file, starting over")
                self.start_over()
            self.file.seek(self.offset + self.position)
            while self.position < self.remote.size:
                try:
                    data = response.read1(min(CHUNK, self.remote.size - self.position))
                except (OSError, http.client.HTTPException) as error:
                    raise unreachable(self.remote.url, error) from error
                if not data:
                    raise TransferError(f"{self.remote.name} broke off at byte {self.position}", passing=True)
                files.write_all(self.file, data)
                self.digest.update(data)
                self.position += len(data)
                self.advance(len(data))


def _fetch_part(file: BinaryIO, offset: int, remote: Remote, advance: Callable[[int], None]) -> None:
    part = _Part(file, offset, remote, advance)
    for last in (False, True):
        persist(part.receive, position=lambda: part.position)
        if part.digest.right():
            return
        part.start_over()
        if not last:
            console.warn(f"{remote.name} came with wrong bytes, fetching it once more")
    raise UserError(f"{remote.name} came with wrong bytes twice (its digest is not {remote.digest}): try again later")


def _kept(file: BinaryIO, note: Path, remotes: Sequence[Remote]) -> int:
    """How many bytes of the part file are of these remotes."""
    length = file.seek(0, os.SEEK_END)
    try:
        before = json.loads(note.read_text())
    except (OSError, ValueError):
        before = None
    if not isinstance(before, list):
        return 0
    good = 0
    for remote, old in zip(remotes, before, strict=False):
        if remote.etag is None or old != _identity(remote):
            break
        good += remote.size
    if good < length:
        console.log(f"{remotes[0].name} changed since the last run, starting over")
    return min(good, length)


def _identity(remote: Remote) -> dict[str, object]:
    return {"name": remote.name, "etag": remote.etag, "size": remote.size}


def _note_path(destination: Path) -> Path:
    return destination.with_name(destination.name + ".part.json")


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := file.read(min(CHUNK, size))):
        yield chunk
        size -= len(chunk)
