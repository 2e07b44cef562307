"""What the commands that evaluate share: their shorthands for keys of the recipe, and how a result is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddclip_cli.commands.options import Format, Protocol

if TYPE_CHECKING:
    from ddclip_cli.evaluation.report import Table

PAPER_RUNS = 3


def shorthands(
    section: str, *, views: str | None, runs: int | None, seed: int | None, protocol: Protocol | None
) -> list[str]:
    """Overrides of a section of the recipe that the options stand for."""
    crop = {None: None, Protocol.deterministic: "center", Protocol.paper: "random"}[protocol]
    if runs is None and protocol is Protocol.paper:
        runs = PAPER_RUNS
    given = {"views": views, "runs": runs, "seed": seed, "crop": crop}
    return [f"{section}.{key}={value}" for key, value in given.items() if value is not None]


def refuse_finished(out: Path | None, *, force: bool) -> None:
    """A folder that holds a report is only written to with --force."""
    from ddclip_cli import files
    from ddclip_cli.evaluation.report import REPORT

    if out is not None:
        files.refuse_existing(out / REPORT, force=force)


def print_result(report: dict[str, Any], table: Table, *, as_json: bool, form: Format) -> None:
    """The report as JSON, or its table for a person or a paper."""
    from ddclip_cli import console
    from ddclip_cli.evaluation.tables import latex, markdown

    if as_json:
        console.print_json(report)
    elif form is Format.text:
        console.print_table(*table)
    else:
        print((markdown if form is Format.markdown else latex)(*table), end="")
