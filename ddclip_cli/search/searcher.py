"""A library that is open for questions: embeddings, encoders and what is known of the objects, kept loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ddclip_cli.search.answer import Answer, Hit
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.encoders import Encoders
from ddclip_cli.search.metadata import Metadata
from ddclip_cli.search.query import Query, query_vectors
from ddclip_cli.search.retrieve import retrieve

QUERIES_AT_ONCE = 256
"""So that memory does not grow with their number."""
OBJAVERSE_ID = re.compile(r"[0-9a-f]{32}")
OBJAVERSE_PAGE = "https://sketchfab.com/3d-models/{}"


class Index(Protocol):
    """What finds the rows of greatest cosine, exactly or nearly; row -1 where it finds no more."""

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]: ...


class Searcher:
    """Answers queries over one file of embeddings.

    Args:
        index: finds the rows instead of a search of all vectors, where no `allowed` rows are set.
        metadata: names, links and columns of the objects.
        allowed: (N,) bool, the rows that may be answers; None: all.
        crop, render: how pictures and meshes are made into views (see `query_vectors`).
    """

    def __init__(
        self,
        embeddings: ShapeEmbeddings,
        encoders: Encoders,
        *,
        index: Index | None = None,
        metadata: Metadata | None = None,
        allowed: np.ndarray | None = None,
        crop: str = "center",
        render: Mapping[str, Any] | None = None,
    ) -> None:
        self.embeddings, self.encoders = embeddings, encoders
        self._index, self._metadata, self._allowed = index, metadata, allowed
        self._crop, self._render = crop, render

    def search(self, queries: Sequence[Query], *, top_k: int, min_score: float | None = None) -> list[Answer]:
        """The hits of each query: the `top_k` best that score at least `min_score`. An object never answers itself."""
        parts = (queries[start : start + QUERIES_AT_ONCE] for start in range(0, len(queries), QUERIES_AT_ONCE))
        return [answer for part in parts for answer in self._answers(part, top_k, min_score)]

    def _answers(self, queries: Sequence[Query], top_k: int, min_score: float | None) -> list[Answer]:
        vectors = query_vectors(queries, self.encoders, self.embeddings, crop=self._crop, render=self._render)
        wanted = top_k + any(query.object_id is not None for query in queries)
        if self._index is not None and self._allowed is None:
            scores, rows = self._index.search(vectors, wanted)
        else:
            scores, rows = retrieve(vectors, self.embeddings.vectors, wanted, allowed=self._allowed)
        ids = iter(self.embeddings.ids_of(np.maximum(rows, 0).reshape(-1)))
        answers = []
        for query, its_scores, its_rows in zip(queries, scores.tolist(), rows.tolist(), strict=True):
            found = [
                (score, row, object_id)
                for score, row, object_id in zip(its_scores, its_rows, ids, strict=False)
                if row >= 0 and object_id != query.object_id and (min_score is None or score >= min_score)
            ][:top_k]
            hits = [self._hit(rank, score, row, object_id) for rank, (score, row, object_id) in enumerate(found, 1)]
            answers.append(Answer(query.label, hits))
        return answers

    def _hit(self, rank: int, score: float, row: int, object_id: str) -> Hit:
        known = self._metadata.of(object_id) if self._metadata is not None else {}
        link = known.get("link") or known.get("url")
        if not link and OBJAVERSE_ID.fullmatch(object_id):
            link = OBJAVERSE_PAGE.format(object_id)
        if link and not link.startswith(("https://", "http://")):  # nothing that a click would run
            link = None
        path = self.embeddings.source_path(row) or known.get("path") or None
        return Hit(rank, score, object_id, row, known.get("name") or known.get("title") or None, link, path)
