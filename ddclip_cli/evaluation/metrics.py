"""Top-k accuracy, recall and nDCG with a tie rule, so that equal scores give the same number on every machine.

An object counts as right in the top k if the rank of its true class is below k. The rank is the number of classes that
come before it: every class with a greater score, and of the classes with an equal score those of a lower index. So the
classes of an object have one order whatever its label is, and a model that scores all classes alike gets class 0 right
and no other. Scores that are not numbers (NaN) are refused: they have no order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TOP_K = (1, 3, 5)
RECALL_AT = (1, 5)


def true_class_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank of each object's true class, 0 for the best, by the tie rule above.

    Args:
        scores: (B, C) float, greater is better.
        labels: (B,) int64 in 0..C-1.

    Returns:
        (B,) int64 in 0..C-1.

    Raises:
        ValueError: scores hold a NaN.
    """
    if scores.isnan().any():
        raise ValueError("scores hold NaN")
    true = scores.gather(1, labels[:, None])  # (B, 1)
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]  # (B, C)
    return ((scores > true) | ((scores == true) & earlier)).sum(dim=1)


def top_k_hits(ranks: Tensor | np.ndarray, ks: Sequence[int] = TOP_K) -> list[int]:
    """Number of objects whose true class is in the top k, for each k of `ks`; `ranks` is (B,)."""
    return [int((ranks < k).sum()) for k in ks]


def percent(hits: int, objects: int) -> float:
    return 100.0 * hits / objects


def relevant_ranks(scores: Tensor, relevant: Tensor) -> list[np.ndarray]:
    """Ranks of each query's right answers, rising, 0 for the best; of equal scores the lower number comes first.

    Args:
        scores: (Q, N) float, greater is better.
        relevant: (Q, N) bool, at least one True a query.

    Raises:
        ValueError: scores hold a NaN.
    """
    if scores.isnan().any():
        raise ValueError("scores hold NaN")
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices  # (Q, N)
    return [np.flatnonzero(of_query) for of_query in relevant.gather(1, order).numpy()]


def mean_ndcg(ranks: Sequence[np.ndarray], k: int) -> float:
    """Mean over queries of nDCG at k, answers being right or wrong: the discounted gain of the right ones among the
    first k over that of the best order. `ranks`: of each query those of all its right answers, from 0."""
    gains = 1 / np.log2(np.arange(2, k + 2))  # (k,)
    best = np.cumsum(gains)
    return float(np.mean([gains[of_query[of_query < k]].sum() / best[min(k, len(of_query)) - 1] for of_query in ranks]))
