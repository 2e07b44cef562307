"""A query and what was found for it: what tables, JSON, sheets and galleries are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """One answer to a query: `rank` from 1, `score` the cosine, `row` its place in the embeddings."""

    rank: int
    score: float
    object_id: str
    row: int
    name: str | None = None
    link: str | None = None
    path: str | None = None
    """The mesh, or the folder of pictures, that the object came from."""


@dataclass(frozen=True)
class Answer:
    """A query in a line, and its hits, best first."""

    query: str
    hits: Sequence[Hit]
