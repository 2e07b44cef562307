"""A table as rows of Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$"} | {character: rf"\{character}" for character in "&%$#_{}"}


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A pipe table; columns after the first are right-aligned."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *[[_text(cell) for cell in row] for row in rows]]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def latex(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The rows of a tabular, its heads first."""
    heads, *body = [[_escaped(_text(cell)) for cell in row] for row in [columns, *rows]]
    return "".join(
        rf"{' & '.join(line)} \\" + end + "\n" for line, end in [(heads, r" \hline"), *[(b, "") for b in body]]
    )


def _text(cell: object) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
