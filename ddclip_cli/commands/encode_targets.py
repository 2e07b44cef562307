"""`ddclip encode-targets`: the frozen features that training aims at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE.h5", help="A view store.", show_default=False)],
    captions: Annotated[
        Path,
        typer.Option(
            "--captions",
            metavar="JSON",
            help="Captions of every object (object_id: text or texts).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the two files to write.", show_default=False)
    ],
    recipe: RecipeOption = "four",
    overrides: SetOption = None,
    ids: Annotated[
        Path | None, typer.Option("--ids", metavar="JSON", help="Rows of the store (object_id: row), if it lacks them.")
    ] = None,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode views and captions with the frozen backbone of the recipe.

    Writes image_embeddings.h5, a feature per view, and text_embeddings.h5, one
    per caption. An object's captions are a text, a list of texts, or {"text":
    [...], "blip": "...", "msft": "...", "retrieval": [...]}, any of these.

    Examples:
    \b
      ddclip encode-targets store.h5 --captions captions.json --out targets
      ddclip encode-targets store.h5 --captions c.json --out t --recipe sample
    """
    from ddclip_cli import console
    from ddclip_cli.commands.sources import load_recipe_backbone
    from ddclip_cli.data.targets import encode_targets
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.files import refuse_existing
    from ddclip_cli.recipe import load_recipe

    settings = load_recipe(recipe, overrides or ())
    # What can be told at once is told before the model takes its time to load.
    refuse_existing(out / "image_embeddings.h5", force=force)
    ViewStore(store, ids)
    model = load_recipe_backbone(settings, data_dir, device=device, precision=precision.value)
    made_by = settings.model_dump(mode="json")
    objects, texts = encode_targets(model, store, captions, out, ids=ids, force=force, recipe=made_by)
    result = {"targets": str(out), "objects": objects, "texts": texts, "width": model.embed_dim}
    if as_json:
        console.print_json(result)
    else:
        console.print_table(list(result), [list(result.values())])
