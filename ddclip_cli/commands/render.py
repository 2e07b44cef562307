"""`ddclip render`: meshes into views."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import ForceOption, JobsOption, JsonOption, OnError, OnErrorOption


class CameraName(str, Enum):
    zero123 = "zero123"
    ring = "ring"
    sphere = "sphere"


def command(
    meshes: Annotated[
        list[Path],
        typer.Argument(metavar="MESH_OR_FOLDER...", help="Mesh files, or folders of them.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RENDERS", help="Folder of one folder an object.", show_default=False)
    ],
    num_views: Annotated[int, typer.Option("--num-views", min=1, max=1000, help="Views of an object.")] = 12,
    size: Annotated[int, typer.Option("--size", min=16, max=2048, help="Side of a view in pixels.")] = 512,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other cameras.")] = 0,
    camera: Annotated[
        CameraName, typer.Option(help="Random over the whole sphere as Zero123 has it, once around, or even.")
    ] = CameraName.zero123,
    jobs: JobsOption = 1,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where triangles are drawn.")] = "cpu",
    on_error: OnErrorOption = OnError.fail,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Render meshes to views with transparent background.

    Reads .glb .gltf .obj .ply .stl .off .dae .3mf; needs no display. Writes RENDERS/OBJECT/000.png and 000.npy (its
    camera) and so on, which pack-h5 takes as they are; OBJECT is the mesh's file name without suffix. The same command
    again goes on where it was.

    Examples:
    \b
      ddclip render chair.glb --out renders
      ddclip render meshes --out renders --size 256 --jobs 4
    """
    from ddclip_cli import console
    from ddclip_cli.errors import UserError
    from ddclip_cli.model.device import choose_device
    from ddclip_cli.render.folder import render_folder

    result = render_folder(
        meshes,
        out,
        num_views=num_views,
        image_size=size,
        seed=seed,
        camera=camera.value,
        jobs=jobs,
        device=str(choose_device(device)),
        force=force,
    )
    summary: dict[str, object] = {"renders": str(out), "rendered": len(result.done), "kept": len(result.kept)}
    if as_json:
        console.print_json(summary | {"failed": result.failed})
    else:
        summary |= {"failed": len(result.failed)}
        console.print_table(list(summary), [list(summary.values())])
    if result.failed and on_error is OnError.fail:
        number = len(result.failed)
        raise UserError(f"{number} {'mesh' if number == 1 else 'meshes'} could not be rendered, for the reasons above")
