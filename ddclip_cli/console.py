"""What the user sees: results on stdout; log, warnings and progress on stderr, from the main process only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def is_main_process() -> bool:
    """True on rank 0 of a distributed run, and in every run that is not distributed."""
    return os.environ.get("RANK", "0") == "0"


def log(message: str) -> None:
    if is_main_process():
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    log(f"warning: {message}")


def progress(items: Iterable[T], *, total: int | None = None, label: str, unit: str = "objects") -> Iterator[T]:
    """Pass `items` on, with a bar (rate and time left) on stderr when stderr is a terminal."""
    with progress_bar(total=total, label=label, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def progress_bar(*, total: int | None, label: str, unit: str = "objects", done: int = 0) -> Iterator[Any]:
    """A tqdm bar to `update(n)` and `set_postfix_str(text)` by hand; silent when stderr is no terminal.

    `done` of the total were done by an earlier run: they do not count as speed.
    """
    from tqdm import tqdm

    silent = not (is_main_process() and sys.stderr.isatty())
    with tqdm(
        total=total, initial=done, desc=label, unit=f" {unit}", disable=silent, dynamic_ncols=True, leave=False
    ) as bar:
        yield bar


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A result for a person, on stdout. Columns after the first are right-aligned if their cells are numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(
        title=None if title is None else Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Text, not str: an object id such as `[red]` is not markup.
        table.add_row(*[Text(f"{cell:.2f}" if isinstance(cell, float) else str(cell)) for cell in row])
    width = None if sys.stdout.isatty() else 10_000  # a file or pipe gets every row on one line
    Console(file=sys.stdout, width=width).print(table)


def print_json(document: Any) -> None:
    """A result for a program: one JSON document on stdout."""
    print(json.dumps(document, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None), flush=True)
