"""`ddclip retrieve`: the objects that fit a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import (
    DATA_DIR,
    CheckpointOption,
    DataDirOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    Precision,
    PrecisionOption,
    RecipeOption,
    SetOption,
)
from ddclip_cli.errors import UsageError

TRY_THE_SAMPLE = 'to try it at once: `ddclip retrieve --recipe sample "a white couch"`'


def command(
    queries: Annotated[list[str], typer.Argument(metavar="QUERY", help="Texts; - reads stdin.", show_default=False)],
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    index: Annotated[
        Path | None, typer.Option("--index", "-i", metavar="EMB.h5", help="Embeddings; default: the recipe's.")
    ] = None,
    checkpoint: CheckpointOption = None,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="Answers a query (retrieve.top_k).")] = None,
    as_json: JsonOption = False,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the answers too.")] = None,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    force: ForceOption = False,
) -> None:
    """Find the objects that fit a text best: rank, score (cosine) and id.

    Without --index these are the objects of the recipe: all of Objaverse, by the official embeddings.
    With --json there is one document a query.

    Examples:
    \b
      ddclip retrieve --recipe sample "a white couch" --sheet couches.png
      ddclip retrieve "a white couch" "a red sports car" --top-k 10 --json
    """
    from ddclip_cli import files
    from ddclip_cli.commands.needs import require
    from ddclip_cli.commands.sources import checkpoint_source, load_recipe_model
    from ddclip_cli.recipe import data_path, load_recipe

    texts = _read_queries(queries)
    given = [] if top_k is None else [f"retrieve.top_k={top_k}"]
    settings = load_recipe(recipe, [*(set_ or []), *given])
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise UsageError(f"a sheet is a PNG: name --sheet FILE.png, not {sheet}")
        files.refuse_existing(sheet, force=force, option="--sheet")
    index_path = index or data_path(settings.retrieve.index, data_dir)
    source = checkpoint_source(settings, checkpoint, data_dir)
    require(source, index_path, data_dir=data_dir, hint=TRY_THE_SAMPLE if index is None else None)

    from ddclip_cli.search.embeddings import ShapeEmbeddings
    from ddclip_cli.search.retrieve import search_texts
    from ddclip_cli.search.sheet import SheetRow, write_sheet

    embeddings = ShapeEmbeddings(index_path)
    model = load_recipe_model(settings, checkpoint, data_dir, device, precision.value)
    embeddings.check_model(model, checkpoint=checkpoint or settings.model.checkpoint)
    answers = search_texts(model, embeddings, texts, top_k=settings.retrieve.top_k)
    if sheet is not None:
        rows = [SheetRow(query, hits) for query, hits in zip(texts, answers, strict=True)]
        write_sheet(sheet, rows, embeddings.thumbnail)
    for query, hits in zip(texts, answers, strict=True):
        if as_json:
            _print_document(query, hits)
        else:
            _print_table(query, hits)


def _read_queries(queries: Sequence[str]) -> list[str]:
    """The texts to search; `-` stands for the lines of stdin, of which blank ones are left out."""
    import sys

    texts = []
    for query in queries:
        if query == "-":
            lines = [line.strip() for line in sys.stdin]
            if not any(lines):
                raise UsageError("no query came from stdin: give one text a line")
            texts += [line for line in lines if line]
        elif not query.strip():
            raise UsageError('a query is empty: describe what to find, such as "a white couch"')
        else:
            texts.append(query)
    return texts


def _print_document(query: str, hits: Sequence) -> None:
    from ddclip_cli.console import print_json

    found = [{"rank": hit.rank, "score": hit.score, "id": hit.object_id} for hit in hits]
    print_json({"query": query, "hits": found})


def _print_table(query: str, hits: Sequence) -> None:
    from ddclip_cli.console import print_table
    from ddclip_cli.search.plain import one_line

    print(one_line(query))
    print_table(["rank", "score", "id"], [[hit.rank, f"{hit.score:.4f}", one_line(hit.object_id)] for hit in hits])
