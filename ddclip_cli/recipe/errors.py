"""The error of a recipe: every mistake of it at once."""

from __future__ import annotations

from collections.abc import Sequence

from ddclip_cli.errors import UsageError


class RecipeError(UsageError):
    """What is wrong with a recipe and its overrides, one mistake a line, each naming its file and line. Exit code 2."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))
