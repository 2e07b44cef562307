"""`ddclip index`: a faster search than that of all vectors, measured, and embeddings for other programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import ForceOption, JsonOption


class Kind(str, Enum):
    exact = "exact"
    fp16 = "fp16"
    int8 = "int8"
    ivf = "ivf"
    hnsw = "hnsw"
    auto = "auto"


def command(
    embeddings: Annotated[Path, typer.Argument(metavar="EMB.h5", help="Embeddings (see embed).", show_default=False)],
    kind: Annotated[Kind, typer.Option("--kind", help="exact needs no file; auto chooses by the number.")] = Kind.exact,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: EMB.KIND.index.", show_default=False)
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Write ids, vectors and metadata too.")
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV or Parquet with a column id, for --export.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where an ivf is made; auto: a large one on every GPU.")
    ] = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build an index, and measure its recall and speed beside exact search.

    retrieve --index takes its file in place of the embeddings. exact looks at
    all vectors and is measured only; fp16 and int8 do so in less memory; ivf
    and hnsw look near the query alone, which pays from some 100,000 objects.

    Examples:
    \b
      ddclip index embeddings.h5 --kind auto
      ddclip index embeddings.h5 --export embeddings.parquet --metadata objects.csv
    """
    from ddclip_cli import console, files
    from ddclip_cli.commands.needs import require
    from ddclip_cli.errors import UsageError

    if export is not None:
        if export.suffix.lower() != ".parquet":
            raise UsageError(f"the export is Parquet: name --export FILE.parquet, not {export}")
        files.refuse_existing(export, force=force, option="--export")
    elif metadata is not None:
        raise UsageError("--metadata goes into an export: name it with --export FILE.parquet")
    if out is not None and out.suffix != ".index":
        raise UsageError(f"retrieve knows an index by its suffix: name --out FILE.index, not {out}")
    require(embeddings, metadata)

    from ddclip_cli.search.embeddings import ShapeEmbeddings
    from ddclip_cli.search.export import export_parquet
    from ddclip_cli.search.index import build_index
    from ddclip_cli.search.index_file import SUFFIX
    from ddclip_cli.search.metadata import Metadata

    opened = ShapeEmbeddings(embeddings)
    if export is not None:
        export_parquet(opened, export, metadata=Metadata(metadata) if metadata is not None else None)
        console.log(f"{len(opened)} objects exported: {export}")
        if kind is Kind.exact:  # an export is what was asked for
            return
    record = build_index(opened, kind.value, out, device=device, force=force)
    is_file = record.kind != "exact"
    path = out or embeddings.with_name(f"{embeddings.stem}.{record.kind}{SUFFIX}") if is_file else None
    if as_json:
        console.print_json(
            {
                "index": None if path is None else str(path),
                "kind": record.kind,
                "objects": record.objects,
                "recall_at_10": record.recall_at_10,
                "milliseconds": record.milliseconds,
                "exact_milliseconds": record.exact_milliseconds,
            }
        )
        return
    columns = ["kind", "objects", "recall@10", "ms a query", "exact, ms", "file"]
    figures = [f"{record.recall_at_10:.4f}", record.milliseconds, record.exact_milliseconds]
    console.print_table(columns, [[record.kind, record.objects, *figures, str(path or "needs none")]])
