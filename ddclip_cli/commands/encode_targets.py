"""`ddclip encode-targets`: the frozen features that training aims at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from ddclip_cli.model.multiview import MultiViewCLIP
    from ddclip_cli.recipe import Recipe


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE.h5", help="A view store.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the files to write.", show_default=False)
    ],
    captions: Annotated[
        Path | None,
        typer.Option("--captions", metavar="JSON", help="Captions of every object (object_id: text or texts)."),
    ] = None,
    per_view_captions: Annotated[
        Path | None,
        typer.Option(
            "--per-view-captions", metavar="JSON", help="One caption a view (object_id: texts), may be a .gz."
        ),
    ] = None,
    recipe: RecipeOption = "four",
    overrides: SetOption = None,
    ids: Annotated[
        Path | None, typer.Option("--ids", metavar="JSON", help="Rows of the store (object_id: row), if it lacks them.")
    ] = None,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    processes: Annotated[
        int,
        typer.Option("--processes", min=1, help="Processes that encode, each with its own model and, of several, GPU."),
    ] = 1,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode views and captions with the frozen backbone of the recipe.

    With --captions, text_embeddings.h5, a feature per caption, and
    image_embeddings.h5, one per view. An object's captions are a text, a list
    of texts, or {"text": [...], "blip": "...", "msft": "...", "retrieval":
    [...]}, any of these. With --per-view-captions, mvimgnet_embeddings.h5: of
    every view the feature and that of its caption.
    The same command again goes on where it was.

    Examples:
    \b
      ddclip encode-targets store.h5 --captions captions.json --out targets
      ddclip encode-targets s.h5 --per-view-captions packed.json.gz --out t
    """
    from functools import partial

    from ddclip_cli import console
    from ddclip_cli.commands.sources import load_recipe_backbone
    from ddclip_cli.data.encode import Encoder, encode_targets, encode_view_targets
    from ddclip_cli.data.unfinished import refuse_finished
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.errors import UsageError
    from ddclip_cli.recipe import load_recipe

    if (captions is None) == (per_view_captions is None):
        raise UsageError("give the captions: either --captions or --per-view-captions")
    settings = load_recipe(recipe, overrides or ())
    # What can be told at once is told before the model takes its time to load.
    refuse_finished(out / ("image_embeddings.h5" if captions else "mvimgnet_embeddings.h5"), force=force)
    ViewStore(store, ids)
    model = load_recipe_backbone(settings, data_dir, device=device, precision=precision.value)
    encoder = Encoder(
        model,
        load=partial(_load, settings, data_dir, str(model.device), model.precision),
        processes=processes,
        recipe=settings.model_dump(mode="json"),
    )
    if captions is not None:
        objects, texts = encode_targets(encoder, store, captions, out, ids=ids, force=force)
    else:
        assert per_view_captions is not None
        objects, texts = encode_view_targets(encoder, store, per_view_captions, out, ids=ids, force=force)
    result = {"targets": str(out), "objects": objects, "texts": texts, "width": model.embed_dim}
    if as_json:
        console.print_json(result)
    else:
        console.print_table(list(result), [list(result.values())])


def _load(settings: Recipe, data_dir: Path, device: str, precision: str, number: int) -> MultiViewCLIP:
    """The model of process `number`: of several GPUs, each has its own."""
    import torch

    from ddclip_cli.commands.sources import load_recipe_backbone

    gpus = torch.cuda.device_count()
    own = f"cuda:{number % gpus}" if device.startswith("cuda") else device
    return load_recipe_backbone(settings, data_dir, device=own, precision=precision)
