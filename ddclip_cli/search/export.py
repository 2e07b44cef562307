"""Embeddings as Parquet: id, vector and metadata, which vector databases, Spark and Ray load as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ddclip_cli import files
from ddclip_cli.console import progress_bar
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.metadata import Metadata

GROUP_ROWS = 32_768


def export_parquet(embeddings: ShapeEmbeddings, path: str | Path, *, metadata: Metadata | None = None) -> None:
    """Write `id` (string), `vector` (list of E float32, unit length) and the columns of `metadata`, in order of rows.

    Memory does not grow with the number of objects, and what made the embeddings is kept in the file's own metadata.
    """
    others = [name for name in (metadata.columns if metadata else ()) if name not in ("id", "vector")]
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), embeddings.embed_dim), nullable=False),
            *[pa.field(name, pa.string()) for name in others],
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
            columns += [pa.array(metadata.column(name, ids)) for name in others] if metadata else []
            writer.write_table(pa.table(columns, schema=schema), row_group_size=GROUP_ROWS)
            bar.update(len(block))


def _json(embeddings: ShapeEmbeddings) -> str:
    return json.dumps(embeddings.made_by or {}, ensure_ascii=False, sort_keys=True)
