"""What people see of an evaluation: tables, rows for papers, the plot."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ddclip_cli.evaluation.plot import COLOURS, Curve, draw_curves
from ddclip_cli.evaluation.published import published
from ddclip_cli.evaluation.report import accuracy_curves, accuracy_table, write_report
from ddclip_cli.evaluation.tables import latex, markdown

COLUMNS, ROWS = ["class_name", "top-1 %", "± 1"], [["50% | more", 55.2, 0.104], ["a&b", 7, "-"]]


def test_markdown_rows():
    assert markdown(COLUMNS, ROWS).splitlines() == [
        "| class_name | top-1 % | ± 1 |",
        "| --- | ---: | ---: |",
        "| 50% \\| more | 55.20 | 0.10 |",
        "| a&b | 7 | - |",
    ]


def test_latex_rows():
    assert latex(COLUMNS, ROWS).splitlines() == [
        r"class\_name & top-1 \% & $\pm$ 1 \\ \hline",
        r"50\% | more & 55.20 & 0.10 \\",
        r"a\&b & 7 & - \\",
    ]


def rows(*values, std=None):
    row = dict(zip(["top1", "top3", "top5"], values, strict=True))
    return row | ({} if std is None else {"std": {"top1": std, "top3": std, "top5": std}})


def test_the_published_table_stands_beside_ours():
    report = {
        "views": {1: rows(40.0, 60.0, 70.0, std=0.1), 12: rows(55.0, 77.0, 83.0, std=0.2)},
        "baseline": {1: rows(25.0, 40.0, 50.0), 12: rows(35.0, 54.0, 62.0)},
        "published": published("lvis.csv", "four_model_ids.txt"),
    }
    columns, (one, twelve) = accuracy_table(report)
    assert dict(zip(columns, twelve, strict=True)) == {
        "views": 12,
        "top-1": 55.0,
        "top-3": 77.0,
        "top-5": 83.0,
        "± 1": 0.2,
        "± 3": 0.2,
        "± 5": 0.2,
        "published": "55.2/77.1/83.4",
        "zero-shot top-1": 35.0,
        "zero-shot top-3": 54.0,
        "zero-shot top-5": 62.0,
        "zero-shot published": "35.7/54.8/62.1",
    }
    assert dict(zip(columns, one, strict=True))["published"] == "-"
    names = [curve.name for curve in accuracy_curves(report)]
    assert len(names) == len(set(names)) == 8


def test_nothing_is_published_of_other_labels_or_training_sets():
    assert published("mine.csv", "four_model_ids.txt") == {}
    assert published("lvis.csv", None) == {}
    assert published("lvis.csv", "four_no_lvis_model_ids.txt")["views"][12] == (52.7, 74.5, 81.3)


def colours_of(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {"#" + bytes(pixel).hex() for pixel in np.unique(pixels, axis=0)}


def test_the_plot_shows_every_curve(tmp_path):
    curves = [Curve(f"curve {i}", {1: 10.0 * i, 12: 10.0 * i + 5}, i, dashed=i % 2 == 1) for i in range(6)]
    draw_curves(tmp_path / "plot.png", "title", curves)
    assert set(COLOURS) <= colours_of(tmp_path / "plot.png")
    first = (tmp_path / "plot.png").read_bytes()
    draw_curves(tmp_path / "plot.png", "title", curves)
    assert (tmp_path / "plot.png").read_bytes() == first


@pytest.mark.parametrize("points", [{12: 50.0}, {1: 0.0, 2: 0.0}, {1: 100.0, 3: 100.0}, {1: 0.0, 12: 100.0}])
def test_the_plot_lives_with_one_point_and_with_none_between(tmp_path, points):
    draw_curves(tmp_path / "plot.png", "title", [Curve("a", points)])
    assert COLOURS[0] in colours_of(tmp_path / "plot.png")


def test_the_report_is_the_last_file_and_ends_what_was_unfinished(tmp_path):
    (tmp_path / "unfinished").write_bytes(b"")
    with pytest.raises(TypeError):  # what JSON cannot hold
        write_report(tmp_path, {"views": object()}, (COLUMNS, ROWS), "t", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.md", "table.tex", "unfinished"]
    write_report(tmp_path, {"views": {}}, (COLUMNS, ROWS), "t", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "table.md", "table.tex"]
