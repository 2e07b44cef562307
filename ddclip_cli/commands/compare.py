"""`ddclip compare`: whether the difference of two evaluations is more than chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import Format, FormatOption, JsonOption


def command(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="A report, or its folder.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another of the same objects.", show_default=False)],
    resamples: Annotated[int, typer.Option(min=100, help="Draws of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    format_: FormatOption = Format.text,
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations of the same objects: by a paired bootstrap, is B better than A?

    A row for each number of views and k: the percentage right in both, the difference B - A, the middle 95 % of what
    10,000 draws of the objects give for it, and the p-value of no difference.

    Examples:
    \b
      ddclip compare lvis lvis_mine
      ddclip compare a/report.json b/report.json --json
    """
    from ddclip_cli.commands.evaluating import print_result
    from ddclip_cli.evaluation.compare import compare_reports, read_report

    comparison = compare_reports(read_report(first), read_report(second), resamples=resamples, seed=seed)
    columns = ["views", "right in", "A", "B", "B - A", "from", "to", "p"]
    rows: list[list[object]] = []
    for num_views, of_views in comparison["views"].items():
        for name, found in of_views.items():
            cells = [found[key] for key in ("first", "second", "difference", "low", "high")]
            rows.append([int(num_views), name.replace("top", "top-"), *cells, f"{found['p']:.4f}"])
    print_result(comparison, (columns, rows), as_json=as_json, form=format_)
