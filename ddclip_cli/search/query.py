"""What is looked for: texts, pictures, meshes and known objects, alone or mixed, and what it should not be like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.errors import UserError
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.encoders import Encoders


@dataclass(frozen=True)
class Query:
    """One question. Its vector is the weighted sum of the vectors of its parts, brought to unit length."""

    text: str | None = None
    images: tuple[Path, ...] = ()
    """Pictures of one object, which are encoded together as its views."""
    mesh: Path | None = None
    object_id: str | None = None
    unlike: tuple[str, ...] = ()
    """Texts that are subtracted."""
    text_weight: float = 1.0
    """Of the text, where pictures, mesh and object weigh 1 each."""
    unlike_weight: float = 0.5

    @property
    def label(self) -> str:
        """The query in a line."""
        parts = [self.text] if self.text else []
        parts += [path.name for path in self.images]
        parts += [self.mesh.name] if self.mesh else []
        parts += [f"like {self.object_id}"] if self.object_id is not None else []
        return " + ".join(parts) + "".join(f" - {text}" for text in self.unlike)


def queries_of(texts: Sequence[str], **parts: Any) -> list[Query]:
    """A query for each text, with the other parts (the fields of `Query`) in every one; without texts, one of those."""
    return [Query(text=text, **parts) for text in texts] or [Query(**parts)]


def query_vectors(
    queries: Sequence[Query],
    encoders: Encoders,
    embeddings: ShapeEmbeddings,
    *,
    crop: str = "center",
    render: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """(Q, E) float32 of unit length.

    Args:
        crop: of pictures and views, as the embeddings were made.
        render: the options of `mesh_views` but the size, as the embeddings' meshes were rendered.

    Raises:
        UserError: a file or an object is not there, a query is empty, or its parts cancel out.
    """
    texts = list(dict.fromkeys(text for query in queries for text in (query.text, *query.unlike) if text))
    text_vector = dict(zip(texts, encoders.texts(texts), strict=True)) if texts else {}
    shared: dict[Any, np.ndarray] = {}  # the parts that queries have in common are encoded once
    vectors = np.zeros((len(queries), embeddings.embed_dim), np.float32)
    for vector, query in zip(vectors, queries, strict=True):
        if query.text:
            vector += query.text_weight * text_vector[query.text]
        if query.images:
            if query.images not in shared:
                shared[query.images] = encoders.pictures(query.images, crop=crop)
            vector += shared[query.images]
        if query.mesh is not None:
            if query.mesh not in shared:
                shared[query.mesh] = encoders.mesh(query.mesh, crop=crop, render=render or {"image_size": 512})
            vector += shared[query.mesh]
        if query.object_id is not None:
            vector += embeddings.vectors.take([embeddings.row(query.object_id)])[0]
        for text in query.unlike:
            vector -= query.unlike_weight * text_vector[text]
        length = np.linalg.norm(vector)
        if length < 1e-6:
            raise UserError(f"the query {query.label!r} cancels itself out: change its parts or their weights")
        vector /= length
    return vectors
