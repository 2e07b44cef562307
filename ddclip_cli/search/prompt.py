"""The interactive prompt: one line a query, with the history of earlier sessions where the system has readline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ddclip_cli.search.feature_cache import cache_folder

PROMPT = "find> "
HISTORY_LENGTH = 1000


def lines() -> Iterator[str]:
    """What the user types, line by line, until the input ends; blank lines are left out."""
    history = cache_folder() / "history"
    try:
        import readline
    except ImportError:  # Windows
        readline = None  # type: ignore[assignment]
    if readline is not None:
        readline.set_history_length(HISTORY_LENGTH)
        with suppress(OSError):
            readline.read_history_file(history)
    try:
        while True:
            try:
                text = input(PROMPT).strip()
            except EOFError:
                print()
                return
            if text:
                yield text
    finally:
        if readline is not None:
            with suppress(OSError):
                history.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(history)
