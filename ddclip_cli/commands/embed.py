"""`ddclip embed`: the shape embeddings of a view store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import (
    DATA_DIR,
    CheckpointOption,
    DataDirOption,
    DeviceOption,
    ForceOption,
    Precision,
    PrecisionOption,
    RecipeOption,
    SetOption,
)


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE.h5", help="View store (see pack-h5).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="EMB.h5", help="Where to write.", show_default=False)],
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    checkpoint: CheckpointOption = None,
    num_views: Annotated[int | None, typer.Option(help="Views of an object to use (embed.num_views).")] = None,
    ids: Annotated[Path | None, typer.Option(metavar="JSON", help="Rows of the store, object_id: row.")] = None,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    force: ForceOption = False,
) -> None:
    """Embed every object of a view store, for retrieve to search.

    Thumbnails of the objects, and what model made the embeddings, are kept in the same file.

    Examples:
    \b
      ddclip embed library.h5 --out embeddings.h5
      ddclip embed library.h5 --out embeddings.h5 --recipe sample --num-views 6
    """
    from ddclip_cli import console, files
    from ddclip_cli.commands.needs import require
    from ddclip_cli.commands.sources import checkpoint_source, load_recipe_model, recorded
    from ddclip_cli.recipe import load_recipe

    given = [] if num_views is None else [f"embed.num_views={num_views}"]
    settings = load_recipe(recipe, [*(set_ or []), *given])
    files.refuse_existing(out, force=force)
    require(store, ids, checkpoint_source(settings, checkpoint, data_dir), data_dir=data_dir)

    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.search.embed import embed_store

    views = ViewStore(store, ids)
    model = load_recipe_model(settings, checkpoint, data_dir, device, precision.value)
    document = recorded(settings, {"model.checkpoint": checkpoint})
    embed_store(
        model,
        views,
        out,
        num_views=settings.embed.num_views,
        crop=settings.embed.crop,
        made_by={
            "checkpoint": document["model"]["checkpoint"],
            "precision": model.precision,
            "recipe": document,
        },
        force=force,
    )
    console.log(f"{len(views)} objects embedded from {settings.embed.num_views} views each: {out}")
