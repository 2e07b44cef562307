"""Embeddings as Parquet: id, vector and metadata, which vector databases, Spark and Ray load as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ddclip_cli import files
from ddclip_cli.console import progress_bar
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.metadata import Metadata

GROUP_ROWS = 32_768
OURS = ("id", "vector", "")
"""Names that a column of the table cannot have; pandas gives none to a column that only counts rows."""
NUMBERS = (
    (re.compile(r"-?(0|[1-9]\d{0,17})"), pa.int64(), int),
    (re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d{1,2})?", re.IGNORECASE), pa.float64(), float),
)
"""How a number is written, its type, and what makes it of a text. What begins with zeros is a name: 007."""


def export_parquet(embeddings: ShapeEmbeddings, path: str | Path, *, metadata: Metadata | None = None) -> None:
    """Write `id` (string), `vector` (list of E float32, unit length) and the columns of `metadata`, in order of rows.

    A column is int64 or float64 if all that stands in it is written so, else string; what is empty or unknown is null.
    Memory does not grow with the number of objects, and what made the embeddings is kept in the file's own metadata.
    """
    others = [_column(metadata, name) for name in metadata.columns if name not in OURS] if metadata else []
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), embeddings.embed_dim), nullable=False),
            *[field for field, _ in others],
        ],
        metadata={"made_by": _json(embeddings)},
    )
    with (
        files.writing(path) as partial,
        parquet.ParquetWriter(partial, schema, compression="zstd") as writer,
        progress_bar(total=len(embeddings), label="export") as bar,
    ):
        for start, block in embeddings.vectors.blocks(GROUP_ROWS):
            ids = embeddings.ids[start : start + len(block)]
            values = pa.array(np.ascontiguousarray(block).reshape(-1))
            columns = [pa.array(ids), pa.FixedSizeListArray.from_arrays(values, type=schema.field("vector").type)]
            columns += [values_of(ids) for _, values_of in others]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=GROUP_ROWS)
            bar.update(len(block))


def _column(metadata: Metadata, name: str) -> tuple[pa.Field, Callable[[Sequence[str]], pa.Array]]:
    """A column of the table: its name with its type, and what gives the values of some objects."""
    texts = [text for text in metadata.column(name, metadata.ids) if text]
    numbers = (entry for entry in NUMBERS if texts and all(map(entry[0].fullmatch, texts)))
    _, kind, of_text = next(numbers, (None, pa.string(), str))

    def values_of(ids: Sequence[str]) -> pa.Array:
        return pa.array([of_text(text) if text else None for text in metadata.column(name, ids)], type=kind)

    return pa.field(name, kind), values_of


def _json(embeddings: ShapeEmbeddings) -> str:
    return json.dumps(embeddings.made_by or {}, ensure_ascii=False, sort_keys=True)
