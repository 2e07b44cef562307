"""Where recipes are found: those of ours by name, a user's by path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ddclip_cli.recipe.errors import RecipeError
from ddclip_cli.recipe.keys import nearest_name

PACKAGE = Path(__file__).resolve().parents[1]
SIZE_LIMIT = 100_000  # bytes; a recipe has a few thousand


@dataclass(frozen=True)
class Source:
    """A recipe file and what it is called in messages."""

    path: Path
    shown: str

    def read(self) -> str:
        """The file's text. Raises RecipeError."""
        try:
            with open(self.path, "rb") as handle:
                content = handle.read(SIZE_LIMIT + 1)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RecipeError([f"{self.shown}: the recipe file can not be read: {reason}"]) from None
        if len(content) > SIZE_LIMIT:
            raise RecipeError([f"{self.shown}: larger than {SIZE_LIMIT:,} bytes, which no recipe is"])
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise RecipeError([f"{self.shown}:{line}: not UTF-8 text: save the file as UTF-8"]) from None


def recipes_dir() -> Path:
    """The folder of our recipes: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parent / "recipes"


def names() -> list[str]:
    return sorted(path.stem for path in recipes_dir().glob("*.yaml"))


def list_recipes() -> list[tuple[str, str]]:
    """(name, what it is) of every recipe of ours; what it is stands in the first line of its file."""
    return [(name, _first_comment(shipped(name))) for name in names()]


def find(name_or_path: str, *, beside: Source | None = None) -> Source:
    """The recipe of that name, or the file at that path (relative to the recipe `beside`, if one is given).

    Raises RecipeError with one problem, without a place: the caller knows where the name was written.
    """
    if not is_path(name_or_path):
        if name_or_path in names():
            return shipped(name_or_path)
        meant = nearest_name(name_or_path, names())
        hint = f"did you mean '{meant}'?" if meant else f"there are {', '.join(names())}"
        raise RecipeError([f"no recipe is called '{name_or_path}', {hint} (your own: give the path of a .yaml file)"])
    given = Path(name_or_path).expanduser()
    source = Source(given, str(given)) if beside is None else _relative(given, beside)
    if source.path.is_dir():
        raise RecipeError([f"'{source.shown}' is a folder: give the .yaml file in it"])
    if not source.path.exists():
        hint = f"; the recipe of ours is called '{given.stem}'" if given.stem in names() else ""
        raise RecipeError([f"there is no recipe file '{source.shown}'{hint}"])
    return source


def is_path(name_or_path: str) -> bool:
    return Path(name_or_path).suffix in (".yaml", ".yml") or os.sep in name_or_path or "/" in name_or_path


def shipped(name: str) -> Source:
    return Source(recipes_dir() / f"{name}.yaml", f"recipes/{name}.yaml")


def _relative(given: Path, child: Source) -> Source:
    if given.is_absolute():
        return Source(given, str(given))
    return Source(child.path.parent / given, os.path.normpath(Path(child.shown).parent / given))


def _first_comment(source: Source) -> str:
    line = source.read().split("\n", 1)[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""
