"""Files that appear under their final name only when they are complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from ddclip_cli.errors import UserError


@contextmanager
def writing(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a partial path beside `path` to write a file or folder to; it takes the final name when the block succeeds.

    A failure inside the block removes what was written, and an older `path` stays as it was. `durable` waits until the
    bytes are on disk, so that a power cut cannot empty the file; a killed process cannot in either case, but it leaves
    its partial path behind (see `remove_leftovers`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _finish_replacing(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if durable:
            _sync(partial)
        if partial.is_dir() and path.is_dir():  # a folder cannot be replaced in one step: move the old one aside first
            old = _aside(path)
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.replace(path)
    except BaseException:
        _remove(partial)
        _finish_replacing(path)
        raise


def write_all(file: BinaryIO | FileIO, data: bytes | bytearray) -> None:
    """Write to an unbuffered file, which may take less at once than it is given."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_yaml(path: str | Path, document: dict[str, Any]) -> None:
    """Write a recipe, or sections of one, as YAML that `--recipe` reads."""
    import yaml

    with writing(path) as partial:
        partial.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")


@contextmanager
def held(path: Path) -> Iterator[BinaryIO]:
    """Open the unfinished file `path`, made if need be, for this process alone: two runs do not write into one file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with open(descriptor, "r+b", buffering=0) as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on Windows
            pass
        except BlockingIOError:
            raise UserError(f"{path} is being written by another run: wait for it or end it") from None
        if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:  # finished while we waited
            raise UserError(f"{path} was just finished by another run: run the same command again")
        yield file  # type: ignore[misc]


def refuse_existing(path: str | Path, *, force: bool, option: str = "--out") -> None:
    """Raise UserError if `path`, the value of `option`, exists and was not meant to be replaced."""
    if Path(path).exists() and not force:
        raise UserError(f"{path} exists already: choose another {option}, or replace it with --force")


def remove_leftovers(folder: str | Path, names: Container[str] | None = None) -> None:
    """Undo what killed processes left in `folder` of outputs called `names` (None: of all); once before many outputs.

    The partial paths of processes that still run stay.
    """
    folder = Path(folder)
    for entry in os.listdir(folder) if folder.is_dir() else ():
        name, runs = entry, False
        while unfinished := re.fullmatch(r"\.(.+)\.(\d{1,9})\.partial", name):  # a partial path may have one of its own
            name, runs = unfinished[1], runs or _runs(int(unfinished[2]))
        if aside := re.fullmatch(r"\.(.+)\.replaced", name):
            name = aside[1]
        if name == entry or runs or not (names is None or name in names):
            continue
        if aside:
            _finish_replacing(folder / name)
        else:
            _remove(folder / entry)


def _aside(path: Path) -> Path:
    """Where the folder `path` is while another takes its place. Without the process's number: a million outputs may lie
    beside it, too many to look through for each."""
    return path.with_name(f".{path.name}.replaced")


def _finish_replacing(path: Path) -> None:
    """Put the folder `path` back, or remove it if the new one is there, where a process was killed between the two."""
    old = _aside(path)
    if old.is_dir():
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if process == os.getpid():  # containers count anew: an earlier one had this number
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    """Have the bytes on disk before the name points at them."""
    for file in [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
