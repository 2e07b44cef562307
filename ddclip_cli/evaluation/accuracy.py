"""From what became of every object to a report: accuracies, their spread over runs, and which classes are confused."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddclip_cli.evaluation.metrics import TOP_K, percent, top_k_hits

MOST_CONFUSED = 20


@dataclass(frozen=True)
class Outcomes:
    """What became of N objects of known class, for each number of views F and run R."""

    class_index: np.ndarray
    """(N,) the true classes"""
    views: Sequence[int]
    ranks: np.ndarray
    """(N, len(views), R): how many classes came before the true one"""
    predicted: np.ndarray
    """(N, len(views), R): the class that came first"""


def accuracies(outcomes: Outcomes) -> dict[int, dict[str, Any]]:
    """{F: {"top1", "top3", "top5"}} in percent, the mean of the runs; with several also "std", the sample standard
    deviation: {"top1", ...}."""
    table: dict[int, dict[str, Any]] = {}
    for column, num_views in enumerate(outcomes.views):
        hits = [top_k_hits(of_run) for of_run in outcomes.ranks[:, column].T]  # R lists of len(TOP_K)
        of_k = {f"top{k}": [percent(h[i], len(outcomes.ranks)) for h in hits] for i, k in enumerate(TOP_K)}
        table[num_views] = {name: statistics.fmean(values) for name, values in of_k.items()}
        if len(hits) > 1:
            table[num_views]["std"] = {name: statistics.stdev(values) for name, values in of_k.items()}
    return table


def per_class(outcomes: Outcomes, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class {"class", "name", "objects", "top1": {F: percent, mean of the runs}}; None without objects."""
    objects = np.bincount(outcomes.class_index, minlength=len(names))
    hits = np.zeros((len(names), len(outcomes.views)), dtype=np.int64)
    np.add.at(hits, outcomes.class_index, (outcomes.ranks == 0).sum(axis=2))
    runs = outcomes.ranks.shape[2]
    return [
        {
            "class": index,
            "name": name,
            "objects": int(count),
            "top1": {
                num_views: percent(int(hit), int(count) * runs) if count else None
                for num_views, hit in zip(outcomes.views, hits[index], strict=True)
            },
        }
        for index, (name, count) in enumerate(zip(names, objects, strict=True))
    ]


def confused(outcomes: Outcomes, names: Sequence[str]) -> dict[int, list[dict[str, Any]]]:
    """{F: the pairs of classes most often confused, [{"class", "taken_for", "times", "share"}]}.

    `times` counts the runs; `share` is their percentage of all that was asked of that class. Of equals, the pair of
    lower class numbers comes first.
    """
    runs = outcomes.ranks.shape[2]
    asked = np.bincount(outcomes.class_index, minlength=len(names)) * runs
    table = {}
    for column, num_views in enumerate(outcomes.views):
        truth = np.repeat(outcomes.class_index, runs)
        pairs = truth * len(names) + outcomes.predicted[:, column].reshape(-1)
        wrong = pairs[outcomes.ranks[:, column].reshape(-1) > 0]
        found, times = np.unique(wrong, return_counts=True)
        most = np.argsort(-times, kind="stable")[:MOST_CONFUSED]
        table[num_views] = [
            {
                "class": names[found[place] // len(names)],
                "taken_for": names[found[place] % len(names)],
                "times": int(times[place]),
                "share": percent(int(times[place]), int(asked[found[place] // len(names)])),
            }
            for place in most
        ]
    return table
