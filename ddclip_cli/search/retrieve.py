"""Exact search: the k objects of greatest cosine to each query, by a blocked matrix product."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ddclip_cli.search.vectors import BLOCK_BYTES, StoredVectors


def retrieve(
    queries: np.ndarray,
    vectors: np.ndarray | StoredVectors,
    top_k: int,
    *,
    allowed: np.ndarray | None = None,
    block_rows: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Score every row for every query and keep the best; of equal scores the lower row comes first.

    Memory beside the arguments is (Q, block_rows) scores, however many rows there are.

    Args:
        queries: (Q, E) float32, unit length.
        vectors: (N, E) float32, unit length, in memory or in a file.
        top_k: at least 1; more than there are gives all.
        allowed: (N,) bool, the rows that may be answers; None: all.

    Returns:
        scores (Q, k) float32, falling, and rows (Q, k) int64, with k = min(top_k, allowed rows).

    Raises:
        UserError: a vector of a file is not finite.
    """
    k = min(top_k, len(vectors) if allowed is None else int(allowed.sum()))
    if k == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
    least = np.full(len(queries), -np.inf, np.float32)  # what a score has to exceed to be among the best so far
    transposed = np.ascontiguousarray(queries.T)
    for start, block in _blocks(vectors, block_rows):
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is looked for below
            scores = (block @ transposed).T if len(queries) == 1 else queries @ block.T  # (b, E), (E, Q) -> (Q, b)
        highest = scores.max(axis=1, initial=-np.inf)
        if not np.isfinite(highest).all() and isinstance(vectors, StoredVectors):
            raise vectors.bad_row(start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0]), "NaN or infinite")
        if allowed is not None:
            scores[:, ~allowed[start : start + len(block)]] = -np.inf
        for query in np.flatnonzero(highest > least):
            best[query] = _merged(best[query], scores[query], start, float(least[query]), k)
            if len(best[query][0]) == k:
                least[query] = best[query][0][-1]
    return np.stack([scores for scores, _ in best]), np.stack([rows for _, rows in best])


def _merged(
    best: tuple[np.ndarray, np.ndarray], scores: np.ndarray, start: int, least: float, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of those so far, (scores, rows), and of the scores (b,) of the rows from `start` on."""
    places = np.flatnonzero(scores > least)
    if len(places) > k:
        candidates = scores[places]
        places = places[candidates >= np.partition(candidates, len(candidates) - k)[len(candidates) - k]]
    # What was found before lies in lower rows, so it stays in front of its equals.
    merged_scores = np.concatenate([best[0], scores[places]])
    merged_rows = np.concatenate([best[1], start + places])
    order = np.argsort(-merged_scores, kind="stable")[:k]
    return merged_scores[order], merged_rows[order]


def _blocks(vectors: np.ndarray | StoredVectors, block_rows: int | None) -> Iterator[tuple[int, np.ndarray]]:
    if isinstance(vectors, StoredVectors):
        yield from vectors.blocks(block_rows)
        return
    step = block_rows or max(1, BLOCK_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        yield start, vectors[start : start + step]
