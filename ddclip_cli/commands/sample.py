"""`ddclip sample`: write the sample library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import ForceOption


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the library.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other objects.")] = 0,
    train: Annotated[int, typer.Option("--train", min=0, help="How many objects to train on.")] = 600,
    heldout: Annotated[
        int, typer.Option("--heldout", min=0, help="How many held-out objects; 300 or more have five white couches.")
    ] = 340,
    force: ForceOption = False,
) -> None:
    """Write the sample library: coloured 3D objects (.glb) with captions, classes, and a held-out part.

    The same command again continues an unfinished library.

    Examples:
    \b
      ddclip sample --out data/sample
      ddclip sample --out data/few --train 0 --heldout 48 --seed 7
    """
    from ddclip_cli import console
    from ddclip_cli.sample.library import write_library

    write_library(out, seed=seed, train=train, heldout=heldout, force=force)
    console.log(f"{train + heldout} objects in {out / 'meshes'}, captions in {out / 'captions.json'}")
