"""Text of unknown origin, made fit to be shown."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Line breaks and control characters (a terminal would obey them) become spaces, and runs of spaces one."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
