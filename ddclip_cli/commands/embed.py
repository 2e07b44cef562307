"""`ddclip embed`: the shape embeddings of a library, whatever form it has."""

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
    JobsOption,
    OnError,
    OnErrorOption,
    Precision,
    PrecisionOption,
    RecipeOption,
    SetOption,
)


def command(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE...", help="View stores, meshes, folders of any.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="EMB.h5", help="Where to write.", show_default=False)],
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    checkpoint: CheckpointOption = None,
    num_views: Annotated[int | None, typer.Option(help="Views of an object to use (embed.num_views).")] = None,
    ids: Annotated[Path | None, typer.Option(metavar="JSON", help="Rows of the store, object_id: row.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Embed only what is new or changed in EMB.h5.")] = False,
    jobs: JobsOption = 1,
    processes: Annotated[int, typer.Option(min=1, help="Processes that embed, each with a model (one a GPU).")] = 1,
    on_error: OnErrorOption = OnError.fail,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    force: ForceOption = False,
) -> None:
    """Embed a 3D library, for retrieve to search.

    A SOURCE is a view store, a mesh, or a folder: of meshes (rendered on the
    way), of renders or photos of one object, or of such folders.
    Thumbnails, and what model made the embeddings, are kept in the same file.
    The same command again goes on where it was stopped.

    Examples:
    \b
      ddclip embed meshes photos --out embeddings.h5 --jobs 4
      ddclip embed library.h5 --out embeddings.h5 --recipe sample --num-views 6
    """
    import os
    import time

    from ddclip_cli import console, files
    from ddclip_cli.commands.needs import require
    from ddclip_cli.commands.sources import backbone_of, checkpoint_source, load_recipe_model, recorded
    from ddclip_cli.errors import UsageError
    from ddclip_cli.recipe import load_recipe

    given = [] if num_views is None else [f"embed.num_views={num_views}"]
    settings = load_recipe(recipe, [*(set_ or []), *given])
    if update and force:
        raise UsageError("--update keeps what --force replaces: choose one")
    if not update:
        files.refuse_existing(out, force=force)
    source = checkpoint_source(settings, checkpoint, data_dir)
    require(*sources, ids, source, data_dir=data_dir)

    from ddclip_cli.search.embed import ModelSpec, embed_library
    from ddclip_cli.search.library import ViewSettings, find_objects

    objects = find_objects(sources, ids, object_ids=settings.render.object_ids)
    model = load_recipe_model(settings, checkpoint, data_dir, device, precision.value)
    document = recorded(settings, {"model.checkpoint": checkpoint})
    made_by = {"checkpoint": document["model"]["checkpoint"], "precision": model.precision, "recipe": document}
    if isinstance(source, Path) and not made_by["checkpoint"].startswith("sample:"):
        made_by["checkpoint_from_here"] = os.path.relpath(source, out.parent)
    begin = time.perf_counter()
    run = embed_library(
        model,
        objects,
        out,
        views=ViewSettings(
            num_views=settings.embed.num_views,
            size=settings.pack.image_size,
            render_size=settings.render.image_size,
            camera=settings.render.camera,
            seed=settings.render.seed,
            up=settings.render.up,
        ),
        crop=settings.embed.crop,
        jobs=jobs,
        processes=processes,
        spec=ModelSpec(str(source), backbone_of(settings, source, data_dir), str(model.device), model.precision),
        guarded=True,
        made_by=made_by,
        on_error=on_error.value,
        update=update,
        force=force,
    )
    seconds = time.perf_counter() - begin
    now = len(run.done) - len(run.resumed)
    rate = f" in {seconds:.1f} s" + (f" ({now / seconds:.1f} objects/s)" if now else "")
    kept = f", {len(run.kept)} kept" if update else ""
    dropped = f", {len(run.dropped)} dropped whose files are gone" if run.dropped else ""
    failed = f", {len(run.failed)} left out" if run.failed else ""
    console.log(f"{out}: {len(run.done)} objects embedded{kept}{dropped}{failed}{rate}")
