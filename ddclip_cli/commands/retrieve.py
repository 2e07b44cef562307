"""`ddclip retrieve`: the objects that fit a text, a picture, a mesh, another object, or a mixture of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddclip_cli.commands.answers import Show
from ddclip_cli.commands.options import (
    DATA_DIR,
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

if TYPE_CHECKING:
    from ddclip_cli.recipe import Recipe
    from ddclip_cli.search.embeddings import ShapeEmbeddings
    from ddclip_cli.search.index import NearIndex
    from ddclip_cli.search.searcher import Searcher

TRY_THE_SAMPLE = 'to try it at once: `ddclip retrieve --recipe sample "a white couch"`'


def command(
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY", help="Texts; - reads stdin.", show_default=False)
    ] = None,
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    index: Annotated[
        Path | None,
        typer.Option("--index", "-i", metavar="FILE", help="Embeddings (.h5) or an index; default: the recipe's."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", "-c", metavar="NAME_OR_PATH", help="Default: the one that made the embeddings."),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", metavar="FILE", help="A picture; several show ONE object.")
    ] = None,
    mesh: Annotated[Path | None, typer.Option(metavar="FILE", help="A mesh, which is rendered.")] = None,
    like: Annotated[str | None, typer.Option("--object", metavar="ID", help="More like this object.")] = None,
    unlike: Annotated[list[str] | None, typer.Option("--not", metavar="TEXT", help="What it should not be.")] = None,
    weight: Annotated[
        float, typer.Option(min=0.0, help="Of a text mixed with a picture, mesh or object, which weigh 1 each.")
    ] = 1.0,
    not_weight: Annotated[float, typer.Option(min=0.0, help="Of each --not, where the text weighs --weight.")] = 0.5,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", min=1, help="Answers a query (retrieve.top_k).")] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out answers below this cosine.")] = None,
    metadata: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV or Parquet: id, and columns such as name and link.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="FILE|COLUMN=VALUE", help="Only these: a file of ids, or by --metadata."),
    ] = None,
    as_json: JsonOption = False,
    paths: Annotated[bool, typer.Option("--paths", help="Print only the files of the objects, for pipes.")] = False,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the answers as a picture.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the answers as a gallery page.")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Show thumbnails in terminals that can.")
    ] = True,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep the features of texts between runs.")] = True,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    force: ForceOption = False,
) -> None:
    """Find the objects that fit best: rank, score (cosine) and id.

    Every text is a query of its own; pictures, a mesh, an object and --not
    join each of them. Without any, on a terminal, it asks for texts.
    Without --index the objects are the recipe's: all of Objaverse, by the
    official embeddings. With --json there is one document a query.

    Examples:
    \b
      ddclip retrieve --recipe sample "a white couch" --html couches.html
      ddclip retrieve --recipe sample --object white-couch-500271 "a red couch"
    """
    import sys

    from ddclip_cli import files
    from ddclip_cli.recipe import load_recipe

    texts = _read_queries(queries or [])
    asks = not texts and not images and mesh is None and like is None
    if asks and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError('there is no query: give a QUERY such as "a white couch", --image, --mesh or --object')
    _check_outputs(sheet, html, as_json=as_json, paths=paths, asks=asks)
    for path, option in ((sheet, "--sheet"), (html, "--html")):
        if path is not None:
            files.refuse_existing(path, force=force, option=option)
    given = [] if top_k is None else [f"retrieve.top_k={top_k}"]
    settings = load_recipe(recipe, [*(set_ or []), *given])

    from ddclip_cli.search.query import queries_of

    searcher = _open(
        settings, index, checkpoint, metadata, filters or [], data_dir, device, precision.value, use_cache=cache
    )
    show = Show(as_json=as_json, paths=paths, pictures=pictures)
    if asks:
        _prompt(searcher, show, settings.retrieve.top_k, min_score, tuple(unlike or ()), not_weight)
        return
    asked = queries_of(
        texts,
        images=tuple(images or ()),
        mesh=mesh,
        object_id=like,
        unlike=tuple(unlike or ()),
        text_weight=weight,
        unlike_weight=not_weight,
    )
    answers = searcher.search(asked, top_k=settings.retrieve.top_k, min_score=min_score)
    if sheet is not None:
        from ddclip_cli.search.sheet import write_sheet

        write_sheet(sheet, answers, searcher.embeddings.thumbnail)
    if html is not None:
        from ddclip_cli.search.gallery import write_gallery

        write_gallery(html, answers, searcher.embeddings.thumbnail)
    for answer in answers:
        show(answer, searcher.embeddings)


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


def _check_outputs(sheet: Path | None, html: Path | None, *, as_json: bool, paths: bool, asks: bool) -> None:
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UsageError(f"a sheet is a PNG: name --sheet FILE.png, not {sheet}")
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"a gallery is an HTML page: name --html FILE.html, not {html}")
    if as_json and paths:
        raise UsageError("--json and --paths are two ways to print the same: choose one")
    if asks and (sheet is not None or html is not None):
        raise UsageError("--sheet and --html show the answers to a query: give a QUERY with them")


def _open(
    settings: Recipe,
    index: Path | None,
    checkpoint: str | None,
    metadata: Path | None,
    filters: Sequence[str],
    data_dir: Path,
    device: str,
    precision: str,
    *,
    use_cache: bool,
) -> Searcher:
    """The library that is searched, with the model that made its embeddings."""
    from ddclip_cli.commands.needs import require
    from ddclip_cli.commands.sources import backbone_of, checkpoint_source, recorded_source
    from ddclip_cli.recipe import data_path

    index_path = index or data_path(settings.retrieve.index, data_dir)
    if index is not None:
        require(index)  # which checkpoint is needed it says itself
    elif not index_path.exists():
        source = checkpoint_source(settings, checkpoint, data_dir)
        require(source, index_path, data_dir=data_dir, hint=TRY_THE_SAMPLE)

    from ddclip_cli.search.embeddings import ShapeEmbeddings
    from ddclip_cli.search.encoders import Encoders
    from ddclip_cli.search.feature_cache import FeatureCache
    from ddclip_cli.search.metadata import Metadata, allowed_rows
    from ddclip_cli.search.searcher import Searcher

    near = _near_index(index_path) if index_path.suffix == ".index" else None
    embeddings = near.embeddings if near is not None else ShapeEmbeddings(index_path)
    if checkpoint is None and embeddings.made_by is not None:
        source = recorded_source(embeddings.made_by, embeddings.path, data_dir)
        named = str(embeddings.made_by.get("checkpoint"))
    else:
        source = checkpoint_source(settings, checkpoint, data_dir)
        named = checkpoint or str(settings.model.checkpoint)
    require(source, data_dir=data_dir)
    known = Metadata(metadata) if metadata is not None else None
    allowed = allowed_rows(embeddings.ids, filters, known) if filters else None
    backbone = backbone_of(settings, source, data_dir)
    feature_cache = FeatureCache() if use_cache else None
    encoders = Encoders(source, backbone=backbone, device=device, precision=precision, cache=feature_cache)
    embeddings.check_model(encoders, checkpoint=named)
    crop, render = _views_as_recorded(embeddings, settings)
    return Searcher(embeddings, encoders, index=near, metadata=known, allowed=allowed, crop=crop, render=render)


def _near_index(path: Path) -> NearIndex:
    from ddclip_cli.search.index import NearIndex  # and faiss with it

    return NearIndex(path)


def _views_as_recorded(embeddings: ShapeEmbeddings, settings: Recipe) -> tuple[str, dict[str, Any]]:
    """How pictures are cropped and meshes rendered: as when the embeddings were made, else as the recipe says."""
    from ddclip_cli.recipe.schema import RenderSection

    record = embeddings.made_by or {}
    crop = record.get("crop") if record.get("crop") in ("none", "center") else settings.embed.crop
    try:
        views = {"num_views": record["num_views"]}
        render = RenderSection.model_validate(record["recipe"]["render"] | views)
    except (KeyError, TypeError, ValueError):
        render = settings.render
    return str(crop), render.model_dump(exclude={"object_ids"})


def _prompt(
    searcher: Searcher, show: Show, top_k: int, min_score: float | None, unlike: tuple[str, ...], not_weight: float
) -> None:
    """Ask for texts until the input ends; a query that fails does not end it."""
    from ddclip_cli import console
    from ddclip_cli.errors import UserError
    from ddclip_cli.search.prompt import lines
    from ddclip_cli.search.query import Query

    console.log(f"{len(searcher.embeddings)} objects; type what to find, Ctrl-D ends")
    for text in lines():
        query = Query(text=text, unlike=unlike, unlike_weight=not_weight)
        try:
            (answer,) = searcher.search([query], top_k=top_k, min_score=min_score)
            show(answer, searcher.embeddings)
        except UserError as error:
            console.log(f"error: {error}")
