"""Files that appear under their final name only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddclip_cli.errors import UserError


@contextmanager
def writing(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a partial path beside `path` to write a file or folder to; it takes the final name when the block succeeds.

    A failure inside the block removes what was written, and an older `path` stays as it was. `durable` waits until the
    bytes are on disk, so that a power cut cannot empty the file; a killed process cannot in either case.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if durable:
            _sync(partial)
        if partial.is_dir() and path.is_dir():  # a folder cannot be replaced in one step: move the old one aside first
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.replace(path)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        raise


def refuse_existing(path: str | Path, *, force: bool) -> None:
    """Raise UserError if `path` exists and was not meant to be replaced."""
    if Path(path).exists() and not force:
        raise UserError(f"{path} exists already: choose another --out, or replace it with --force")


def _sync(path: Path) -> None:
    """Have the bytes on disk before the name points at them."""
    for file in [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
