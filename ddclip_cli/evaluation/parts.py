"""A long computation over many objects, part after part: shared by processes, and continued after a kill.

Every part holds the same objects whatever the number of processes and wherever a run was stopped, so that its results
have the same bits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.console import log, progress_bar
from ddclip_cli.errors import UserError
from ddclip_cli.ordered_pool import in_order

LONGEST_HEADER = 65_536


def computed(
    function: Callable[[range], np.ndarray],
    count: int,
    *,
    part_size: int,
    shape: Sequence[int],
    dtype: Any,
    processes: int = 1,
    settle: Callable[[int, int], None] | None = None,
    unfinished: Path | None = None,
    made_from: dict[str, Any] | None = None,
    force: bool = False,
    label: str = "evaluate",
) -> np.ndarray:
    """`function` of the objects `range(0, part_size)`, `range(part_size, ...)`, ... -> (count, *shape) of `dtype`.

    Args:
        function: takes a range of objects, returns (len(range), *shape); picklable if there are several processes.
        settle: where there are several processes, called in each with its number and how many there are, before its
            first part; a method of `function` finds there the very object that does the work.
        unfinished: a file that keeps the results of finished parts until the caller removes it: a run with the same
            `made_from` (JSON, what the results depend on) goes on after them.
        force: begin anew if it holds results of something else.

    Raises:
        UserError: `unfinished` holds results of something else.
    """
    kept = _Kept(unfinished, made_from, part_size, np.dtype(dtype), tuple(shape)) if unfinished is not None else None
    try:
        before = kept.read(count, force=force) if kept else np.empty((0, *shape), dtype)
        if len(before):
            log(f"going on after {len(before)} of {count} objects")
        tasks = [range(start, min(start + part_size, count)) for start in range(len(before), count, part_size)]
        found = [before]
        with progress_bar(total=count - len(before), label=label) as bar:
            prepare = partial(_settled, function, settle, processes)
            results = in_order(_results, tasks, jobs=processes, prepare=prepare, abandon=True)
            for part, result in zip(tasks, results, strict=True):
                found.append(np.ascontiguousarray(result, dtype))
                if kept:
                    kept.append(found[-1])
                bar.update(len(part))
    finally:
        if kept:
            kept.close()
    return np.concatenate(found)


def _settled(function: Any, settle: Callable[[int, int], None] | None, processes: int, number: int) -> Any:
    if settle is not None and processes > 1:
        settle(number, processes)
    return function


def _results(function: Callable[[range], np.ndarray], part: range) -> np.ndarray:
    return function(part)


class _Kept:
    """A file of a line of JSON (what the results were made from), then the results of one object after another."""

    def __init__(
        self, path: Path, made_from: dict[str, Any] | None, part_size: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> None:
        self.path, self.part_size, self.dtype, self.shape = path, part_size, dtype, shape
        self._header = json.dumps([made_from, part_size, dtype.str, shape], sort_keys=True).encode() + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on Windows
            pass
        except BlockingIOError:
            self._file.close()
            raise UserError(f"another evaluation is writing to {path.parent}: wait for it or end it") from None

    def read(self, count: int, *, force: bool) -> np.ndarray:
        """(n, *shape) of the first n objects: whole parts, without the one in whose writing a run was killed."""
        header = self._file.readline(LONGEST_HEADER)
        if header != self._header:
            was_cut = self._header.startswith(header)
            is_empty = header.endswith(b"\n") and not self._file.read(1)
            if not (was_cut or is_empty or force):
                raise UserError(
                    f"{self.path.parent} holds an unfinished evaluation of something else: repeat its command, "
                    "choose another --out, or replace it with --force"
                )
            self._file.seek(0)
            self._file.truncate()
            self._file.write(self._header)
            return np.empty((0, *self.shape), self.dtype)
        size = self.dtype.itemsize * int(np.prod(self.shape))
        there = min(count, (os.path.getsize(self.path) - len(header)) // size)
        there = there if there == count else there // self.part_size * self.part_size
        values = np.frombuffer(self._file.read(there * size), self.dtype).reshape(there, *self.shape)
        self._file.truncate(self._file.tell())
        return values

    def append(self, values: np.ndarray) -> None:
        self._file.write(values.tobytes())
        self._file.flush()

    def close(self) -> None:
        self._file.close()
