"""`ddclip encode-classes`: class features from the names of classes and prompt templates."""

from __future__ import annotations

from enum import Enum
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


class Names(str, Enum):
    clean = "clean"
    raw = "raw"


def command(
    classes: Annotated[
        Path,
        typer.Argument(metavar="CLASSES.txt", help="Class names, one a line, or a CSV of labels.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.npy", help="Where to write.", show_default=False)],
    templates: Annotated[
        str, typer.Option(metavar="NAME_OR_FILE", help="name, short, render, photo, all, or a file with one a line.")
    ] = "short",
    names: Annotated[
        Names, typer.Option(help="clean: `bat_(animal)` is said as `bat (animal)`; raw: as it is written.")
    ] = Names.clean,
    normalise: Annotated[
        bool, typer.Option("--normalise/--no-normalise", help="Bring every text's feature to unit length first.")
    ] = True,
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    checkpoint: CheckpointOption = None,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    force: ForceOption = False,
) -> None:
    """Encode class names: the mean, over prompt templates, of the text features of each name.

    FILE.npy holds (classes, width) float32, which eval.class_features and eval-classify --classes take. FILE.json
    beside it says what made it.

    Examples:
    \b
      ddclip encode-classes data/lvis.csv --templates render --out lvis_classes.npy
      ddclip encode-classes classes.txt --templates mine.txt --names raw --no-normalise --out classes.npy
    """
    import json

    from ddclip_cli import console, files
    from ddclip_cli.commands.needs import require
    from ddclip_cli.commands.sources import checkpoint_source, load_recipe_model, recorded
    from ddclip_cli.errors import UsageError
    from ddclip_cli.evaluation.templates import read_templates
    from ddclip_cli.recipe import load_recipe

    if out.suffix != ".npy":
        raise UsageError(f"class features are an .npy file, which {out} is not called: choose another --out")
    prompts = read_templates(templates)
    settings = load_recipe(recipe, set_ or [])
    for path in (out, out.with_suffix(".json")):
        files.refuse_existing(path, force=force)
    require(classes, checkpoint_source(settings, checkpoint, data_dir), data_dir=data_dir)

    import numpy as np

    from ddclip_cli.evaluation.class_features import make_class_features, read_class_names

    class_names = read_class_names(classes)
    model = load_recipe_model(settings, checkpoint, data_dir, device, precision.value)
    features = make_class_features(model, class_names, prompts, normalise=normalise, clean=names is Names.clean)
    made_by = {
        "classes": class_names,
        "templates": prompts,
        "names": names.value,
        "normalised": normalise,
        "fingerprint": model.fingerprint,
        "precision": model.precision,
        "recipe": recorded(settings, {"model.checkpoint": checkpoint}),
    }
    with files.writing(out.with_suffix(".json")) as partial_json, files.writing(out) as partial:
        with open(partial, "wb") as file:
            np.save(file, features.numpy())
        partial_json.write_text(json.dumps(made_by, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    console.log(f"{len(class_names)} classes encoded with {len(prompts)} templates each: {out}")
