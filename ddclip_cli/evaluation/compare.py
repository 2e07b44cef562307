"""Whether one evaluation is better than another: a paired bootstrap over the objects that both have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.console import warn
from ddclip_cli.data.json_files import read_json_dict
from ddclip_cli.errors import UserError
from ddclip_cli.evaluation.metrics import TOP_K

RESAMPLES = 10_000


def compare_reports(
    first: dict[str, Any], second: dict[str, Any], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The difference second - first in the share of objects that are right, with what chance alone would make of it.

    Objects are drawn with replacement, each with its outcome in both reports (the mean of its runs), `resamples` times.
    A draw of N objects from N is a draw of how often each value of the difference occurs, and there are few values: so
    the cost does not depend on N.

    Args:
        first, second: reports of `eval-*` (see `read_report`), of the same objects; the queries of a retrieval are
            their captions.

    Returns:
        {"objects", "resamples", "views": {F: {"top1": {"first", "second", "difference", "low", "high", "p"}, ...}}} for
        the numbers of views that both have: percent, the middle 95 % of the differences drawn, and the two-sided
        bootstrap p-value of no difference.

    Raises:
        UserError: no object or no number of views in common.
    """
    a, b = first["outcomes"], second["outcomes"]
    row_of = {object_id: row for row, object_id in enumerate(b["ids"])}
    pairs = [(row, row_of[object_id]) for row, object_id in enumerate(a["ids"]) if object_id in row_of]
    views = [F for F in a["ranks"] if F in b["ranks"]]
    if not pairs or not views:
        what = "object" if not pairs else "number of views"
        raise UserError(f"the two reports have no {what} in common: compare evaluations of the same objects and views")
    if len(pairs) < max(len(a["ids"]), len(b["ids"])):
        warn(f"only the {len(pairs)} objects in both of {len(a['ids'])} and {len(b['ids'])} are compared")
    rows = np.array(pairs)
    table: dict[str, Any] = {}
    for num_views in views:
        ranks = [np.array(r["ranks"][num_views])[rows[:, side]] for side, r in enumerate((a, b))]  # two (N, R)
        table[num_views] = {}
        for k in TOP_K:
            # One stream of chance a cell: which others are compared changes nothing.
            rng = np.random.default_rng([seed, int(num_views), k])
            right = [(of_report < k).mean(axis=1) for of_report in ranks]  # two (N,)
            table[num_views][f"top{k}"] = _difference(right[0], right[1], resamples, rng)
    return {"objects": len(pairs), "resamples": resamples, "views": table}


def read_report(path: str | Path) -> dict[str, Any]:
    """A report of `eval-*`: the file, or the folder that it is in; its outcomes checked.

    Raises:
        UserError: it is no report, or one without outcomes that fit its objects.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    report = read_json_dict(path, "report")
    outcomes = report.get("outcomes")
    wrong = UserError(f"{path} is no report of an evaluation of ddclip: give what eval-lvis or the like wrote")
    if not isinstance(outcomes, dict) or not isinstance(outcomes.get("ids"), list):
        raise wrong
    ids, ranks = outcomes["ids"], outcomes.get("ranks")
    if not isinstance(ranks, dict) or len(set(map(str, ids))) < len(ids):
        raise wrong
    for num_views, of_views in ranks.items():
        try:
            values = np.array(of_views)
        except ValueError:  # rows of unequal length
            raise wrong from None
        if not num_views.isdecimal() or values.ndim != 2 or len(values) != len(ids) or values.dtype.kind != "i":
            raise wrong
    return report


def _difference(first: np.ndarray, second: np.ndarray, resamples: int, rng: np.random.Generator) -> dict[str, float]:
    values, counts = np.unique(np.round(second - first, 12), return_counts=True)
    drawn = rng.multinomial(len(first), counts / len(first), size=resamples) @ values / len(first)  # (resamples,)
    low, high = np.percentile(drawn, [2.5, 97.5])
    below, above = np.mean(drawn <= 0), np.mean(drawn >= 0)
    return {
        "first": 100 * float(first.mean()),
        "second": 100 * float(second.mean()),
        "difference": 100 * float((second - first).mean()),
        "low": 100 * float(low),
        "high": 100 * float(high),
        "p": float(min(1.0, 2 * min(below, above))),
    }
