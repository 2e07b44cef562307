"""Zero123's renders straight out of their tar archive, plain or gzipped: nothing is unpacked to disk.

Only regular files of a plausible size count, by the last two parts of their name, `<object_id>/<number>.png`: a name
leads nowhere, and a link is not followed.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ddclip_cli.errors import UserError

LARGEST_PICTURE = 64 << 20
MOST_WAITING = 1 << 30
"""Bytes of objects that are not whole yet: their pictures should stand together."""
GZIP = b"\x1f\x8b"


class CutOffError(UserError):
    """The archive ends, or turns into something else, before its end."""


def check(path: Path) -> None:
    """Raise UserError if `path` does not begin like a tar archive."""
    try:
        with _opened(path) as archive:
            archive.next()
    except CutOffError:
        raise UserError(
            f"{path} is no tar archive, or cut off at its start: give a folder, or the .tar or .tar.gz of Zero123"
        ) from None


def numbered_pictures(
    path: Path, num_views: int, wanted: Collection[str] | None, done: Collection[str]
) -> Iterator[tuple[str, list[bytes] | str]]:
    """The wanted objects (None: all) that are not done, each as soon as its pictures 0 to F - 1 have come, as (id,
    pictures) or (id, why they are none). Ends with the last of the wanted.

    Raises CutOffError after all objects that stand whole before the cut.
    """
    waiting: dict[str, dict[int, bytes]] = {}
    held = 0
    bad: dict[str, str] = {}
    seen: set[str] = set()
    missing = None if wanted is None else len(wanted) - sum(object_id in wanted for object_id in done)
    if missing == 0:
        return
    with _opened(path) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or it would remember every name
            object_id, view = _object_and_view(member, num_views)
            is_asked_for = (wanted is None or object_id in wanted) and object_id not in done and object_id not in seen
            if view is None or not is_asked_for:
                continue
            if member.size > LARGEST_PICTURE:
                bad[object_id] = f"{view:03d}.png claims {member.size:,} bytes"
                continue
            pictures = waiting.setdefault(object_id, {})
            held += member.size - len(pictures.get(view, b""))
            pictures[view] = cast(BinaryIO, archive.extractfile(member)).read()
            if len(pictures[view]) < member.size:
                raise tarfile.ReadError("unexpected end of data")
            if len(pictures) == num_views:
                del waiting[object_id]
                held -= sum(map(len, pictures.values()))
                seen.add(object_id)
                yield object_id, [pictures[number] for number in range(num_views)]
                if missing is not None and len(seen) == missing:
                    return
            elif held > MOST_WAITING:
                raise UserError(f"{path}: the pictures of {len(waiting)} objects lie too far apart: unpack it first")
    for object_id in dict.fromkeys([*waiting, *bad]):
        yield object_id, bad.get(object_id) or _what_is_missing(waiting[object_id], num_views)


def _object_and_view(member: tarfile.TarInfo, num_views: int) -> tuple[str, int | None]:
    """`.../<object_id>/<number>.png` -> its parts; the number is None for all that is no view."""
    parts = PurePosixPath(member.name).parts
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or len(parts) < 2 or parts[-2] in ("..", "/"):
        return "", None
    stem, _, suffix = parts[-1].partition(".")
    is_view = suffix == "png" and len(stem) == 3 and stem.isascii() and stem.isdigit() and int(stem) < num_views
    return parts[-2], int(stem) if is_view else None


def _what_is_missing(pictures: dict[int, bytes], num_views: int) -> str:
    missing = [view for view in range(num_views) if view not in pictures]
    return f"{len(missing)} of {num_views} views are missing, the first is {missing[0]:03d}.png"


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open an archive to be read forward; every sign of a broken one is a CutOffError."""
    try:
        with open(path, "rb") as file:
            is_gzip = file.read(2) == GZIP
            file.seek(0)
            if is_gzip:  # gzip's own reader checks the sum at the end
                with gzip.open(file) as stream:
                    before = cast(BinaryIO, _BeforeTheCut(stream))
                    with tarfile.open(fileobj=before, mode="r|", bufsize=1 << 20) as archive:
                        yield archive
            else:  # what is not asked for is skipped without being read
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    yield archive
                    _check_end(file, archive)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CutOffError(f"{path} is cut off or damaged ({str(error)[:80]})") from None


class _BeforeTheCut:
    """A stream whose every byte can be read before the error that follows it is raised."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        data = bytearray()
        try:
            while len(data) < size and (more := self._stream.read1(size - len(data))):
                data += more
        except (EOFError, OSError, zlib.error):
            if not data:
                raise  # and again when it is read on, for the stream stays where it is
        return bytes(data)


def _check_end(file: BinaryIO, archive: tarfile.TarFile) -> None:
    """Without its block of zeros a plain archive was cut between two files, which tarfile takes for an end."""
    file.seek(archive.offset)
    if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end mark")
