"""`ddclip pack-h5`: pictures of objects into one view store."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import (
    CodecName,
    ForceOption,
    JobsOption,
    JsonOption,
    OnError,
    OnErrorOption,
    RecipeOption,
    SetOption,
)


class LayoutName(str, Enum):
    auto = "auto"
    zero123 = "zero123"
    mvimgnet = "mvimgnet"
    images = "images"


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Folder that holds one folder of pictures per object, or Zero123's .tar or .tar.gz.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="STORE.h5", help="The view store to write.", show_default=False)
    ],
    layout: Annotated[
        LayoutName,
        typer.Option(help="OBJECT/000.png ..., mvi_*/CLASS/OBJECT/images/*.jpg, or any pictures in OBJECT/."),
    ] = LayoutName.auto,
    ids: Annotated[
        Path | None, typer.Option("--ids", help="The objects to pack: one id a line, a JSON list, or a JSON of rows.")
    ] = None,
    supplement: Annotated[
        Path | None, typer.Option("--supplement", metavar="STORE.h5", help="A view store whose objects join.")
    ] = None,
    supplement_ids: Annotated[
        Path | None, typer.Option("--supplement-ids", metavar="JSON", help="Rows of the supplement (object_id: row).")
    ] = None,
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    num_views: Annotated[int | None, typer.Option(help="Views of an object (pack.num_views).")] = None,
    size: Annotated[int | None, typer.Option(help="Side of a view in pixels (pack.image_size).")] = None,
    codec: Annotated[
        CodecName | None, typer.Option(help="raw as the reference has it, or a fraction of the size (pack.codec).")
    ] = None,
    jobs: JobsOption = 1,
    on_error: OnErrorOption = OnError.fail,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pack pictures of objects into a view store.

    Rows are in the order of --ids, else sorted (an archive's: as they come);
    they are kept in the store and beside it, in STORE_model_to_idx.json.
    Transparency is laid on white. An archive is read as it is, never unpacked.
    The same command again goes on where it was.

    Examples:
    \b
      ddclip pack-h5 renders --out store.h5 --jobs 4
      ddclip pack-h5 views_release.tar.gz --codec jpeg --out store.h5
    """
    from ddclip_cli import console
    from ddclip_cli.data.pack import pack_store
    from ddclip_cli.recipe import load_recipe

    shorthands = {"num_views": num_views, "image_size": size, "codec": codec and codec.value}
    given = [f"pack.{key}={value}" for key, value in shorthands.items() if value is not None]
    settings = load_recipe(recipe, [*(set_ or []), *given]).pack
    packed = pack_store(
        source,
        out,
        layout=layout.value,
        ids=ids,
        supplement=supplement,
        supplement_ids=supplement_ids,
        **settings.model_dump(),
        jobs=jobs,
        on_error=on_error.value,
        recipe={"pack": settings.model_dump(mode="json")},
        force=force,
    )
    result: dict[str, object] = {"store": str(out), "layout": packed.layout}
    result |= {"objects": len(packed.object_ids), "views": settings.num_views, "size": settings.image_size}
    result |= {"codec": settings.codec}
    if as_json:
        console.print_json(result | {"skipped": packed.skipped})
    else:
        result |= {"skipped": len(packed.skipped)}
        console.print_table(list(result), [list(result.values())])
