"""Errors that are the user's to mend: one sentence each, with the exit code the shell sees."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """What went wrong, where, and what to do about it, in one sentence. Exit code 1."""

    exit_code = 1
    is_shared = False
    """Whether every process of a run raises it: then the main one alone says it."""


class UsageError(UserError):
    """A command line or a recipe that cannot be run as it stands. Exit code 2."""

    exit_code = 2


def some(ids: Sequence[str]) -> str:
    """The first three, for a sentence: `a, b, c, ...`."""
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
