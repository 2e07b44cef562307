"""A report as people see it: a table with published figures beside ours, and a folder of files."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from ddclip_cli import files
from ddclip_cli.evaluation.plot import Curve, draw_curves
from ddclip_cli.evaluation.tables import latex, markdown

REPORT, UNFINISHED = "report.json", "unfinished"
"""Names in a report's folder: the report, there when all is done, and what is done until then."""

Table = tuple[list[str], list[list[object]]]
"""Names of the columns, rows."""


def accuracy_table(report: dict[str, Any]) -> Table:
    """A row for each number of views: top-1, 3 and 5, their deviation over runs, the baseline's, the published ones."""
    columns: dict[str, list[object]] = {"views": list(report["views"])}
    own, published = list(report["views"].values()), report.get("published", {})
    for k in (1, 3, 5):
        columns[f"top-{k}"] = [of_views[f"top{k}"] for of_views in own]
    if all("std" in of_views for of_views in own):
        for k in (1, 3, 5):
            columns[f"± {k}"] = [of_views["std"][f"top{k}"] for of_views in own]
    if "views" in published:
        columns["published"] = [_together(published["views"].get(num_views)) for num_views in report["views"]]
    if "baseline" in report:
        baseline = report["baseline"]
        for k in (1, 3, 5):
            columns[f"zero-shot top-{k}"] = [of_views[f"top{k}"] for of_views in baseline.values()]
        if "baseline" in published:
            columns["zero-shot published"] = [_together(published["baseline"].get(num_views)) for num_views in baseline]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def accuracy_curves(report: dict[str, Any]) -> list[Curve]:
    """Top-1, 3 and 5 against the number of views, and what there is to compare them with."""
    published, curves = report.get("published", {}), []
    for colour, k in enumerate((1, 3, 5)):
        curves.append(Curve(f"top-{k}", {F: row[f"top{k}"] for F, row in report["views"].items()}, colour))
        if "views" in published:
            points = {F: row[colour] for F, row in published["views"].items()}
            curves.append(Curve(f"top-{k}, published", points, colour, dashed=True))
    if "baseline" in report:
        curves.append(Curve("top-1, zero-shot", {F: row["top1"] for F, row in report["baseline"].items()}, 3))
        if "baseline" in published:
            points = {F: row[0] for F, row in published["baseline"].items()}
            curves.append(Curve("top-1, zero-shot, published", points, 3, dashed=True))
    return curves


def recall_table(report: dict[str, Any]) -> Table:
    """Two rows for each number of views, one a direction of retrieval."""
    several = any("std" in way for of_views in report["views"].values() for way in of_views.values())
    columns = ["views", "retrieval", "recall@1", "recall@5", "nDCG@5", "median rank"]
    columns += ["± recall@1"] if several else []
    columns += ["published recall@1"] if report["published"] else []
    columns += ["zero-shot recall@1", "zero-shot recall@5"] if "baseline" in report else []
    rows: list[list[object]] = []
    for num_views, of_views in report["views"].items():
        for way, found in of_views.items():
            row: list[object] = [num_views, way.replace("_", " ")]
            row += [found[key] for key in ("recall1", "recall5", "ndcg5", "median_rank")]
            row += [found["std"]["recall1"]] if several else []
            row += [report["published"].get(way, {}).get(num_views, "-")] if report["published"] else []
            if "baseline" in report:
                row += [report["baseline"][num_views][way][key] for key in ("recall1", "recall5")]
            rows.append(row)
    return columns, rows


def recall_curves(report: dict[str, Any]) -> list[Curve]:
    """Recall at 1 and 5, both ways, against the number of views."""
    curves = []
    for colour, (way, key) in enumerate(product(("text_to_shape", "shape_to_text"), ("recall1", "recall5"))):
        name = f"{way.replace('_', ' ')}, recall@{key[-1]}"
        curves.append(Curve(name, {F: of_views[way][key] for F, of_views in report["views"].items()}, colour))
        if key == "recall1" and way in report["published"]:
            curves.append(Curve(f"{name}, published", report["published"][way], colour, dashed=True))
    return curves


def write_report(folder: Path, report: dict[str, Any], table: Table, title: str, curves: list[Curve]) -> None:
    """Write `report.json`, last, after `table.md`, `table.tex` and, if there are curves, `plot.png`."""
    files.remove_leftovers(folder)
    with files.writing(folder / "table.md") as partial:
        partial.write_text(markdown(*table), encoding="utf-8")
    with files.writing(folder / "table.tex") as partial:
        partial.write_text(latex(*table), encoding="utf-8")
    if curves:
        draw_curves(folder / "plot.png", title, curves)
    with files.writing(folder / REPORT) as partial:
        partial.write_text(json.dumps(report, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / UNFINISHED).unlink(missing_ok=True)


def _together(row: tuple[float, ...] | None) -> str:
    """55.2/77.1/83.4, as the paper's tables are quoted."""
    return "-" if row is None else "/".join(f"{value:.1f}" for value in row)
