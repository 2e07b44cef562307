"""Exact search: the k objects of greatest cosine to each query, by a blocked matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.search.embeddings import ShapeEmbeddings

BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Hit:
    """One answer to a query: `rank` from 1, `score` the cosine, `row` its place in the embeddings."""

    rank: int
    score: float
    object_id: str
    row: int


def search_texts(
    model: MultiViewCLIP, embeddings: ShapeEmbeddings, texts: Sequence[str], *, top_k: int, batch_size: int = 256
) -> list[list[Hit]]:
    """The hits of each text, best first."""
    answers: list[list[Hit]] = []
    for start in range(0, len(texts), batch_size):
        queries = model.encode_text(list(texts[start : start + batch_size])).float().cpu().numpy()  # (Q, E)
        scores, rows = retrieve(queries, embeddings.vectors, top_k)
        for of_query, its_rows in zip(scores, rows, strict=True):
            pairs = enumerate(zip(of_query.tolist(), its_rows.tolist(), strict=True), start=1)
            answers.append([Hit(rank, score, embeddings.ids[row], row) for rank, (score, row) in pairs])
    return answers


def retrieve(
    queries: np.ndarray, vectors: np.ndarray, top_k: int, *, block_rows: int = BLOCK_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """Score every row for every query and keep the best; of equal scores the lower row comes first.

    Memory beside the arguments is (Q, block_rows) scores, however many rows there are.

    Args:
        queries: (Q, E) float32, unit length.
        vectors: (N, E) float32, unit length.
        top_k: at least 1; more than N gives N answers.

    Returns:
        scores (Q, k) float32, falling, and rows (Q, k) int64, with k = min(top_k, N).
    """
    k = min(top_k, len(vectors))
    best_scores = np.empty((len(queries), 0), dtype=np.float32)
    best_rows = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(vectors), block_rows):
        scores = queries @ vectors[start : start + block_rows].T  # (Q, E), (b, E) -> (Q, b)
        places = np.stack([_top(of_query, k) for of_query in scores])  # (Q, min(k, b))
        # What was found before lies in lower rows, so it stays in front of its equals.
        merged_scores = np.concatenate([best_scores, np.take_along_axis(scores, places, axis=1)], axis=1)
        merged_rows = np.concatenate([best_rows, start + places], axis=1)
        order = np.argsort(-merged_scores, axis=1, kind="stable")[:, :k]
        best_scores = np.take_along_axis(merged_scores, order, axis=1)
        best_rows = np.take_along_axis(merged_rows, order, axis=1)
    return best_scores, best_rows


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k greatest of (b,) scores, falling, the lower place first among equals."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
