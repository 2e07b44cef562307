"""The paired bootstrap of two reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import run

from ddclip_cli.errors import UserError
from ddclip_cli.evaluation.compare import compare_reports, read_report


def report(ranks, ids=None):
    """ranks (N, R) at six views."""
    ranks = np.asarray(ranks)
    return {"outcomes": {"ids": ids or [f"o{i}" for i in range(len(ranks))], "ranks": {"6": ranks.tolist()}}}


@pytest.fixture(scope="module")
def ranks():
    return np.random.default_rng(0).integers(0, 8, size=(200, 3))


def test_a_report_does_not_differ_from_itself(ranks):
    for found in compare_reports(report(ranks), report(ranks))["views"]["6"].values():
        assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)


def test_exchanged_reports_have_the_opposite_difference(ranks):
    other = np.random.default_rng(1).integers(0, 8, size=ranks.shape)
    a = compare_reports(report(ranks), report(other))["views"]["6"]["top1"]
    b = compare_reports(report(other), report(ranks))["views"]["6"]["top1"]
    assert a["difference"] == pytest.approx(-b["difference"])
    assert a["low"] == pytest.approx(-b["high"], abs=0.5)
    assert a["p"] == pytest.approx(b["p"], abs=0.03)


def test_interval_is_that_of_drawing_objects_one_by_one(ranks):
    other = np.clip(ranks + np.random.default_rng(2).integers(-1, 2, size=ranks.shape), 0, None)
    found = compare_reports(report(ranks), report(other))["views"]["6"]
    rng = np.random.default_rng(3)
    rows = rng.integers(0, len(ranks), size=(4000, len(ranks)))
    for k in (1, 3, 5):
        of_object = (other < k).mean(axis=1) - (ranks < k).mean(axis=1)
        assert found[f"top{k}"]["difference"] == pytest.approx(100 * of_object.mean())
        low, high = np.percentile(100 * of_object[rows].mean(axis=1), [2.5, 97.5])
        assert found[f"top{k}"]["low"] == pytest.approx(low, abs=0.4)
        assert found[f"top{k}"]["high"] == pytest.approx(high, abs=0.4)


def test_a_clear_difference_has_a_small_p_and_chance_a_large_one():
    rng = np.random.default_rng(0)
    good, bad = (rng.random((500, 1)) > 0.8).astype(int), (rng.random((500, 1)) > 0.5).astype(int)
    assert compare_reports(report(bad), report(good))["views"]["6"]["top1"]["p"] < 0.001
    again = (rng.random((500, 1)) > 0.8).astype(int)
    assert compare_reports(report(again), report(good))["views"]["6"]["top1"]["p"] > 0.05


def test_objects_are_paired_by_id_and_those_of_one_report_left_out(ranks, capsys):
    ids = [f"o{i}" for i in range(200)]
    shuffled = np.random.default_rng(5).permutation(200)
    moved = report(ranks[shuffled], [ids[i] for i in shuffled])
    assert compare_reports(report(ranks), moved)["views"]["6"]["top1"]["high"] == 0
    fewer = report(ranks[:150], ids[:150])
    assert compare_reports(report(ranks), fewer)["objects"] == 150
    assert "only the 150 objects in both of 200 and 150" in capsys.readouterr().err


def test_nothing_in_common_is_an_error(ranks):
    with pytest.raises(UserError, match="no object in common"):
        compare_reports(report(ranks), report(ranks, [f"p{i}" for i in range(200)]))
    other = report(ranks)
    other["outcomes"]["ranks"] = {"5": other["outcomes"]["ranks"]["6"]}
    with pytest.raises(UserError, match="no number of views in common"):
        compare_reports(report(ranks), other)


def test_command_prints_a_row_for_each_k(tmp_path, ranks):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.json").write_text(json.dumps(report(ranks)))
    (tmp_path / "b.json").write_text(json.dumps(report(ranks // 2)))
    result = run("compare", tmp_path / "a", tmp_path / "b.json", "--format", "markdown")
    assert result.code == 0, result.err
    assert [line.split(" | ")[1] for line in result.out.splitlines()[2:]] == ["top-1", "top-3", "top-5"]
    as_json = json.loads(run("compare", tmp_path / "a", tmp_path / "b.json", "--json").out)
    assert as_json["views"]["6"]["top3"]["first"] == pytest.approx(100 * (ranks < 3).mean())


GOOD = report([[0], [1]])["outcomes"]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"outcomes": 3},
        {"outcomes": GOOD | {"ids": ["a"]}},
        {"outcomes": GOOD | {"ids": ["a", "a"]}},
        {"outcomes": GOOD | {"ranks": {"six": [[0], [1]]}}},
        {"outcomes": GOOD | {"ranks": {"6": [[0], [1, 2]]}}},
        {"outcomes": GOOD | {"ranks": {"6": [["x"], ["y"]]}}},
        {"outcomes": GOOD | {"ranks": {"6": [0, 1]}}},
    ],
)
def test_what_is_no_report(tmp_path, document):
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="is no report of an evaluation"):
        read_report(tmp_path / "a.json")


def test_a_report_that_is_not_there_is_one_sentence(tmp_path):
    result = run("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert result.code == 1
    assert result.err == f"error: {tmp_path}/a.json does not exist: give the report that is meant\n"
