"""`ddclip render`: meshes into views."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import (
    ForceOption,
    JobsOption,
    JsonOption,
    OnError,
    OnErrorOption,
    RecipeOption,
    SetOption,
)


class CameraName(str, Enum):
    zero123 = "zero123"
    ring = "ring"
    sphere = "sphere"


class UpName(str, Enum):
    auto = "auto"
    y = "y"
    z = "z"


class IdsName(str, Enum):
    name = "name"
    path = "path"


def command(
    meshes: Annotated[
        list[Path],
        typer.Argument(metavar="MESH_OR_FOLDER...", help="Mesh files, or folders of them.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RENDERS", help="Folder of one folder an object.", show_default=False)
    ],
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    num_views: Annotated[int | None, typer.Option(help="Views of an object (render.num_views).")] = None,
    size: Annotated[int | None, typer.Option(help="Side of a view in pixels (render.image_size).")] = None,
    camera: Annotated[
        CameraName | None, typer.Option(help="Random over the sphere, once around, or even (render.camera).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, other cameras (render.seed).")] = None,
    up: Annotated[UpName | None, typer.Option(help="Axis that points up; auto: by format (render.up).")] = None,
    object_ids: Annotated[
        IdsName | None, typer.Option(help="Ids from file names, or paths below the folder (render.object_ids).")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw a contact sheet too.")] = None,
    jobs: JobsOption = 1,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where views are drawn.")] = "cpu",
    on_error: OnErrorOption = OnError.fail,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Render meshes to views with transparent background.

    Reads .glb .gltf .obj .ply .stl .off .dae .3mf, and .fbx .usdz with an extra; needs no display.
    Writes RENDERS/OBJECT/000.png, 000.npy (its camera) and so on, for pack-h5;
    OBJECT is the mesh's file name without its suffix.
    RENDERS/recipe.yaml keeps the settings.
    The same command again goes on where it was.

    Examples:
    \b
      ddclip render chair.glb --out renders
      ddclip render meshes --out renders --size 256 --jobs 4 --sheet renders.png
    """
    from ddclip_cli import console, files
    from ddclip_cli.errors import UsageError, UserError
    from ddclip_cli.model.device import choose_device
    from ddclip_cli.recipe import load_recipe
    from ddclip_cli.render.folder import render_folder
    from ddclip_cli.render.sheet import MAX_OBJECTS, write_views_sheet

    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise UsageError(f"a sheet is a PNG: name --sheet FILE.png, not {sheet}")
        files.refuse_existing(sheet, force=force, option="--sheet")
    shorthands = {
        "num_views": num_views,
        "image_size": size,
        "camera": camera and camera.value,
        "seed": seed,
        "up": up and up.value,
        "object_ids": object_ids and object_ids.value,
    }
    given = [f"render.{key}={value}" for key, value in shorthands.items() if value is not None]
    settings = load_recipe(recipe, [*(set_ or []), *given]).render

    result = render_folder(
        meshes,
        out,
        **settings.model_dump(),
        jobs=jobs,
        device=str(choose_device(device)),
        recipe={"render": settings.model_dump(mode="json")},
        force=force,
    )
    if sheet is not None:
        shown = sorted(result.done + result.kept)
        write_views_sheet(sheet, [out / object_id for object_id in shown])
        if len(shown) > MAX_OBJECTS:
            console.log(f"{sheet} shows the first {MAX_OBJECTS} of {len(shown)} objects")
    summary: dict[str, object] = {"renders": str(out), "rendered": len(result.done), "kept": len(result.kept)}
    if as_json:
        console.print_json(summary | {"failed": result.failed})
    else:
        summary |= {"failed": len(result.failed)}
        console.print_table(list(summary), [list(summary.values())])
    for reason in result.failed.values():
        console.warn(reason)
    if result.failed and on_error is OnError.fail:
        number = len(result.failed)
        raise UserError(f"{number} {'mesh' if number == 1 else 'meshes'} could not be rendered, for the reasons above")
