"""Bring a demo into the package: its trained model at half precision, and its held-out part embedded by that.

ddclip demo --out build/shipped --seed 3000 --train 2304
python -m ddclip_cli.sample.ship build/shipped
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from ddclip_cli import console
from ddclip_cli.model.checkpoints import load_model, save_checkpoint
from ddclip_cli.recipe import load_recipe
from ddclip_cli.search.embed import embed_library
from ddclip_cli.search.library import ViewSettings, find_objects
from ddclip_cli.shipped import ASSETS


def main(demo: Annotated[Path, typer.Argument(help="The folder of a finished demo.")]) -> None:
    best = demo / "run" / "checkpoints" / "best"
    recipe = json.loads((best / "config.json").read_text())["recipe"]
    save_checkpoint(load_model(best, device="cpu"), ASSETS / "model", recipe=recipe, dtype=torch.float16)
    model = load_model(ASSETS / "model", device="cpu")  # as rounded, so that the embeddings are this model's
    settings = load_recipe("sample")
    made_by = {"checkpoint": settings.model.checkpoint, "precision": model.precision, "recipe": recipe}
    embed_library(
        model,
        find_objects([demo / "heldout.h5"]),
        ASSETS / "embeddings.h5",
        views=ViewSettings(num_views=settings.embed.num_views),
        crop=settings.embed.crop,
        made_by=made_by,
        force=True,
    )
    console.log(f"{ASSETS}: model and embeddings of {demo}")


if __name__ == "__main__":
    typer.run(main)
